"""Whether inputs and noise are in the same units: warnings where they seem not to be."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from fastrobust.smoothing.noise import Gaussian, Noise

__all__ = ["Box", "warn_of_noise", "warn_of_values"]

Box = tuple[float, float]


def warn_of_noise(noise: Noise, box: Box | None) -> None:
    """Warns where sigma exceeds the box's width."""
    if box is not None and isinstance(noise, Gaussian) and noise.sigma > box[1] - box[0]:
        warnings.warn(
            f"Smooth: sigma = {noise.sigma} exceeds the width of the box {box[0]} .. {box[1]}: is it in the units of "
            "the model's input?", stacklevel=3,
        )  # fmt: skip


def warn_of_values(x: Tensor, box: Box | None) -> None:
    """Warns where finite values of x leave the box."""
    if box is None or not x.numel():
        return
    least, most = (float(end) for end in torch.aminmax(x.detach()))
    if -math.inf < least < box[0] or box[1] < most < math.inf:
        warnings.warn(
            f"Smooth: x has values in [{least:g}, {most:g}], outside the box {box[0]} .. {box[1]}: noise is in the "
            "units of the model's input; give its box, or None", stacklevel=4,
        )  # fmt: skip
