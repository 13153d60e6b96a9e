"""Radii by the differential method of Yang et al. ("Randomized Smoothing of All Shapes and Sizes", ICML 2020).

Let q be the noise's density and u a shift of norm 1. While x moves along u, the probability of a class falls at a speed
of at most Phi(p) = the most that G = -d/du log q adds up to over a set of probability p. So the class keeps 1/2
over a way of

    R = integral of dp / Phi(p) from 1 - p_A to 1/2.

Phi is the lower envelope of lines, Phi(p) = min over c of c p + E(G - c)^+, and any of them is an upper bound of it. So
a table is a list of lines, over each of which the integral is a logarithm: it is never too large, whatever the lines.
Where G is not discrete it is replaced by a discrete variable that is larger in the convex order, which only raises
every E(G - c)^+: in a cell where G's factor h runs from a to b, by a and b with the cell's probability and mean.
No quadrature is left whose error would have to be estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fastrobust.smoothing.noise import Floats

__all__ = ["Atoms", "Law", "Lines", "atoms_of", "both_signs", "directions", "discrete", "excess_of_direction"]

LEAST = 1e-18  # probability of the cells at both ends
CELLS = 600  # on either side of the median
NODES = 500  # lines for directions in L2


@dataclass(frozen=True)
class Lines:
    """An upper bound of Phi on 0 .. 1/2: slope[i] p + offset[i] up to p = end[i], where line i + 1 begins."""

    slope: Floats
    offset: Floats
    end: Floats

    def __post_init__(self) -> None:
        end = np.maximum.accumulate(np.clip(self.end, 0.0, 0.5))
        end[-1] = 0.5
        object.__setattr__(self, "end", end)

    @cached_property
    def _whole(self) -> Floats:
        """Of each line, the integral over all that come after it."""
        later = self._part(np.arange(1, len(self.end)), self.end[:-1], self.end[1:])
        return np.append(np.cumsum(later[::-1])[::-1], 0.0)

    def radius(self, p: Floats) -> Floats:
        """The integral of 1 / bound from 1 - p to 1/2, for 1/2 <= p <= 1."""
        line = np.minimum(np.searchsorted(self.end, 1 - p, side="right"), len(self.end) - 1)
        return self._part(line, 1 - p, self.end[line]) + self._whole[line]

    def _part(self, line: NDArray[np.intp], a: Floats, b: Floats) -> Floats:
        c, m = self.slope[line], self.offset[line]
        with np.errstate(divide="ignore", invalid="ignore"):
            way = np.where(b > a, (b - a) / (c * a + m), 0.0)
            z = c * way
            return np.where((z > 0) & np.isfinite(z), way * np.log1p(z) / z, way)  # log1p(z) / c, for c = 0 too


@dataclass(frozen=True)
class Atoms:
    """A discrete variable >= 0: values from the largest down, and their probabilities.

    Attributes:
        beyond: E of what its largest part exceeds the first value by (whose probability is counted there).
    """

    value: Floats
    chance: Floats
    beyond: float


class Law(Protocol):
    """Of the norm r of noise at scale 1."""

    def quantile(self, lower: Floats, upper: Floats) -> Floats:
        """r below which there is the probability `lower`, above which there is `upper` = 1 - lower."""
        ...

    def mass(self, r: Floats) -> tuple[Floats, Floats]:
        """Probabilities below and above r."""
        ...

    def steepness(self, r: Floats) -> Floats:
        """h(r) = -d/dr log density, >= 0, at 0 and infinity too."""
        ...

    def moment(self, r: Floats) -> tuple[Floats, Floats]:
        """E h below and above r."""
        ...

    def turn(self) -> float | None:
        """Where h goes from falling to rising or back, if anywhere."""
        ...

    def __hash__(self) -> int: ...


def atoms_of(law: Law) -> Atoms:
    """A discrete variable above h(r) in the convex order."""
    level = np.geomspace(LEAST, 0.5, CELLS)
    r = np.concatenate([[0.0], law.quantile(level, 1 - level), law.quantile(1 - level, level)[-2::-1], [np.inf]])
    turn = law.turn()
    r = np.unique(r if turn is None else np.append(r, turn))
    h = law.steepness(r)
    chance, mean = (_of_cells(*law.mass(r)), _of_cells(*law.moment(r)))
    low, high = np.minimum(h[:-1], h[1:]), np.maximum(h[:-1], h[1:])
    infinite = np.isinf(high)  # first or last: all at the finite end, and what is above it apart
    beyond = float(np.sum(np.maximum(mean - low * chance, 0.0), where=infinite))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(np.nan_to_num((mean / chance - low) / (high - low)), 0.0, 1.0)
    share[infinite] = 0.0
    value, place = np.unique(np.concatenate([low, np.where(infinite, low, high)]), return_inverse=True)
    weight: Floats = np.bincount(place, np.concatenate([chance * (1 - share), chance * share])).astype(np.float64)
    return Atoms(value[::-1], weight[::-1], beyond)


def _of_cells(below: Floats, above: Floats) -> Floats:
    """Differences of a measure's values at the ends, from the side where they are small."""
    return np.maximum(np.where(below[1:] < above[1:], below[1:] - below[:-1], above[:-1] - above[1:]), 0.0)


def both_signs(atoms: Atoms) -> Lines:
    """For G = +h or -h, either with probability 1/2."""
    return discrete(atoms.value, atoms.chance / 2, atoms.beyond / 2)


def discrete(value: Floats, chance: Floats, beyond: float = 0.0) -> Lines:
    """For a discrete G: its values >= 0 from the largest down, their probabilities, and `Atoms.beyond`."""
    end = np.cumsum(chance)
    return Lines(value, beyond + np.concatenate([[0.0], np.cumsum(end[:-1] * -np.diff(value))]), end)


def directions(atoms: Atoms, dim: int) -> Lines:
    """For G = h T, T an element of a direction that is uniform on the sphere of R^dim.

    E(h T - c)^+ = E h M(c / h) is convex in h, so that the atoms' is an upper bound.
    """
    h, w = atoms.value[atoms.value > 0], atoms.chance[atoms.value > 0]
    touch = float(excess_of_direction(np.zeros(1), dim)[0])  # M(0), the slope of h M(c / h) at infinity
    unit = float(h @ w) * touch
    top = unit
    while top < h[0] and np.sum(w * h * excess_of_direction(top / h, dim)) > LEAST * unit:
        top *= 2
    slope = unit * np.sinh(np.linspace(np.arcsinh(min(top, h[0]) / unit), 0.0, NODES))
    offset = np.array([np.sum(w * h * excess_of_direction(c / h, dim)) for c in slope]) + atoms.beyond * touch
    end = np.diff(offset) / -np.diff(slope)
    return Lines(slope, offset, np.append(end, 0.5))


def excess_of_direction(y: Floats, dim: int) -> Floats:
    """M(y) = E(T - y)^+ for y >= 0: the density of T is proportional to (1 - t^2)^((dim - 3) / 2)."""
    if dim == 1:
        return np.maximum(1 - y, 0.0) / 2
    rest, b = np.maximum(1 - y * y, 0.0), (dim - 1) / 2
    factor = special.poch(b, 0.5) / np.sqrt(np.pi)
    above: Floats = special.betainc(b, 0.5, rest) / 2
    tail: Floats = np.maximum(factor * rest**b / (dim - 1) - y * above, 0.0)
    return tail
