"""A trained network as one file: its weights and how to build it, loadable without running code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastrobust import models
from fastrobust.training import Snapshot, TrainConfig
from fastrobust.training.checkpoint import write_atomic

from .errors import UserError


@dataclass(frozen=True)
class Architecture:
    """The arguments of `fastrobust.models.create`, and those of the `DnCNN` before it: width and depth, or None."""

    name: str
    in_shape: tuple[int, ...]
    classes: int
    width: int | None = None
    denoiser: tuple[int, int] | None = None

    def build(self, seed: int) -> nn.Module:
        """A new network with weights drawn from ``seed``; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = models.create(self.name, self.in_shape, self.classes, self.width)
            if self.denoiser is None:
                return model
            return models.Denoised(models.DnCNN(self.in_shape[0], *self.denoiser), model)


def save(path: Path, architecture: Architecture, data: str, config: TrainConfig, best: Snapshot) -> None:
    """Write the best weights with all that `load` and a reader need; the file is replaced as a whole."""
    content = {
        "format": "fastrobust model 1",
        "architecture": {**asdict(architecture), "in_shape": list(architecture.in_shape)},
        "data": data,
        "config": config.to_json(),
        "epoch": best.epoch,
        "clean": best.clean,
        "robust": best.robust,
        "certified": best.certified,
        "noisy": best.noisy,
        "model": best.weights,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)


def load(path: Path) -> tuple[nn.Module, Architecture, dict[str, Any]]:
    """The network in eval mode, its architecture, and all that the file says. UserError for other files."""
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        fields = content["architecture"]
        denoiser = tuple(fields["denoiser"]) if fields.get("denoiser") else None
        architecture = Architecture(**{**fields, "in_shape": tuple(fields["in_shape"]), "denoiser": denoiser})
        model = architecture.build(seed=0)
        model.load_state_dict(content["model"])
    except Exception as error:  # torch, zipfile and pickle raise many kinds on other files
        raise UserError(f"{path} is not a model file of `fastrobust train` or `demo`") from error
    return model.eval(), architecture, content
