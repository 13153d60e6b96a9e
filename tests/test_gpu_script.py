"""`make gpu` where there is no GPU: it says so, and its measurements run on whatever there is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_and_exits_with_2(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "needs a machine with an NVIDIA GPU" in capsys.readouterr().err


def test_the_report_names_the_kernels_and_rates_them(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # minutes of compilation are no part of this
    cpu = torch.device("cpu")
    gpu.check_every_op(cpu)
    found = gpu.report(cpu, rehearse=True)
    assert len(found["csrc sha256"]) == 64
    results = found["results"]
    step = next(entry for name, entry in results.items() if name.startswith("pgd_step Linf"))
    assert step["share of copy"] == pytest.approx(step["GB/s"] / results["copy"]["GB/s"])
    assert all(entry["seconds"] > 0 for entry in results.values())
    assert len(gpu.lines(results)) == len(results)


def test_results_are_named_after_the_gpu(gpu: ModuleType) -> None:
    assert gpu.file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3.json"
