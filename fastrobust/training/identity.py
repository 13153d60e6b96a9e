"""What makes two runs the same run, so that one may continue the other."""

from __future__ import annotations

import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from fastrobust.data import Dataset, Splits

from .config import TrainConfig


def identity(config: TrainConfig, splits: Splits, model: nn.Module) -> dict[str, Any]:
    """What decides the outcome, by name: the config, the data's checksums, the shapes of the weights."""
    decisive = {**asdict(config), "milestones": list(config.milestones)}
    del decisive["checkpoint_every"]
    return {
        **decisive,
        "training data": _checksum(splits.train),
        "validation data": _checksum(splits.val),
        **{f"model {name}": list(value.shape) for name, value in model.state_dict().items()},
    }


def check_same(there: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    """Raise ValueError, naming what differs, unless the run in `folder` is this one."""
    different = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if different:
        listed = "; ".join(f"{name} is {there.get(name)} there, {here.get(name)} here" for name in different[:5])
        raise ValueError(
            f"fit: {folder} holds another run: {listed}. Use another folder, or resume=False to start over"
        )


def _checksum(dataset: Dataset) -> str:
    images, labels = dataset.images.contiguous().numpy(), dataset.labels.contiguous().numpy()
    return f"{tuple(images.shape)} crc32 {zlib.crc32(labels.data, zlib.crc32(images.data)):08x}"
