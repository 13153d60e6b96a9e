"""What the tests of training for smoothing share: points, settings, networks, and copies made one by one."""

from __future__ import annotations

from typing import Any

import torch
from small import net, splits
from torch import Tensor, nn

from fastrobust import models
from fastrobust.smoothing import Gaussian
from fastrobust.training import Adversary, TrainConfig

SIGMA = 0.3


def batch(size: int = 10) -> tuple[Tensor, Tensor]:
    part = splits().train.subset(slice(0, size))
    return part.images.double(), part.labels


def at(objective: str, index: Tensor | None = None, eps: float = 0.5, **fields: Any) -> Adversary:
    fields = {"sigma": SIGMA, "norm": "L2", "eps": eps, "steps": 3, "compile": False, **fields}
    config = TrainConfig(objective=objective, **fields)
    return Adversary(config, eps, 7, torch.arange(10) if index is None else index)


def denoised(depth: int = 3) -> models.Denoised:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        denoiser = models.DnCNN(1, 4, depth)
        nn.init.normal_(denoiser.noise[-1].weight, std=0.1)
    return models.Denoised(denoiser, net("norm")).double()


def model_for(objective: str) -> nn.Module:
    return (denoised() if objective in ("denoise", "stability") else net()).double().train()


def copy_of(x: Tensor, sample: int, copy: int, seed: int = 7) -> Tensor:
    """One noisy copy, made alone."""
    number = torch.tensor([0])
    return Gaussian(SIGMA).copies(x[sample : sample + 1], number, torch.tensor([copy]), torch.tensor([sample]), seed)


def logits_of(model: nn.Module, x: Tensor, draws: int, points: Tensor | None = None) -> Tensor:
    """(batch, draws, classes), copy by copy; of other points with the noise of x."""
    rows = []
    for i in range(len(x)):
        noisy = torch.cat([copy_of(x, i, k) for k in range(draws)])
        rows.append(model(noisy if points is None else noisy - x[i] + points[i]))
    return torch.stack(rows)
