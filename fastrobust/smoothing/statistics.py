"""What counts of votes prove: tests whose probability of a false claim is at most alpha, exactly.

Floating point: scipy's binomial functions have relative errors far below 1e-9, by which every bound here is weakened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

__all__ = ["Sequential", "looks_until", "lower_bound", "sequential", "two_sided"]

Floats = NDArray[np.float64]
MARGIN = 1e-9  # relative, for errors of floating point
NOTHING = 1e-30  # probabilities of single counts that are left out, and given to the false claims
GROWTH, FIRST = 1.15, 100  # of the looks
FUTILE = 1e-3


def lower_bound(count: NDArray[np.int64] | int, n: int, alpha: float) -> Floats:
    """The one-sided lower bound of Clopper and Pearson (Biometrika, 1934) for a probability, at level 1 - alpha.

    P(count >= k) <= alpha wherever the probability is below the bound for k; 0 for k = 0.
    """
    k = np.asarray(count, dtype=np.float64)
    found = special.betaincinv(np.maximum(k, 1), n - k + 1, alpha)
    return np.where(k > 0, found * (1 - MARGIN), 0.0)


def two_sided(first: NDArray[np.int64] | int, second: NDArray[np.int64] | int) -> Floats:
    """The p-value of the exact test that of two classes none is more likely (Hung and Fithian, Ann. Stat. 2019).

    Args:
        first, second: votes of both.
    """
    low = np.minimum(first, second)
    total = np.add(first, second)
    tail: Floats = np.asarray(stats.binom.cdf(low, total, 0.5), dtype=np.float64)
    return np.minimum(1.0, 2 * tail) * (1 + MARGIN)


def looks_until(n_max: int) -> tuple[int, ...]:
    """How many samples there are at each look: 15% more each time, fixed in advance."""
    looks = [min(FIRST, n_max)]
    while looks[-1] < n_max:
        looks.append(min(n_max, int(np.ceil(looks[-1] * GROWTH))))
    return tuple(looks)


@dataclass(frozen=True)
class Sequential:
    """A test of p <= p0 that looks at its count several times (docs/smoothing/statistics.md).

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
    looks: tuple[int, ...]
    upper: tuple[int, ...]
    lower: tuple[int, ...]
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
def sequential(p0: float, alpha: float, looks: tuple[int, ...], floor: tuple[int, ...] | None = None) -> Sequential:
    """The test whose false claims have the probability alpha at most, by exact convolution.

    Half of alpha is spent evenly over the looks, half at the last one. It is given up at look j where a count as low as
    this has a probability of at most FUTILE for all p with which the last look's claim is as likely as not.

    Args:
        floor: counts that `upper` must not be below: those of a smaller p0, so that claims are nested.
    """
    state, spent, upper = _State.start(), 0.0, list[int]()
    for j, n in enumerate(looks):
        state = state.after(n - (looks[j - 1] if j else 0), p0)
        share = 1.0 if j + 1 == len(looks) else 0.5 * (j + 1) / len(looks)
        tails = np.cumsum(state.chance[::-1])  # of the counts from the largest one down
        room = alpha * share * (1 - MARGIN) - spent - 4 * NOTHING * n
        least = state.first + len(tails) - int(np.searchsorted(tails, room, side="right"))
        least = min(max(least, floor[j] if floor else 0), n + 1)
        spent += state.at_least(least) + 4 * NOTHING * n
        upper.append(least)
        state = state.between(0, least)
    likely = min(1.0, upper[-1] / looks[-1])
    lower = [min(int(stats.binom.ppf(FUTILE, n, likely)) - 1, u - 1) for n, u in zip(looks, upper, strict=True)]
    lower[-1] = upper[-1] - 1
    return Sequential(p0, looks, tuple(upper), tuple(lower), spent)


def nested(p0s: Sequence[float], alpha: float, looks: tuple[int, ...]) -> list[Sequential]:
    """Tests for increasing p0, simultaneously at alpha.

    A claim of p > p0 comes no earlier than that of each smaller p0, so all false claims are those of the smallest p0
    that is not exceeded.
    """
    tests = list[Sequential]()
    for p0 in p0s:
        tests.append(sequential(p0, alpha, looks, tests[-1].upper if tests else None))
    return tests
