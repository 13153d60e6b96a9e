"""Threat models: which points an adversary may reach. The vocabulary of attacks, bounds and smoothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

__all__ = ["L1", "L2", "NORMS", "Box", "Linf", "Threat", "threat_of"]

End: TypeAlias = "float | Tensor"
Box: TypeAlias = tuple[End, End]

NORMS = ("Linf", "L2", "L1")


def _default_box() -> Box:
    return (0.0, 1.0)


@dataclass(frozen=True)
class Threat:
    """The points x' with ``||x' - x|| <= eps`` and ``lo <= x' <= hi``.

    Args:
        eps: radius of the ball, in the units of x (for images in [0, 1]: fractions of the full range).
        box: ``(lo, hi)``: the valid inputs. Numbers, or tensors of a sample's shape for tabular data.

    Raises:
        ValueError: if eps is negative or NaN, or the box is not a pair with lo <= hi.
    """

    eps: float
    box: Box = field(default_factory=_default_box)
    norm: str = field(default="", init=False)

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.norm not in NORMS:
            raise TypeError("Threat is abstract: use Linf, L2 or L1")
        eps = float(self.eps)
        if not eps >= 0.0 or math.isinf(eps):
            raise ValueError(f"{name}: eps must be a finite number >= 0, got {self.eps!r}")
        object.__setattr__(self, "eps", eps)
        if not (isinstance(self.box, tuple) and len(self.box) == 2):
            raise ValueError(f"{name}: box must be a pair (lo, hi), got {self.box!r}")
        lo, hi = self.box
        ordered = bool((lo <= hi).all()) if isinstance(lo <= hi, Tensor) else lo <= hi  # type: ignore[union-attr]
        if not ordered:
            raise ValueError(f"{name}: box must have lo <= hi, got {self.box!r}")


@dataclass(frozen=True)
class Linf(Threat):
    """Every coordinate moves by at most eps."""

    norm: str = field(default="Linf", init=False)


@dataclass(frozen=True)
class L2(Threat):
    """The Euclidean length of the perturbation is at most eps."""

    norm: str = field(default="L2", init=False)


@dataclass(frozen=True)
class L1(Threat):
    """The absolute values of the perturbation sum to at most eps."""

    norm: str = field(default="L1", init=False)


def threat_of(norm: str, eps: float, box: Box = (0.0, 1.0)) -> Threat:
    """The threat of a norm given by its name. Raises ValueError for a norm that is none of `NORMS`."""
    kinds = {"Linf": Linf, "L2": L2, "L1": L1}
    if norm not in kinds:
        raise ValueError(f"threat_of: norm must be one of {', '.join(NORMS)}, got {norm!r}")
    return kinds[norm](eps, box)
