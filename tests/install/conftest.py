"""A private copy of the source tree, a wheel built from it in isolation, and a clean environment that has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "out", "*.so", "_build_info.py", "*.egg-info", "__pycache__", ".*_cache"
)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command with environment variables set (or, as None, removed); output and errors come as one text.

    By default in an empty folder: in the source tree, `python -c` would import the package from there.
    """
    nowhere = tmp_path_factory.mktemp("nowhere")

    def run(
        *command: str | Path, cwd: Path = nowhere, fails: bool = False, **variables: str | None
    ) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in (os.environ | variables).items() if value is not None}
        words = [str(word) for word in command]
        result = subprocess.run(
            words, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert (result.returncode != 0) == fails, f"{words} ended with {result.returncode}:\n{result.stdout[-4000:]}"
        return result

    return run


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree as a user receives it: nothing built."""
    target = tmp_path_factory.mktemp("source") / "fastrobust"
    shutil.copytree(ROOT, target, ignore=NOT_SOURCE)
    return target


@pytest.fixture(scope="session")
def wheel(tree: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by pip with build isolation, for the CPU."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", tree, "--no-deps", "-w", folder]
    run(*command, FASTROBUST_CUDA="0", FASTROBUST_REQUIRE_NATIVE="1")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def clean_python(wheel: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new virtual environment in which the wheel was installed."""
    venv = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", venv)
    python = venv / "bin" / "python"
    run(python, "-m", "pip", "install", "-c", ROOT / "constraints.txt", wheel)
    return python
