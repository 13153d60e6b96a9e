"""What noises of one scale have in common: checks, margins, and probabilities as the inverse of radii."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from typing_extensions import Self

from fastrobust.smoothing.noise import MARGIN, Floats

__all__ = ["Scaled", "log_radius"]


@dataclass(frozen=True)
class Scaled(ABC):
    """Noise scale * z, z of a fixed distribution; its radii are proportional to the scale.

    Attributes:
        scale: lambda of the paper, in the units of the model's input; `deviation` says what that is per element.
        norm: of the certified ball.
    """

    scale: float
    norm: str = field(default="", kw_only=True)

    NORMS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.need("scale", self.scale, lambda v: v > 0, "a finite number > 0")
        if self.norm not in self.NORMS:
            raise ValueError(f"{type(self).__name__}: norm must be {' or '.join(self.NORMS)}, got {self.norm!r}")

    def need(self, name: str, value: Any, good: Any, expected: str) -> None:
        """Raises ValueError where a parameter is no finite number, or none that is good."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not (number and good(value)):
            raise ValueError(f"{type(self).__name__}: {name} must be {expected}, got {value!r}")

    def check_dim(self, dim: int) -> None:
        """Raises ValueError where there is no such noise of so many elements, or no radius."""
        if dim < 1:
            raise ValueError(f"{type(self).__name__}: dim must be an integer >= 1, got {dim!r}")

    @abstractmethod
    def _radius(self, p: Floats, dim: int) -> Floats:
        """At scale 1, for 1/2 < p <= 1; never decreasing in p."""

    @abstractmethod
    def _deviation(self, dim: int) -> float:
        """At scale 1."""

    def radius(self, p: Floats, dim: int) -> Floats:
        """Within it g says the same where its class's probability is at least p; 0 for p <= 1/2; rounded down."""
        self.check_dim(dim)
        p = np.asarray(p, dtype=np.float64)
        proven = p > 0.5
        unit = self._radius(np.where(proven, np.minimum(p, 1.0), 0.75), dim)
        return np.where(proven, self.scale * unit * (1 - MARGIN), 0.0)

    def probability(self, radius: float, dim: int) -> float:
        """The least p with at least this radius, by bisection of `radius` itself; 1 where there is none."""
        low, high = 0.5, 1.0
        if radius <= 0 or not float(self.radius(np.ones(1), dim)[0]) >= radius:
            return low if radius <= 0 else high
        while low < (middle := (low + high) / 2) < high:
            low, high = (low, middle) if float(self.radius(np.array([middle]), dim)[0]) >= radius else (middle, high)
        return high

    def deviation(self, dim: int) -> float:
        """sqrt(E ||noise||_2^2 / dim): the standard deviation of an element, in the units of the input; inf where there
        is none.

        Args:
            dim: elements of an input.
        """
        self.check_dim(dim)
        return self.scale * self._deviation(dim)

    def at_deviation(self, deviation: float, dim: int) -> Self:
        """The same noise with a scale at which its deviation is this one."""
        self.need("deviation", deviation, lambda v: v > 0, "a finite number > 0")
        unit = self.deviation(dim) / self.scale
        if not math.isfinite(unit):
            raise ValueError(f"{type(self).__name__}: its deviation must be finite, got {unit} for {dim} elements")
        return replace(self, scale=deviation / unit)


def log_radius(p: Floats) -> Floats:
    """-log(2 (1 - p)), which is the integral of 1/q from 1 - p to 1/2."""
    with np.errstate(divide="ignore"):
        return -np.log1p(1 - 2 * p)
