"""The data and the nets the training tests share: small enough that a step takes about a millisecond."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import nn

from fastrobust import data, models


@cache
def splits(train: int = 150, val: int = 40) -> data.Splits:
    """The first samples of the 8x8 digits: real images, so that training makes progress."""
    whole = data.digits()
    return data.Splits(
        whole.train.subset(slice(0, train)), whole.val.subset(slice(0, val)), whole.test.subset(slice(0, val))
    )


def store(path: Path) -> None:
    """Write the data for `stored`: a program that reads it starts without importing scikit-learn."""
    parts = splits()
    torch.save([(part.images, part.labels) for part in (parts.train, parts.val, parts.test)], path)


def stored(path: Path) -> data.Splits:
    parts = torch.load(path, weights_only=True)
    return data.Splits(*(data.Dataset(images, labels, 10) for images, labels in parts))


class ToDouble(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


def net(kind: str = "plain", seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if kind == "plain":
            return models.mlp((1, 8, 8), (32,), 10)
        if kind == "double":  # rounding so small that no sign of an attack's gradient hangs on it
            return nn.Sequential(ToDouble(), models.mlp((1, 8, 8), (32,), 10).double())
        if kind == "denoised":
            classifier = nn.Sequential(ToDouble(), models.mlp((1, 8, 8), (32,), 10).double())
            return models.Denoised(nn.Sequential(ToDouble(), models.DnCNN(1, 4, 2).double()), classifier)
        if kind == "norm":
            return models.small_cnn(1, 4, 8, 10)
        # Everything that carries state or draws random numbers in one net.
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
