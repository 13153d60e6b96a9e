"""Shared fixtures: devices and instruction sets to run the ops on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastrobust import _backend
from fastrobust.cli.main import main

ISAS = _backend.cpu.isas() if _backend.cpu is not None else ["reference"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_configure() -> None:
    """Processes of pytest-xdist share the cores."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws does not depend on the tests before it, which are others in each process."""
    torch.manual_seed(0)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this build has and this processor supports, in turn."""
    if _backend.cpu is None:
        yield "reference"
        return
    before = _backend.cpu.isa()
    _backend.cpu.select_isa(request.param)
    yield request.param
    _backend.cpu.select_isa(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On small networks threads mostly wait for each other, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small network that `fastrobust train` trained on the digits; not to be changed."""
    folder = tmp_path_factory.mktemp("train")
    train = ["train", "--data", "digits", "--model", "mlp", "--width", "32", "--objective", "standard"]
    assert main([*train, "--epochs", "6", "--lr", "0.2", "--val-steps", "0", "--out", str(folder)]) == 0
    return folder / "model.pt"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
