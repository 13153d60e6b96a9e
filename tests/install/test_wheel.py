"""The wheel: what is in it, and that it runs where there is no compiler, beside torch's own OpenMP runtime."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from .conftest import NOT_SOURCE, ROOT, Run

USE = """
import re
import torch
import fastrobust as fr
from fastrobust import _backend
print(fr.__file__)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 4))
x, y = torch.rand(64, 1, 32, 32), torch.randint(4, (64,))
point = fr.attacks.PGD(model, eps=0.1, alpha=0.05, steps=3)(x, y)
assert (point.double() - x.double()).abs().max() <= 0.1, "outside the ball"
print("native" if _backend.cpu else f"reference: {_backend.missing['cpu']}")
maps = open("/proc/self/maps").read()
print("OpenMP:", sorted(set(re.findall(r"\\S*/lib[a-z]*omp[-.\\w]*", maps))))
"""


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert f"fastrobust/_C{sysconfig.get_config_var('EXT_SUFFIX')}" in names
    assert {"fastrobust/_build_info.py", "fastrobust/py.typed", "fastrobust/_C.pyi"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"fastrobust", "fastrobust-0.1.0.dist-info"}


def test_wheel_is_tagged_for_this_python(wheel: Path) -> None:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-" in wheel.name
    assert wheel.name.endswith(f"_{os.uname().machine}.whl")


def test_wheel_runs_without_a_compiler(clean_python: Path, run: Run) -> None:
    scripts = str(clean_python.parent)
    assert not shutil.which("c++", path=scripts)
    used = run(clean_python, "-c", USE, PATH=scripts, CXX=None).stdout.splitlines()
    assert used[0].startswith(str(clean_python.parents[1]))
    assert used[1] == "native"
    assert "All that should work does." in run(clean_python.parent / "fastrobust", "doctor", PATH=scripts).stdout


def test_one_openmp_runtime_is_loaded(clean_python: Path, run: Run) -> None:
    output = run(clean_python, "-c", USE).stdout
    (found,) = re.findall(r"OpenMP: \['([^']*)'\]", output)  # two would be two paths
    assert "/torch/lib/" in found


def test_module_names_no_openmp_library(tree: Path, wheel: Path, run: Run) -> None:
    folder = tree / "build" / f"cmake-{sys.implementation.cache_tag}" / "fastrobust"
    (module,) = folder.glob("_C.*so")
    needed = run("readelf", "-d", module).stdout
    assert "libstdc++" in needed
    assert "omp" not in needed


def test_instruction_sets_share_no_function(tree: Path, wheel: Path, run: Run) -> None:
    """A function that two instruction sets define under one name is linked once: perhaps the one this CPU lacks."""
    objects = glob.glob(str(tree / "build" / "cmake-*" / "CMakeFiles" / "isa_*.dir" / "**" / "*.o"), recursive=True)
    assert objects
    for path in objects:
        isa = re.search(r"isa_(\w+)\.dir", path)
        assert isa is not None
        symbols = subprocess.run(
            ["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout
        shared = [line for line in symbols.splitlines() if re.search(r" [TWVuDB] ", line)]
        assert shared
        assert [line for line in shared if f"::{isa[1]}::" not in line] == []


def others() -> list[str]:
    """The oldest and the newest further Python at hand, of those supported."""
    found = []
    for minor in range(10, 14):
        pyenv = glob.glob(os.path.expanduser(f"~/.pyenv/versions/3.{minor}.*/bin/python"))
        for place in filter(None, [shutil.which(f"python3.{minor}"), *pyenv]):
            version = subprocess.run([place, "--version"], capture_output=True, text=True).stdout
            if version.startswith(f"Python 3.{minor}.") and minor != sys.version_info.minor:
                found.append(place)
                break
    return list(dict.fromkeys([*found[:1], *found[-1:]]))


@pytest.mark.parametrize("python", others())
def test_other_pythons_build_it(python: str, run: Run, tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "source", ignore=NOT_SOURCE)
    command = [python, "-m", "pip", "wheel", tmp_path / "source", "--no-deps", "-w", tmp_path]
    run(*command, FASTROBUST_CUDA="0", FASTROBUST_REQUIRE_NATIVE="1")
    (built,) = tmp_path.glob("*.whl")
    assert f"fastrobust/_C.cpython-{built.name.split('-')[2][2:]}" in " ".join(zipfile.ZipFile(built).namelist())
