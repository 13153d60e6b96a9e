"""Checkpoint files: one complete checkpoint survives whatever happens, and damage is never taken for
weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrobust.training import CheckpointError, checkpoint


def state(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"weight": torch.full((1000,), float(step))}}


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.filterwarnings("error")  # the file that is found is whole: no falling back
def test_a_kill_between_any_two_file_operations_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = 0
    limit = 0

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            nonlocal operations
            operations += 1
            if operations > limit:
                if real is save:
                    args[1].write(b"the first half")  # type: ignore[attr-defined]
                raise Killed
            real(*args)

        return call

    checkpoint.save(tmp_path, state(0))
    checkpoint.save(tmp_path, state(1))
    save = torch.save
    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(torch, "save", counted(torch.save))
    step, kills = 1, 0
    while True:
        operations = 0
        try:
            checkpoint.save(tmp_path, state(step + 1))
        except Killed:
            kills += 1
            limit += 1
            found = checkpoint.load(tmp_path)
            assert found is not None
            assert found["step"] in (step, step + 1)
            assert (found["model"]["weight"] == found["step"]).all()
            step = found["step"]
        else:
            break
    assert kills >= 6
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert found["step"] == step + 1


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, state(1))
    checkpoint.save(tmp_path, state(2))
    path = tmp_path / checkpoint.CURRENT
    damage_file(path, damage)
    with pytest.warns(UserWarning, match=r"checkpoint.pt is damaged .* continuing from .*prev.pt, step 1"):
        found = checkpoint.load(tmp_path)
    assert found is not None
    assert found["step"] == 1
    damage_file(tmp_path / checkpoint.PREVIOUS, damage)
    with pytest.raises(CheckpointError, match=r"checkpoint.pt is damaged .*prev.pt is damaged .*resume=False"):
        checkpoint.load(tmp_path)


def test_no_checkpoint_is_not_an_error(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None


def damage_file(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncate":
        content = content[: len(content) // 2]
    elif how == "flip":
        content[content.index(b"\0\0\x80\x3f" if b"\0\0\x80\x3f" in content else b"\0\0\0\x40") + 3] ^= 1
    elif how == "empty":
        content = bytearray()
    else:
        content = bytearray(b"not a checkpoint")
    path.write_bytes(content)
