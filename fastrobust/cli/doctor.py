"""``fastrobust doctor``: what is installed, which path every op takes, and whether it computes what it should."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from collections.abc import Callable, Sequence

import torch

import fastrobust
from fastrobust import _backend
from fastrobust._registry import OPS, explain
from fastrobust._selfcheck import disagreement

__all__ = ["main"]

VARIABLES = ("FASTROBUST_BACKEND", "FASTROBUST_ISA", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def main(argv: Sequence[str]) -> int:
    """Print the report. 0: all that should work does; 1: something does not."""
    argparse.ArgumentParser(
        prog="fastrobust doctor",
        description="Say what is installed, which kernels run and why others do not, and check every op against its "
        "reference. Exit code 1 when something that should work does not.",
    ).parse_args(list(argv))
    return report(print)


def report(say: Callable[[str], None]) -> int:
    """The report, a line at a time."""
    problems = _installation(say)
    problems += _devices(say)
    problems += _ops(say)
    say("")
    for problem in problems:
        say(f"PROBLEM: {problem}")
    if not problems:
        say("All that should work does.")
    return 1 if problems else 0


def _row(say: Callable[[str], None], name: str, value: object) -> None:
    say(f"  {name:<22}{value}")


def _installation(say: Callable[[str], None]) -> list[str]:
    say(f"fastrobust {fastrobust.__version__}")
    _row(say, "Python", platform.python_version())
    _row(say, "torch", torch.__version__)
    _row(say, "system", f"{platform.system()} {platform.machine()}")
    for name in VARIABLES:
        if os.environ.get(name):
            _row(say, name, os.environ[name])
    try:
        build = importlib.import_module("fastrobust._build_info")
    except ImportError:
        _row(say, "build", "no record: the package runs from its source tree, without setup.py")
    else:
        _row(say, "compiler", build.COMPILER or "none")
        _row(say, "OpenMP", build.OPENMP or "none")
        cuda = f"{build.CUDA} for {', '.join(map(str, build.CUDA_ARCHS))}" if build.CUDA else "none"
        _row(say, "CUDA build", cuda)
        for name, why in build.MISSING.items():
            _row(say, f"no {name}", why)
    return []


def _devices(say: Callable[[str], None]) -> list[str]:
    problems: list[str] = []
    say("CPU kernels")
    if _backend.cpu is None:
        _row(say, "none", f"plain PyTorch is used: {_backend.missing['cpu']}")
    else:
        _row(
            say, "instruction set", f"{_backend.cpu.isa()} (this processor also runs {', '.join(_backend.cpu.isas())})"
        )
        _row(say, "threads", _backend.threads())
    say("CUDA kernels")
    visible = torch.cuda.is_available()
    _row(say, "devices torch sees", torch.cuda.device_count() if visible else 0)
    for i in range(torch.cuda.device_count() if visible else 0):
        major, minor = torch.cuda.get_device_capability(i)
        _row(say, f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, sm_{major}{minor}")
    if _backend.cuda is not None:
        _row(say, "kernels compiled for", _backend.cuda.architectures())
        _row(say, "driver", f"{_backend.cuda.driver_version()}, needed {_backend.cuda.minimum_driver()} or newer")
        if _backend.cuda.device_count() == 0:
            problems.append(
                f"torch sees a GPU, but the kernels' CUDA runtime does not: update the driver to "
                f"{_backend.cuda.minimum_driver()} or newer"
            )
    else:
        _row(say, "none", _backend.missing["cuda"])
    return problems


def _ops(say: Callable[[str], None]) -> list[str]:
    problems: list[str] = []
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for device in devices:
        say(f"Ops on {device} (the largest difference from the reference, as a share of what is allowed)")
        for name in sorted(OPS):
            path = explain(name, device).partition(": ")[2]
            try:
                module = _backend.module_for(device)
                if module is None:
                    _row(say, name, path)
                    continue
                worst = max(disagreement(OPS[name], module, args) for args in OPS[name].samples(device))
            except Exception as error:  # a broken kernel must not end the report
                worst = float("inf")
                path = f"{type(error).__name__}: {error}"
            good = worst <= 1
            _row(say, name, f"{'ok  ' if good else 'FAIL'} {worst:4.2f}  {path}")
            if not good:
                problems.append(
                    f"{name} on {device} disagrees with its reference: {worst:.3g} of what is allowed; {path}"
                )
    return problems
