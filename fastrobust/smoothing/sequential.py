"""Tests that look at their count several times, and claim falsely with a probability of at most alpha.

Proofs: docs/smoothing/statistics.md. Floating point: as in `statistics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fastrobust.smoothing import mixtures
from fastrobust.smoothing.statistics import MARGIN

__all__ = ["TESTS", "Sequential", "looks_until", "nested", "sequential"]

Floats = NDArray[np.float64]
Bounds = tuple[int, ...]
NOTHING = 1e-30  # probabilities of single counts that are left out, and given to the false claims
EARLY = 0.8  # of alpha, spent before the last look
FUTILE = 0.3  # of tests may be given up where the test of all samples at once claims as likely as not
TESTS = ("exact", "half_beta", "kt", "union")


def looks_until(n_max: int, first: int = 100, growth: float = 1.15) -> Bounds:
    """How many samples there are at each look: 15% more each time, fixed in advance."""
    looks = [min(first, n_max)]
    while looks[-1] < n_max:
        looks.append(min(n_max, int(np.ceil(looks[-1] * growth))))
    return tuple(looks)


@dataclass(frozen=True)
class Sequential:
    """A test of p <= p0 that looks at its count several times.

    At look j the claim p > p0 is made where the count is at least `upper[j]`, and the test is given up where it is at
    most `lower[j]`. Without giving up, a false claim has the probability `spent`; giving up only lowers it.

    Attributes:
        p0: the probability that is to be exceeded.
        looks: samples at each look.
        upper: the least counts for the claim; looks[j] + 1 where none suffices.
        lower: the largest counts at which to give up; -1 where there are none.
        spent: the probability of a false claim at p0, and the most of all p <= p0.
    """

    p0: float
    looks: Bounds
    upper: Bounds
    lower: Bounds
    spent: float

    @property
    def possible(self) -> bool:
        """Whether any count leads to the claim."""
        return any(u <= n for u, n in zip(self.upper, self.looks, strict=True))

    def outcome(self, p: float) -> tuple[float, float]:
        """The probability of the claim, and the expected number of samples, where votes have the probability p."""
        claim, samples, state = 0.0, 0.0, _State.start()
        for j, n in enumerate(self.looks):
            before = self.looks[j - 1] if j else 0
            samples += (n - before) * state.mass()
            state = state.after(n - before, p)
            claim += state.at_least(self.upper[j])
            state = state.between(self.lower[j] + 1, self.upper[j])
        return claim, samples


class _State:
    """The probabilities of the counts first, first + 1, ... of tests that go on."""

    def __init__(self, first: int, chance: Floats) -> None:
        self.first, self.chance = first, chance

    @classmethod
    def start(cls) -> _State:
        return cls(0, np.ones(1))

    def mass(self) -> float:
        return float(self.chance.sum())

    def after(self, draws: int, p: float) -> _State:
        """After so many draws more."""
        if not len(self.chance):
            return self
        low, high = stats.binom.ppf(NOTHING, draws, p), stats.binom.isf(NOTHING, draws, p)
        counts = np.arange(max(0, int(low) - 1), min(draws, int(high) + 1) + 1)
        return _State(self.first + int(counts[0]), np.convolve(self.chance, stats.binom.pmf(counts, draws, p)))

    def at_least(self, count: int) -> float:
        return float(self.chance[max(0, count - self.first) :].sum())

    def between(self, low: int, high: int) -> _State:
        """low .. high - 1."""
        low = max(low, self.first)
        return _State(low, self.chance[low - self.first : max(0, high - self.first)])


@lru_cache(maxsize=256)
def sequential(p0: float, alpha: float, looks: Bounds, floor: Bounds | None = None, test: str = "exact") -> Sequential:
    """A test of p <= p0 at these looks.

    Args:
        floor: counts that `upper` must not be below: those of a smaller p0, so that claims are nested.
        test: "exact": counts whose probabilities, by exact convolution, add up to alpha: EARLY of it evenly over the
            looks, the rest at the last. "half_beta", "kt": the wealth of a mixture (`mixtures`). "union": the share
            5 / ((j + 5) (j + 6)) of alpha at look j = 0, 1, ... (Voracek, NeurIPS 2024).
    """
    if test == "exact":
        return _finish(p0, alpha, looks, _exact(p0, alpha, looks, floor))
    sizes = np.asarray(looks)
    if test == "union":
        shares = [5 * alpha * (1 - MARGIN) / ((j + 5) * (j + 6)) for j in range(len(looks))]
        found = stats.binom.isf(shares, sizes, p0).astype(np.int64) + 1
    else:
        wealth = {"half_beta": mixtures.half_beta, "kt": mixtures.kt}[test]
        found = mixtures.boundary(wealth, p0, alpha, sizes)
    least = np.maximum(found, floor) if floor else found
    return _finish(p0, alpha, looks, tuple(np.minimum(least, sizes + 1).tolist()))


def nested(p0s: Sequence[float], alpha: float, looks: Bounds, test: str = "exact") -> list[Sequential]:
    """Tests for increasing p0, simultaneously at alpha.

    A claim of p > p0 comes no earlier than that of each smaller p0, so all false claims are those of the smallest p0
    that is not exceeded.
    """
    tests = list[Sequential]()
    for p0 in p0s:
        tests.append(sequential(p0, alpha, looks, tests[-1].upper if tests else None, test))
    return tests


def _exact(p0: float, alpha: float, looks: Bounds, floor: Bounds | None) -> Bounds:
    state, spent, upper = _State.start(), 0.0, list[int]()
    for j, n in enumerate(looks):
        state = state.after(n - (looks[j - 1] if j else 0), p0)
        share = 1.0 if j + 1 == len(looks) else EARLY * (j + 1) / len(looks)
        tails = np.cumsum(state.chance[::-1])  # of the counts from the largest one down
        room = alpha * share * (1 - MARGIN) - spent - 4 * NOTHING * n
        least = state.first + len(tails) - int(np.searchsorted(tails, room, side="right"))
        least = min(max(least, floor[j] if floor else 0), n + 1)
        spent += state.at_least(least) + 4 * NOTHING * n
        upper.append(least)
        state = state.between(0, least)
    return tuple(upper)


def _finish(p0: float, alpha: float, looks: Bounds, upper: Bounds) -> Sequential:
    """With the probability of a false claim, and the counts at which to give up.

    Let p be such that the test with all samples at once claims as likely as not. At p, tests are given up with a
    probability of at most FUTILE, which grows with the cube of the look's number; for all larger p with a smaller one.
    """
    error, hope, lower = _State.start(), _State.start(), list[int]()
    spent, lost = 0.0, 0.0
    likely = min(1.0, (float(stats.binom.isf(alpha, looks[-1], p0)) + 1) / looks[-1])
    for j, n in enumerate(looks):
        draws = n - (looks[j - 1] if j else 0)
        error, hope = error.after(draws, p0), hope.after(draws, likely)
        spent += error.at_least(upper[j]) + 4 * NOTHING * n
        sums = np.cumsum(hope.chance)
        dropped = int(np.searchsorted(sums, FUTILE * ((j + 1) / len(looks)) ** 3 - lost, side="right"))
        least = min(hope.first + dropped, upper[j])  # to go on
        lost += float(sums[dropped - 1]) if dropped else 0.0
        lower.append(upper[j] - 1 if j + 1 == len(looks) else least - 1)
        error, hope = error.between(0, upper[j]), hope.between(least, upper[j])
    return Sequential(p0, looks, upper, tuple(lower), spent)
