"""Gaussian noise in whole steps of a grid, with which certificates hold in floating point (docs/smoothing/exact.md)."""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fastrobust.smoothing.grid import check_levels, grid_points, grid_values
from fastrobust.smoothing.noise import Floats, Gaussian
from fastrobust.smoothing.words import words64

__all__ = ["IntegerGaussian"]

STREAM = 5  # of Philox
WIDEST = 4096.0  # steps in a sigma: its table of thresholds takes seconds to compute
AT_ONCE = 2**18  # numbers drawn at a time, so that the words stay in the cache
TWO_PI = Decimal("6.28318530717958647692528676655900576839433879875021164")


@dataclass(frozen=True)
class IntegerGaussian:
    """Normal noise rounded to whole steps, on inputs k / levels (Voracek and Hein, ICLR 2023; their assumption too is
    a fair coin: here the words of Philox).

    Where x is on the grid, rounding x + sigma z to the grid is adding round(sigma levels z) steps, of which each number
    has a known probability. Those are drawn from 64-bit words by comparisons of whole numbers, and the network sees a
    fixed function of k + N: nothing is rounded that depends on x. So g is Cohen's smoothed classifier of f after
    rounding to the grid, and its certificate is about all inputs, the next grid point as well.

    Attributes:
        sigma: standard deviation, in the units of the model's input.
        levels: steps in 0 .. 1. A multiple, as 255 * 16, makes the noise finer; bytes are still on its grid.
    """

    sigma: float
    levels: int = 255

    norm = "L2"

    def __post_init__(self) -> None:
        if not (isinstance(self.sigma, (int, float)) and math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"IntegerGaussian: sigma must be a finite number > 0, got {self.sigma!r}")
        check_levels("IntegerGaussian", self.levels)
        if self.sigma * self.levels > WIDEST:
            raise ValueError(
                f"IntegerGaussian: sigma * levels must be at most {WIDEST:g}, got {self.sigma * self.levels:g}"
            )

    def slack(self, dim: int) -> float:
        """By how much, at most, the probability of any event differs from that under exact normal noise."""
        return dim * (len(_thresholds(float(self.sigma), self.levels)) + 2) * 2.0**-64

    def radius(self, p: Floats, dim: int) -> Floats:
        """sigma PhiInv(p - slack)."""
        return Gaussian(self.sigma).radius(np.nextafter(np.asarray(p, dtype=np.float64) - self.slack(dim), 0), dim)

    def radius_between(self, p_a: Floats, p_b: Floats, dim: int, among: int = 1) -> Floats:
        """That of `Gaussian` for p_a - slack and p_b + slack: both are probabilities of single events."""
        low = np.clip(np.nextafter(np.asarray(p_a, dtype=np.float64) - self.slack(dim), -1), 0, 1)
        high = np.clip(np.nextafter(np.asarray(p_b, dtype=np.float64) + self.slack(dim), 2), 0, 1)
        return Gaussian(self.sigma).radius_between(low, high, dim, among)

    def probability(self, radius: float, dim: int) -> float:
        """Phi(radius / sigma) + slack."""
        return min(1.0, float(np.nextafter(Gaussian(self.sigma).probability(radius, dim) + self.slack(dim), 2)))

    def copies(self, x: Tensor, image: Tensor, copy: Tensor, index: Tensor, seed: int) -> Tensor:
        """(k + N) / levels, where x = k / levels.

        Raises:
            ValueError: where x is off the grid.
        """
        k = grid_points("IntegerGaussian", x, self.levels)
        table = _thresholds(float(self.sigma), self.levels).to(x.device)
        out = torch.empty(len(image), *x.shape[1:], dtype=x.dtype, device=x.device)
        for part in torch.arange(len(image), device=x.device).split(max(1, AT_ONCE // max(1, k[:1].numel()))):
            drawn = steps(words64(seed, k[:1].numel(), copy[part], index[image[part]], STREAM), table)
            out[part] = grid_values(k[image[part]] + drawn.view(-1, *x.shape[1:]), self.levels, x.dtype)
        return out


def steps(words: Tensor, table: Tensor) -> Tensor:
    """How many thresholds of an even, symmetric number a word reaches, less half of them: from -m to m."""
    return torch.bucketize(words, table, right=True) - len(table) // 2


@lru_cache(maxsize=16)
def _thresholds(sigma: float, levels: int) -> Tensor:
    """2^64 Phi((n - 1/2) / (sigma levels)) - 2^63 for all n where that is not yet an end, each to the nearest integer.

    An even number of them, symmetric about 0: n = 1 - m .. m; int64.
    """
    upper = list[int]()
    with decimal.localcontext(decimal.Context(prec=100)):
        step = 1 / (Decimal(levels) * Decimal(sigma))
        while True:
            scaled = int((_central((len(upper) + Decimal("0.5")) * step) * 2**64).to_integral_value())
            if scaled >= 2**63:
                return torch.tensor([*(-t for t in reversed(upper)), *upper], dtype=torch.int64)
            upper.append(scaled)


def _central(t: Decimal) -> Decimal:
    """Phi(t) - 1/2 for t > 0, with an error below 1e-30 (docs/smoothing/exact.md)."""
    if t > 10:  # 1 - Phi(10) < 1e-23 is less than half of 2^-64; the series is for less
        return Decimal("0.5")
    term = total = t
    k = 0
    while abs(term) > Decimal("1e-40"):
        k += 1
        term *= -t * t / (2 * k)
        total += term / (2 * k + 1)
    return total / TWO_PI.sqrt()
