"""Distributions of the norm of noise: exponential families and power laws, at scale 1.

With r the norm, t = r^k has a gamma distribution (density ~ r^-j exp(-r^k)), or t / (1 + t) a beta distribution
(density ~ (1 + r^k)^-a). All their probabilities and moments are incomplete gamma and beta functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import special

from fastrobust.smoothing import differential
from fastrobust.smoothing.noise import Floats

__all__ = ["Exponential", "Law", "Power"]


SHAPE = 4e5  # beyond it scipy's incomplete gamma functions have relative errors above 1e-8


class Law(differential.Law, Protocol):
    def mean_square(self) -> float:
        """E r^2."""
        ...

    def beyond(self) -> str:
        """What of it is beyond floating point, or ""."""
        ...


@dataclass(frozen=True)
class Exponential:
    """r^k of a gamma distribution of shape (dim - j) / k: noise of density ~ r^-j exp(-r^k) in R^dim."""

    dim: int
    k: float
    j: float

    @property
    def shape(self) -> float:
        return (self.dim - self.j) / self.k

    def quantile(self, lower: Floats, upper: Floats) -> Floats:
        a = self.shape
        t: Floats = np.where(lower < upper, special.gammaincinv(a, lower), special.gammainccinv(a, upper))
        with np.errstate(over="ignore"):
            r: Floats = t ** (1 / self.k)
        return r

    def mass(self, r: Floats) -> tuple[Floats, Floats]:
        t = r**self.k
        return special.gammainc(self.shape, t), special.gammaincc(self.shape, t)

    def steepness(self, r: Floats) -> Floats:
        """k r^(k-1) + j / r."""
        with np.errstate(divide="ignore"):
            return self.k * r ** (self.k - 1) + (self.j / r if self.j else 0.0)

    def moment(self, r: Floats) -> tuple[Floats, Floats]:
        t = r**self.k
        below, above = np.zeros_like(t), np.zeros_like(t)
        for power, factor in ((1 - 1 / self.k, self.k), (-1 / self.k, self.j)):  # E t^power, below and above
            if factor:
                whole = factor * special.poch(self.shape, power)
                below += whole * special.gammainc(self.shape + power, t)
                above += whole * special.gammaincc(self.shape + power, t)
        return below, above

    def turn(self) -> float | None:
        return (self.j / (self.k * (self.k - 1))) ** (1 / self.k) if self.k > 1 and self.j else None

    def beyond(self) -> str:
        return f"a shape (d - j) / k above {SHAPE:,.0f}" if self.shape > SHAPE else _overflow(self)

    def mean_square(self) -> float:
        return float(special.poch(self.shape, 2 / self.k))


@dataclass(frozen=True)
class Power:
    """r^k / (1 + r^k) of a beta distribution, dim / k and a - dim / k: noise of density ~ (1 + r^k)^-a in R^dim."""

    dim: int
    k: float
    a: float

    @property
    def shapes(self) -> tuple[float, float]:
        return self.dim / self.k, self.a - self.dim / self.k

    def quantile(self, lower: Floats, upper: Floats) -> Floats:
        p, q = self.shapes
        small = lower < upper
        with np.errstate(divide="ignore", over="ignore"):
            b = np.where(small, special.betaincinv(p, q, lower), special.betainccinv(p, q, upper))
            rest = np.where(small, special.betainccinv(q, p, lower), special.betaincinv(q, p, upper))
            r: Floats = (b / rest) ** (1 / self.k)
        return r

    def _parts(self, r: Floats) -> tuple[Floats, Floats]:
        """t / (1 + t) and 1 / (1 + t), at infinity too."""
        with np.errstate(divide="ignore"):
            t = r**self.k
            return 1 / (1 + 1 / t), 1 / (1 + t)

    def mass(self, r: Floats) -> tuple[Floats, Floats]:
        return self._masses(r, 0.0)

    def _masses(self, r: Floats, moved: float) -> tuple[Floats, Floats]:
        (p, q), (b, rest) = self.shapes, self._parts(r)
        p, q = p + (1 - 1 / self.k) * moved, q + moved / self.k
        return special.betainc(p, q, b), special.betainc(q, p, rest)

    def steepness(self, r: Floats) -> Floats:
        """a k r^(k-1) / (1 + r^k)."""
        b, rest = self._parts(r)
        with np.errstate(divide="ignore"):
            h: Floats = self.a * self.k * b ** (1 - 1 / self.k) * rest ** (1 / self.k)
        return h

    def moment(self, r: Floats) -> tuple[Floats, Floats]:
        p, q = self.shapes
        below, above = self._masses(r, 1.0)
        whole = self.k * special.poch(p, 1 - 1 / self.k) * special.poch(q, 1 / self.k)
        return whole * below, whole * above

    def turn(self) -> float | None:
        return (self.k - 1) ** (1 / self.k) if self.k > 1 else None

    def beyond(self) -> str:
        return _overflow(self)

    def mean_square(self) -> float:
        p, q = self.shapes
        if q * self.k <= 2:
            return float("inf")
        return float(special.poch(p, 2 / self.k) * special.poch(q, -2 / self.k))


def _overflow(law: differential.Law) -> str:
    mean, top = law.moment(np.zeros(1))[1][0], law.quantile(np.ones(1), np.full(1, differential.LEAST))[0]
    return "" if 0 < mean < np.inf and top < np.inf else "norms that overflow"
