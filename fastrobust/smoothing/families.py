"""Exponential families and power laws of a norm ("Randomized Smoothing of All Shapes and Sizes", ICML 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy import special

from fastrobust.smoothing.laws import Exponential, Law, Power
from fastrobust.smoothing.noise import Floats
from fastrobust.smoothing.radial import Family
from fastrobust.smoothing.scaled import log_radius

__all__ = ["Exp1", "Exp2", "ExpInf", "Pow1", "Pow2", "PowInf"]


@dataclass(frozen=True)
class _Exponential(Family):
    """Density ~ ||z||^-j exp(-||z||^k) at scale 1.

    Attributes:
        scale: lambda: z is ||noise|| / scale. In the units of the model's input.
        k: > 0.
        j: 0, or less than d - 1.
    """

    k: float = 1
    j: float = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need("k", self.k, lambda v: v > 0, "a finite number > 0")
        self.need("j", self.j, lambda v: v >= 0, "a finite number >= 0")

    def check_dim(self, dim: int) -> None:
        super().check_dim(dim)
        if self.j and not self.j < dim - 1:
            raise ValueError(f"{type(self).__name__}: j must be 0 or less than dim - 1 = {dim - 1}, got {self.j}")

    def law(self, dim: int) -> Law:
        return Exponential(dim, self.k, self.j)

    def _radius(self, p: Floats, dim: int) -> Floats:
        if self.k == 1 and not self.j and (self.norm == self.SHAPE != "L2" or dim == 1):
            return log_radius(p)  # h = 1
        return super()._radius(p, dim)


@dataclass(frozen=True)
class ExpInf(_Exponential):
    """Density ~ ||z||_inf^-j exp(-||z||_inf^k), z = noise / scale.

    The standard deviation of an element is scale sqrt((d+2)/(3d) Gamma((d-j+2)/k) / Gamma((d-j)/k)).

    Attributes:
        scale: in the units of the model's input.
        k: > 0.
        j: 0, or less than d - 1.
        norm: of the certified ball, "Linf" (the differential method; scale log(1 / (2 (1 - p))) for k = 1, j = 0) or
            "L1" (2 scale d/(d-1) Gamma((d-j)/k) / Gamma((d-j-1)/k) (p - 1/2), and more for p > 1 - 1/(2d)).
    """

    norm: str = field(default="Linf", kw_only=True)

    SHAPE = "Linf"
    NORMS = ("L1", "Linf")


@dataclass(frozen=True)
class Exp2(_Exponential):
    """Density ~ ||z||_2^-j exp(-||z||_2^k), z = noise / scale; certifies L2.

    The standard deviation of an element is scale sqrt(Gamma((d-j+2)/k) / Gamma((d-j)/k) / d): scale / sqrt(2) for the
    normal noise of k = 2, j = 0.

    Attributes:
        scale: in the units of the model's input.
        k: > 0.
        j: 0, or less than d - 1.
    """

    norm: str = field(default="L2", kw_only=True)

    SHAPE = "L2"
    NORMS = ("L2",)

    def _radius(self, p: Floats, dim: int) -> Floats:
        """The differential method; with k = 1, j = 0 it gives (d-1) atanh(1 - 2 BetaInv(1-p; (d-1)/2, (d-1)/2))."""
        if self.k == 2 and not self.j:
            z: Floats = special.ndtri(p)
            return z / math.sqrt(2)
        if self.k == 1 and not self.j and dim > 1:
            # atanh(y), P(|T| <= y) = 2 p - 1, T an element of a direction; or rest = 1 - y^2, P(|T| > y) = 2 (1 - p).
            y = np.sqrt(special.betaincinv(0.5, (dim - 1) / 2, 2 * p - 1))
            rest = special.betaincinv((dim - 1) / 2, 0.5, 2 - 2 * p)
            with np.errstate(divide="ignore"):
                far = np.log1p(np.sqrt(1 - rest)) - np.log(rest) / 2
            found: Floats = np.where(y < 0.5, np.arctanh(np.minimum(y, 0.5)), far)
            return (dim - 1) * found
        return super()._radius(p, dim)


@dataclass(frozen=True)
class Exp1(_Exponential):
    """Density ~ ||z||_1^-j exp(-||z||_1^k), z = noise / scale; certifies L1. Laplace noise with k = 1, j = 0.

    The standard deviation of an element is scale sqrt(2/(d(d+1)) Gamma((d-j+2)/k) / Gamma((d-j)/k)).

    Attributes:
        scale: in the units of the model's input.
        k: > 0.
        j: 0, or less than d - 1.
    """

    norm: str = field(default="L1", kw_only=True)

    SHAPE = "L1"
    NORMS = ("L1",)


@dataclass(frozen=True, kw_only=True)
class _Power(Family):
    """Density ~ (1 + ||z||^k)^-a at scale 1."""

    a: float
    k: float = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need("a", self.a, lambda v: v > 0, "a finite number > 0")
        self.need("k", self.k, lambda v: v > 0, "a finite number > 0")

    def check_dim(self, dim: int) -> None:
        super().check_dim(dim)
        if not self.a > dim / self.k:
            raise ValueError(f"{type(self).__name__}: a must be more than dim / k = {dim / self.k:g}, got {self.a!r}")

    def law(self, dim: int) -> Law:
        return Power(dim, self.k, self.a)


@dataclass(frozen=True, kw_only=True)
class PowInf(_Power):
    """Density ~ (1 + ||z||_inf^k)^-a, z = noise / scale.

    The standard deviation of an element is scale sqrt((d+2)/(3d) B((d+2)/k, a - (d+2)/k) / B(d/k, a - d/k)), B the beta
    function; infinite for a <= (d+2)/k.

    Attributes:
        scale: in the units of the model's input.
        a: more than d/k.
        k: > 0.
        norm: of the certified ball, "Linf" (the differential method) or "L1" (2 scale d/(a-d) (p - 1/2) for k = 1, and
            more for p > 1 - 1/(2d)).
    """

    norm: str = field(default="Linf", kw_only=True)

    SHAPE = "Linf"
    NORMS = ("L1", "Linf")


@dataclass(frozen=True, kw_only=True)
class Pow2(_Power):
    """Density ~ (1 + ||z||_2^k)^-a, z = noise / scale; certifies L2 (the differential method).

    The standard deviation of an element is scale sqrt(B((d+2)/k, a - (d+2)/k) / B(d/k, a - d/k) / d), B the beta
    function; infinite for a <= (d+2)/k.

    Attributes:
        scale: in the units of the model's input.
        a: more than d/k.
        k: > 0.
    """

    norm: str = field(default="L2", kw_only=True)

    SHAPE = "L2"
    NORMS = ("L2",)


@dataclass(frozen=True, kw_only=True)
class Pow1(_Power):
    """Density ~ (1 + ||z||_1^k)^-a, z = noise / scale; certifies L1 (the differential method).

    The standard deviation of an element is scale sqrt(2/(d(d+1)) B((d+2)/k, a - (d+2)/k) / B(d/k, a - d/k)), B the beta
    function; infinite for a <= (d+2)/k.

    Attributes:
        scale: in the units of the model's input.
        a: more than d/k.
        k: > 0.
    """

    norm: str = field(default="L1", kw_only=True)

    SHAPE = "L1"
    NORMS = ("L1",)
