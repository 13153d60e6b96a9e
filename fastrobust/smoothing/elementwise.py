"""Noise whose elements are independent: uniform and Laplace."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy import stats
from torch import Tensor

from fastrobust import ops
from fastrobust.smoothing.differential import Lines, discrete
from fastrobust.smoothing.noise import Floats
from fastrobust.smoothing.scaled import Scaled, log_radius

__all__ = ["Laplace", "Uniform"]


@dataclass(frozen=True)
class Uniform(Scaled):
    """Elements uniform on -scale .. scale (Lee et al., NeurIPS 2019; Yang et al., ICML 2020).

    The standard deviation of an element is scale / sqrt(3).

    Attributes:
        scale: half the width, in the units of the model's input.
        norm: of the certified ball, "L1" or "Linf". Both radii are the best that can be had.
    """

    norm: str = field(default="L1", kw_only=True)

    NORMS = ("L1", "Linf")

    def _radius(self, p: Floats, dim: int) -> Floats:
        """L1: 2 (p - 1/2). Linf: 2 (1 - (3/2 - p)^(1/d)).

        What a shift by v can take from p is what a cube loses when it is cut with itself shifted:
        1 - prod(1 - |v_i|/2), at most ||v||_1 / 2, and at most 1 - (1 - r/2)^d for ||v||_inf <= r.
        """
        if self.norm == "L1":
            return 2 * p - 1
        return -2 * np.expm1(np.log1p(0.5 - p) / dim)

    def _deviation(self, dim: int) -> float:
        return math.sqrt(1 / 3)

    @property
    def drawn(self) -> tuple[str, float]:
        """What the engine draws by itself (`Noise`)."""
        return "uniform", self.scale

    def copies(self, x: Tensor, image: Tensor, copy: Tensor, index: Tensor, seed: int) -> Tensor:
        """x + scale * u, u uniform on -1 .. 1."""
        return ops.noisy_copies(x, image, copy, index, seed, *self.drawn)


@dataclass(frozen=True)
class Laplace(Scaled):
    """Elements of density exp(-|z| / scale) / (2 scale) (Teng et al., 2019; Yang et al., ICML 2020).

    The standard deviation of an element is sqrt(2) scale.

    Attributes:
        scale: b of the density, in the units of the model's input.
        norm: of the certified ball, "L1" (the best radius that can be had) or "Linf" (the differential method's).
    """

    norm: str = field(default="L1", kw_only=True)

    NORMS = ("L1", "Linf")

    def _radius(self, p: Floats, dim: int) -> Floats:
        """L1: -log(2 (1 - p)). Linf: the differential method, with G the sum of d signs."""
        return log_radius(p) if self.norm == "L1" else _signs(dim).radius(p)

    def _deviation(self, dim: int) -> float:
        return math.sqrt(2)

    @property
    def drawn(self) -> tuple[str, float]:
        """What the engine draws by itself (`Noise`)."""
        return "laplace", self.scale

    def copies(self, x: Tensor, image: Tensor, copy: Tensor, index: Tensor, seed: int) -> Tensor:
        """x + scale * z, z of density exp(-|z|) / 2."""
        return ops.noisy_copies(x, image, copy, index, seed, *self.drawn)


@lru_cache(maxsize=64)
def _signs(dim: int) -> Lines:
    """G = the sum of dim independent signs: it has the value 2 k - dim with a binomial probability."""
    plus = np.arange(dim, (dim - 1) // 2, -1)
    value = (2 * plus - dim).astype(np.float64)
    chance = stats.binom.pmf(plus, dim, 0.5)
    first = int(np.argmax(chance > 0))  # values before it are rarer than floating point can say, and all together ..
    beyond = 2.0 * dim * float(chance[first]) if first else 0.0  # .. rarer than it
    return discrete(value[first:], chance[first:], beyond)
