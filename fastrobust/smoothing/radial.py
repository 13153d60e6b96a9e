"""Noise whose density is a function of its norm ("Randomized Smoothing of All Shapes and Sizes", ICML 2020).

A copy's noise is a direction on the unit sphere of the norm, from `ops.noisy_copies`, times a norm r of a distribution
that the family says. r is drawn by the inverse of its distribution function, in float64, of a uniform number of 64 bits
from a stream of its own: a function of seed, index and copy alone. On a GPU this waits for the device once a batch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from scipy import special
from torch import Tensor

from fastrobust import ops
from fastrobust.ops import _rounding as rounding
from fastrobust.smoothing import differential
from fastrobust.smoothing.laws import Law
from fastrobust.smoothing.noise import Floats
from fastrobust.smoothing.scaled import Scaled

__all__ = ["Family", "Radial", "UniformBall"]

RADIUS = 4  # stream of Philox, kNoiseRadius in csrc/common/philox.h
LARGEST = 2**20  # elements; up to it tables were compared with integrals of many digits
DIRECTION = {"L1": "laplace", "L2": "normal", "Linf": "uniform"}  # what is uniform on a sphere, divided by its norm


@dataclass(frozen=True)
class Radial(Scaled):
    """Noise of density ~ psi(||z||), ||.|| the norm of SHAPE."""

    SHAPE: ClassVar[str] = ""

    @abstractmethod
    def norms(self, lower: Floats, upper: Floats, dim: int) -> Floats:
        """Norms of noise at scale 1, below which there is the probability `lower`, above which there is `upper`."""

    @abstractmethod
    def _mean_square(self, dim: int) -> float:
        """E ||z||^2."""

    def _deviation(self, dim: int) -> float:
        # E v_i^2 of a direction v: 1 / d in L2; in L1 v is of Dirichlet's distribution but for signs; in Linf one
        # element is +-1 and the others are uniform.
        each = {"L1": 2 / (dim * (dim + 1)), "L2": 1 / dim, "Linf": (dim + 2) / (3 * dim)}[self.SHAPE]
        return math.sqrt(self._mean_square(dim) * each)

    def copies(self, x: Tensor, image: Tensor, copy: Tensor, index: Tensor, seed: int) -> Tensor:
        """x + r v, r = `radii`, v uniform on the unit sphere of the family's norm."""
        r = self.radii(copy, index[image], seed, x.shape[1:].numel())
        return ops.noisy_copies(x, image, copy, index, seed, DIRECTION[self.SHAPE], r, sphere=self.SHAPE)

    def radii(self, copy: Tensor, index: Tensor, seed: int, dim: int) -> Tensor:
        """Norms of the noise of these copies of these samples: (slots,) float64."""
        self.check_dim(dim)
        high, low, _, _ = rounding.philox(seed, torch.zeros_like(copy), copy, index, RADIUS)
        lower, upper = (_uniform(a, b).cpu().numpy() for a, b in ((high, low), (2**32 - 1 - high, 2**32 - 1 - low)))
        r = self.scale * self.norms(lower, upper, dim)
        return torch.from_numpy(np.asarray(r, dtype=np.float64)).to(copy.device)


def _uniform(high: Tensor, low: Tensor) -> Tensor:
    """64 bits as float64 in (0, 1), relatively precise near 0."""
    return (high.double() + rounding.uniform(low)) * 2.0**-32


@dataclass(frozen=True)
class UniformBall(Radial):
    """Noise uniform in the L2 ball of radius `scale` (Yang et al., ICML 2020).

    The standard deviation of an element is scale / sqrt(d + 2). Certifies L2, with the best radius that can be had.
    """

    norm: str = field(default="L2", kw_only=True)

    SHAPE = "L2"
    NORMS = ("L2",)

    def _radius(self, p: Floats, dim: int) -> Floats:
        """2 - 4 BetaInv(3/4 - p/2; (d+1)/2, (d+1)/2): 2 y with P(|T| <= y) = p - 1/2, T an element of the noise.

        What a shift of length r takes from p is what the ball loses when it is cut with itself shifted: the part
        between two planes at the distance r / 2 from its centre.
        """
        y2: Floats = special.betaincinv(0.5, (dim + 1) / 2, p - 0.5)
        return 2 * np.sqrt(y2)

    def norms(self, lower: Floats, upper: Floats, dim: int) -> Floats:
        return np.exp(np.where(lower < upper, np.log(lower), np.log1p(-np.minimum(upper, 0.5))) / dim)

    def _mean_square(self, dim: int) -> float:
        return dim / (dim + 2)


@dataclass(frozen=True)
class Family(Radial):
    """A family whose norm has a `Law`."""

    def check_dim(self, dim: int) -> None:
        super().check_dim(dim)
        if dim > LARGEST:
            raise ValueError(f"{type(self).__name__}: dim must be at most {LARGEST}, got {dim}")

    @abstractmethod
    def law(self, dim: int) -> Law:
        """Of the norm, at scale 1."""

    def norms(self, lower: Floats, upper: Floats, dim: int) -> Floats:
        return self.law(dim).quantile(lower, upper)

    def _mean_square(self, dim: int) -> float:
        return self.law(dim).mean_square()

    def _radius(self, p: Floats, dim: int) -> Floats:
        """The differential method, with h = -d/dr log psi. In the family's own norm, other than L2, u . grad ||z|| is a
        sign for a corner u of the ball; in L2 it is an element of a direction.

        A cube in L1: u . grad ||z|| is 0 but where the shifted element is the largest one, so that G is +h or -h with
        the probability 1 / 2d each: Phi(p) is E h / 2d down to p = 1 / 2d, and below it that of Linf for d p, over d.
        """
        law = self.law(dim)
        if beyond := law.beyond():
            raise ValueError(f"{type(self).__name__}: of {dim} elements has {beyond}: no radius can be computed")
        if self.SHAPE == "L2":
            return _of_directions(law, dim).radius(p)
        signs = _of_signs(law)
        if self.norm == self.SHAPE:
            return signs.radius(p)
        all_h = float(law.moment(np.zeros(1))[1][0])
        far = np.minimum(dim * (1 - p), 0.5)
        return 2 / all_h * (dim / 2 - np.maximum(dim * (1 - p), 0.5)) + signs.radius(1 - far)


@lru_cache(maxsize=64)
def _of_signs(law: Law) -> differential.Lines:
    return differential.both_signs(differential.atoms_of(law))


@lru_cache(maxsize=64)
def _of_directions(law: Law, dim: int) -> differential.Lines:
    return differential.directions(differential.atoms_of(law), dim)
