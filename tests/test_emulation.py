"""The CUDA kernels, run on the CPU by tests/emulation, against the PyTorch references: the same rule as on a GPU.

`tests/emulation/run.sh` tests them in more depth (sanitizers, planted faults); here they pass through the bindings and
the op layer, as on a device.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor

import fastrobust as fr
from fastrobust import _backend
from fastrobust._registry import OPS
from fastrobust._selfcheck import disagreement

ROOT = Path(__file__).resolve().parents[1]
ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def emulated() -> ModuleType:
    """`_C_emulated`, built into build/emulation where it is not up to date."""
    if shutil.which(os.environ.get("CXX", "g++")) is None or shutil.which("make") is None:
        pytest.skip("needs g++ and make to compile the kernels for the CPU")
    (ROOT / "build").mkdir(exist_ok=True)
    with FileLock(ROOT / "build" / "emulation.lock"):  # pytest-xdist's processes have one folder
        run = subprocess.run(
            ["bash", ROOT / "tests" / "emulation" / "run.sh", "module"],
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stderr[-4000:]
    spec = importlib.util.spec_from_file_location("_C_emulated", run.stdout.split()[-1])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", sorted(OPS))
def test_kernels_are_as_exact_as_the_reference(emulated: ModuleType, name: str, order: str) -> None:
    emulated.set_order(ORDERS[order])
    for args in OPS[name].samples(CPU):
        assert disagreement(OPS[name], emulated, args) <= 1


def step_arguments(shape: tuple[int, ...], norm: str, dtype: torch.dtype, grad: torch.dtype) -> tuple[Any, ...]:
    """Arguments of the operator with per-sample radii and steps and a per-feature box."""
    g = torch.Generator().manual_seed(sum(shape))
    dim = shape[1]
    x = 0.2 + 0.6 * torch.rand(shape, dtype=dtype, generator=g)
    x_adv = x + 0.02 * torch.randn(shape, dtype=dtype, generator=g)
    gradient = torch.randn(shape, generator=g).to(grad)
    unit = {"Linf": 0.1, "L2": 0.1 * dim**0.5, "L1": 0.1 * dim}[norm]
    eps = unit * torch.rand(shape[0], dtype=dtype, generator=g)
    step = unit * torch.rand(shape[0], dtype=dtype, generator=g)
    lo, hi = (end + 0.1 * torch.rand(shape[1:], dtype=dtype, generator=g) for end in (0.0, 0.9))
    flags = torch.zeros(shape[0], dtype=torch.int32)
    return (x_adv, x, gradient, 0.0, step, norm, 0.0, eps, 0.0, 1.0, lo, hi, True, flags)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 255, 257, 1025])
@pytest.mark.parametrize(
    ("dtype", "grad"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float16)],
)
def test_steps_of_odd_sizes(emulated: ModuleType, norm: str, dim: int, dtype: torch.dtype, grad: torch.dtype) -> None:
    emulated.set_order(ORDERS["forward"])
    # The multiplier of the L1 projection is found to 1e-13 of eps, which is wider than float64's roundings.
    spec = dataclasses.replace(OPS["pgd_step"], tolerance=1e-11 if norm == "L1" else 0.0)
    assert disagreement(spec, emulated, step_arguments((3, dim), norm, dtype, grad)) <= 1


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_unaligned_and_channels_last(emulated: ModuleType, norm: str) -> None:
    def shifted(t: Tensor) -> Tensor:
        """The same values one element past an aligned address."""
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t)

    emulated.set_order(ORDERS["forward"])
    x, x_adv, grad = (torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(i)) for i in range(3))
    rest = (0.05, None, norm, 0.1, None, 0.0, 1.0, None, None, True, None)
    spec = OPS["pgd_step"]
    plain = spec.native(emulated, x_adv, x, grad - 0.5, *rest)
    assert torch.equal(spec.native(emulated, shifted(x_adv), x, shifted(grad - 0.5), *rest), plain)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x_adv, x, grad - 0.5)]
    got = spec.native(emulated, *last, *rest)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(got, plain, rtol=0, atol=1e-6)


@pytest.mark.skipif(_backend.plain is None, reason="there is no CPU engine to compare with")
def test_fully_connected_networks(emulated: ModuleType) -> None:
    emulated.set_order(ORDERS["reverse"])
    torch.manual_seed(0)
    model = torch.nn.Sequential(fr.models.Normalize((0.3, 0.4), (0.5, 0.6)), fr.models.mlp((2, 3, 5), (33, 20), 7))
    x, y = torch.rand(37, 2, 3, 5), torch.randint(7, (37,))
    compiled = fr.network.compile(model, x, frozen=True)
    tape = compiled.tape
    assert tape is not None

    def results() -> list[tuple[Tensor, ...]]:
        found: list[tuple[Tensor, ...]] = [compiled.gradient(x, y)]
        for norm, loss in (("Linf", "ce"), ("L2", "margin"), ("L1", "ce")):
            x_adv = x.clone()
            radius, box = torch.linspace(0.05, 0.5, 37), (-0.1 + 0.1 * x[0], 1 + 0.1 * x[1])
            rest = compiled.pgd(x_adv, x, y, loss, None, None, 4, 0.02, radius, norm, box, "exact", 1)
            found.append((x_adv, *rest))
        return found

    expected = results()
    compiled.engine = emulated.Engine(tape.values, tape.ops, [count for _, count in tape.tensors])
    weights = [compiled._weights[i] if i >= 0 else tape.constants[-1 - i] for i, _ in tape.tensors]
    compiled.engine.load([w.data_ptr() for w in weights], 0)
    for ours, theirs in zip(results(), expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5)


def test_networks_that_the_engine_lacks_are_refused_by_name(emulated: ModuleType) -> None:
    values, pooled = [(1, 4, 4), (1, 1, 1)], {"row_begin": [0], "row_end": [4], "column_begin": [0], "column_end": [4]}
    with pytest.raises(ValueError, match=r"max_pool \(op 0\)"):
        emulated.Engine(values, [{"kind": 4, "in": 0, **pooled}], [])
