"""Noises, and the radii that they certify."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from fastrobust import ops

__all__ = ["Gaussian", "Noise", "TwoClass"]

Floats = NDArray[np.float64]

MARGIN = 2.0**-23  # relative, for errors of floating point and the engine's rounding of sigma to float32


@runtime_checkable
class Noise(Protocol):
    """What is added to the input, and what it certifies.

    A noise whose copies are `ops.noisy_copies` with a kind that is added and a number for a scale may say so in an
    attribute `drawn`, (kind, scale): then the engine draws, runs the network and counts in one call.

    Attributes:
        norm: of the certified ball.
    """

    @property
    def norm(self) -> str: ...

    def radius(self, p: Floats, dim: int) -> Floats:
        """Within it g says the same where its class's probability is at least p; 0 for p <= 1/2; rounded down.

        Args:
            dim: elements of an input.
        """
        ...

    def probability(self, radius: float, dim: int) -> float:
        """What the class's probability must exceed for a radius, rounded up."""
        ...

    def copies(self, x: Tensor, image: Tensor, copy: Tensor, index: Tensor, seed: int) -> Tensor:
        """Noisy copies (slots, ...): slot s is copy number copy[s] of x[image[s]].

        Its noise is a function of seed, index[image[s]] and copy[s] alone.
        """
        ...


@runtime_checkable
class TwoClass(Noise, Protocol):
    """A noise that also certifies by bounds on the class and on its rivals."""

    def radius_between(self, p_a: Floats, p_b: Floats, dim: int, among: int = 1) -> Floats:
        """Within it a class of probability >= p_a stays more probable than the least of `among` others.

        Args:
            p_b: most probability that these others have together.
        """
        ...


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
        number = isinstance(self.sigma, (int, float)) and not isinstance(self.sigma, bool)
        if not (number and math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"Gaussian: sigma must be a finite number > 0, got {self.sigma!r}")

    def deviation(self, dim: int) -> float:
        """Of an element: sigma."""
        return self.sigma

    @property
    def drawn(self) -> tuple[str, float]:
        """Kind and scale of the draws of `ops.noisy_copies`, which the engine makes by itself."""
        return "normal", self.sigma

    def radius(self, p: Floats, dim: int) -> Floats:
        """sigma PhiInv(p)."""
        p = np.minimum(np.asarray(p, dtype=np.float64), 1.0)
        return np.where(p > 0.5, self.sigma * special.ndtri(np.maximum(p, 0.5)) * (1 - MARGIN), 0.0)

    def radius_between(self, p_a: Floats, p_b: Floats, dim: int, among: int = 1) -> Floats:
        """The largest r with Phi(PhiInv(p_a) - r / sigma) >= Phi(PhiInv(p_b) + r / sigma) / among; 0 if there is none.

        For one rival sigma / 2 (PhiInv(p_a) - PhiInv(p_b)) (Cohen et al., Theorem 1); Jia et al., ICLR 2020, Theorem 1.
        """
        a, b = (special.ndtri(np.clip(np.asarray(p, dtype=np.float64), 0.0, 1.0)) for p in (p_a, p_b))
        if among == 1:
            with np.errstate(invalid="ignore"):  # of p_a = p_b = 0 or 1, which prove nothing
                unit = (a - b) / 2 - MARGIN * (np.abs(a) + np.abs(b))
        else:
            unit, high = np.zeros(np.shape(a)), np.full(np.shape(a), 64.0)  # by bisection, from below
            for _ in range(60):
                middle = (unit + high) / 2
                holds = special.ndtr(a - middle) * (1 - MARGIN) > special.ndtr(b + middle) / among
                unit, high = np.where(holds, middle, unit), np.where(holds, high, middle)
        return np.where(unit > 0, self.sigma * unit * (1 - MARGIN), 0.0)

    def probability(self, radius: float, dim: int) -> float:
        """Phi(radius / sigma)."""
        return min(1.0, float(special.ndtr(radius / self.sigma)) * (1 + MARGIN))

    def copies(self, x: Tensor, image: Tensor, copy: Tensor, index: Tensor, seed: int) -> Tensor:
        """x + sigma z: the noise that the engine draws."""
        return ops.noisy_copies(x, image, copy, index, seed, *self.drawn)
