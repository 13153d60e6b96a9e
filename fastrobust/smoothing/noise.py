"""Noises, and the radii that they certify."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from fastrobust.ops import _rounding as rounding

__all__ = ["Gaussian"]

STREAM = 3  # of Philox, as in csrc/common/philox.h
MARGIN = 2.0**-23  # relative, for errors of floating point and the engine's rounding of sigma to float32


@dataclass(frozen=True)
class Gaussian:
    """Normal noise: g(x) = argmax_c P(f(x + sigma z) = c), z standard normal (Cohen et al., ICML 2019).

    Attributes:
        sigma: standard deviation, in the units of the model's input: 0.25 is a quarter of the box 0 .. 1, and 64 of
            255 grey levels. A model that normalises its input must do so inside.
    """

    sigma: float

    norm = "L2"

    def __post_init__(self) -> None:
        if not (isinstance(self.sigma, (int, float)) and math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"Gaussian: sigma must be a finite number > 0, got {self.sigma!r}")

    def radius(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """sigma PhiInv(p), rounded down: within it g says the same where its class's probability is at least p."""
        return np.where(p > 0.5, self.sigma * special.ndtri(np.maximum(p, 0.5)) * (1 - MARGIN), 0.0)

    def probability(self, radius: float) -> float:
        """What the class's probability must exceed for a radius: Phi(radius / sigma), rounded up."""
        return min(1.0, float(special.ndtr(radius / self.sigma)) * (1 + MARGIN))

    def add(self, x: Tensor, seed: int, index: Tensor, first: int, samples: int) -> Tensor:
        """Noisy copies (batch, samples, ...) of x: the reference of the engine's, which never stores them.

        Copy i of sample j is a function of seed, index[j] and first + i alone: Philox4x32-10 and Box and Muller's
        normals, made in float64 and added with one rounding.
        """
        dim = x[0].numel()
        blocks = torch.arange((dim + 3) // 4, device=x.device)
        copies = []
        for copy in range(first, first + samples):
            words = rounding.philox(seed, blocks, copy, index[:, None], STREAM)
            parts = [*rounding.normals(words[0], words[1]), *rounding.normals(words[2], words[3])]
            noise = torch.stack(parts, -1).flatten(1)[:, :dim]
            copies.append((x.double() + self.sigma * noise.view(x.shape)).to(x.dtype))
        return torch.stack(copies, 1)
