"""Checkpoints that survive being killed at any moment.

A file is written beside its place, flushed to the disk and renamed over it; the one before is kept. So at
every moment at least one complete checkpoint exists, and a damaged one is noticed by its checksums.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from fastrobust._files import replacing, sync_folder

CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.prev.pt"


class CheckpointError(RuntimeError):
    """A run cannot be continued from what its folder holds."""


def write_atomic(path: Path, data: object) -> None:
    """Write text, or what `torch.save` takes; `path` always holds either the old content or all of the new."""
    with replacing(path) as file:
        if isinstance(data, str):
            file.write(data.encode())
        else:
            torch.save(data, file)


def save(folder: Path, state: dict[str, Any]) -> None:
    """Make `state` the current checkpoint of a run and keep the one before it."""
    fresh = folder / (CURRENT + ".new")
    write_atomic(fresh, state)
    if (folder / CURRENT).exists():
        os.replace(folder / CURRENT, folder / PREVIOUS)
    os.replace(fresh, folder / CURRENT)
    sync_folder(folder)


def load(folder: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint of a run, on the CPU; None when there is none.

    Falling back to the previous one gives a warning. Errors: CheckpointError when there are checkpoints and
    none can be read.
    """
    problems = []
    for name in (CURRENT, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = _read(path)
        except Exception as error:  # torch, zipfile and pickle raise many kinds on damaged bytes
            problems.append(f"{path} is damaged ({type(error).__name__}: {error})")
            continue
        if problems:
            warnings.warn(f"{problems[0]}; continuing from {path}, step {state['step']}", stacklevel=2)
        return state
    if problems:
        raise CheckpointError("; ".join(problems) + "; restore one, or start over with resume=False")
    return None


def _read(path: Path) -> dict[str, Any]:
    # torch.load does not compare checksums, and would return flipped bits as weights.
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise CheckpointError(f"wrong checksum of {broken}")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
