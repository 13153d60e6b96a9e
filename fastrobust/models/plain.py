"""Feed-forward nets without skip connections. Weights start as torch's own layers draw them (Kaiming uniform
with a = sqrt(5)), which is what the published code for these nets does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(in_shape: Sequence[int], hidden: Sequence[int], classes: int) -> nn.Sequential:
    """Flatten, Linear + ReLU for each width in `hidden`, Linear to `classes`; input (B, *in_shape)."""
    sizes = [math.prod(in_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def small_cnn(in_channels: int = 1, width: int = 16, image_size: int = 28, classes: int = 10) -> nn.Sequential:
    """3x3 convolutions w, 2w/s2, 2w/s2 with batch norm and ReLU, Linear 128 with ReLU, Linear `classes`.

    Input (B, in_channels, image_size, image_size).
    """
    side = math.ceil(image_size / 4)
    return nn.Sequential(
        *_conv(in_channels, width),
        *_conv(width, 2 * width, stride=2),
        *_conv(2 * width, 2 * width, stride=2),
        nn.Flatten(),
        nn.Linear(2 * width * side * side, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def cnn7(
    in_channels: int = 3, image_size: int = 32, classes: int = 10, width: int = 64, linear: int = 512
) -> nn.Sequential:
    """The net of certified training (Shi et al., NeurIPS 2021).

    3x3 convolutions w, w, 2w/s2, 2w, 2w, then Linear `linear`, all with batch norm and ReLU, then Linear `classes`.
    Input (B, in_channels, image_size, image_size).
    """
    side = math.ceil(image_size / 2)
    return nn.Sequential(
        *_conv(in_channels, width),
        *_conv(width, width),
        *_conv(width, 2 * width, stride=2),
        *_conv(2 * width, 2 * width),
        *_conv(2 * width, 2 * width),
        nn.Flatten(),
        nn.Linear(2 * width * side * side, linear),
        nn.BatchNorm1d(linear),
        nn.ReLU(),
        nn.Linear(linear, classes),
    )


def _conv(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
