"""What setup.py does where something is missing: it goes on and says so, or names what to set."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from .conftest import NOT_SOURCE, ROOT, Run
from .test_wheel import USE


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shutil.copytree(ROOT, tmp_path / "source", ignore=NOT_SOURCE)
    return tmp_path / "source"


@pytest.fixture(scope="session")
def no_compiler(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """An environment whose PATH has a few everyday tools and no compiler."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("sh", "uname", "ldd", "cat"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return {"PATH": str(folder), "CXX": None, "CUDACXX": None, "FASTROBUST_REQUIRE_NATIVE": None}


def build_info(path: Path) -> dict[str, object]:
    return runpy.run_path(str(path / "fastrobust" / "_build_info.py"))


def test_without_a_compiler_it_is_pure_python_and_says_so_once(
    source: Path, no_compiler: dict[str, str | None], clean_python: Path, run: Run, tmp_path: Path
) -> None:
    output = run(sys.executable, "setup.py", "bdist_wheel", "-d", tmp_path, cwd=source, **no_compiler).stdout
    assert output.count("WARNING: installing without native kernels") == 1
    assert "install g++" in output
    assert "several times slower" in output
    (built,) = tmp_path.glob("*.whl")
    assert built.name == "fastrobust-0.1.0-py3-none-any.whl"

    run(clean_python, "-m", "pip", "install", "--no-deps", "--target", tmp_path / "pure", built)
    assert "no C++ compiler" in str(build_info(tmp_path / "pure")["MISSING"])
    used = run(clean_python, "-c", USE, PYTHONPATH=str(tmp_path / "pure")).stdout
    assert "reference: no C++ compiler was found" in used
    assert used.count("fastrobust runs without its native kernels: no C++ compiler was found") == 1


def test_a_compiler_can_be_required(source: Path, no_compiler: dict[str, str | None], run: Run) -> None:
    environment = no_compiler | {"FASTROBUST_REQUIRE_NATIVE": "1"}
    output = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=source, fails=True, **environment).stdout
    assert "the native modules are required, but no C++ compiler was found" in output


def test_cuda_wanted_without_nvcc_names_what_to_set(source: Path, run: Run) -> None:
    environment = {"FASTROBUST_CUDA": "1", "CUDACXX": "/no/such/nvcc"}
    output = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=source, fails=True, **environment).stdout
    assert "FASTROBUST_CUDA=1 but no nvcc was found" in output
    assert "CUDA_HOME" in output
    assert "Traceback" not in output


def test_a_failing_nvcc_costs_only_the_cuda_module(tree: Path, wheel: Path, run: Run, tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'error: this nvcc always fails' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    environment = {"FASTROBUST_CUDA": "auto", "CUDACXX": str(nvcc)}
    output = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tree, **environment).stdout
    assert output.count("WARNING: installing without CUDA kernels") == 1
    missing = build_info(tree)["MISSING"]
    assert isinstance(missing, dict)
    assert list(missing) == ["_C_cuda"]
    assert "failed" in missing["_C_cuda"]

    environment["FASTROBUST_CUDA"] = "1"
    assert (
        "FASTROBUST_CUDA=1, but building it"
        in run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tree, fails=True, **environment).stdout
    )


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FASTROBUST_CUDA", "maybe", "FASTROBUST_CUDA must be one of auto, 0, 1, got 'maybe'"),
        ("MAX_JOBS", "0", "MAX_JOBS must be a positive integer, got '0'"),
    ],
)
def test_bad_values_are_named(tree: Path, wheel: Path, run: Run, variable: str, value: str, message: str) -> None:
    environment = {"FASTROBUST_CUDA": "0"} | {variable: value}
    output = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tree, fails=True, **environment).stdout
    assert message in output
    assert "Traceback" not in output


def test_source_distribution_can_be_built_from(source: Path, run: Run, tmp_path: Path) -> None:
    run(sys.executable, "setup.py", "sdist", "-d", tmp_path, "--formats=gztar", cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for path in source.rglob("*"):
        inside = path.relative_to(source)
        if path.is_file() and inside.parts[0] in ("csrc", "cmake", "fastrobust", "setup.py", "CMakeLists.txt"):
            assert (unpacked / inside).is_file(), f"{inside} is missing from the source distribution"
    assert os.access(unpacked / "LICENSE", os.R_OK)
