"""fastrobust doctor: says what runs, and notices a kernel that computes something else."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastrobust import _backend
from fastrobust._registry import OPS
from fastrobust.cli.doctor import main, report


def test_report_names_every_op_and_succeeds() -> None:
    lines: list[str] = []
    assert report(lines.append) == 0
    text = "\n".join(lines)
    assert all(name in text for name in OPS)
    assert "All that should work does." in text
    if _backend.cpu is not None:
        assert f"instruction set {_backend.cpu.isa()}" in text


@pytest.mark.skipif(_backend.cpu is None, reason="this installation has no native CPU module to break")
def test_a_wrong_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("pgd_step", "random_start", "logit_loss")
    broken = SimpleNamespace(
        isa=_backend.cpu.isa, isas=_backend.cpu.isas, **{name: lambda *_: 0 for name in names}
    )  # a kernel that does nothing
    monkeypatch.setattr(_backend, "cpu", broken)
    lines: list[str] = []
    assert report(lines.append) == 1
    assert sum(line.startswith("PROBLEM") for line in lines) >= 3


def test_help_exits_cleanly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "every op" in capsys.readouterr().out


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_backend_variable_forces_the_reference() -> None:
    done = run("import fastrobust; print(fastrobust.explain('pgd_step'))", FASTROBUST_BACKEND="reference")
    assert "reference (PyTorch), since FASTROBUST_BACKEND=reference" in done.stdout


@pytest.mark.parametrize(("name", "value"), [("FASTROBUST_BACKEND", "fast"), ("FASTROBUST_ISA", "mmx")])
def test_bad_variables_are_named(name: str, value: str) -> None:
    done = run("import fastrobust", **{name: value})
    assert done.returncode != 0
    assert name in done.stderr
    assert value in done.stderr


@pytest.mark.skipif(_backend.cpu is None, reason="this installation has no native CPU module")
def test_isa_variable_selects_the_body() -> None:
    for isa in _backend.cpu.isas():
        done = run("from fastrobust import _backend; print(_backend.cpu.isa())", FASTROBUST_ISA=isa)
        assert done.stdout.strip() == isa


@pytest.mark.skipif(_backend.cpu is None or sys.platform != "linux", reason="needs the native module and /proc")
def test_one_openmp_runtime() -> None:
    code = (
        "import re, torch, fastrobust as fr; x = torch.rand(64, 3072); fr.ops.pgd_step(x, x, x, .1, .1); "
        "print(len({l.split()[-1] for l in open('/proc/self/maps') if re.search(r'lib(gomp|iomp5|omp)[-.]', l)}))"
    )
    assert run(code).stdout.strip() == "1"
