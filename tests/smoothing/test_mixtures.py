"""Bets against the most likely class and against p0: their error probabilities, by enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, stats

from fastrobust.smoothing import mixtures

Floats, Counts = NDArray[np.float64], NDArray[np.int64]
Wealth = Callable[[Counts, Counts, float], Floats]


def beta_product(k: int, m: int) -> Fraction:
    """B(k + 1/2, m - k + 1/2) / B(1/2, 1/2), factor by factor."""
    found = Fraction(1)
    for i in range(k):
        found *= Fraction(2 * i + 1, 2)
    for i in range(m - k):
        found *= Fraction(2 * i + 1, 2)
    return found / math.factorial(m)


@pytest.mark.parametrize(("k", "m"), [(0, 0), (0, 7), (7, 7), (30, 41), (180, 300), (1900, 2000)])
def test_wealth_of_the_kt_mixture_in_whole_fractions(k: int, m: int) -> None:
    p0 = Fraction(13, 16)
    wealth = beta_product(k, m) / (p0**k * (1 - p0) ** (m - k))
    exact = math.log(wealth.numerator) - math.log(wealth.denominator)
    found = float(mixtures.kt(k, m, float(p0)))
    assert exact - 1e-7 <= found <= exact


@pytest.mark.parametrize(("k", "m"), [(0, 0), (3, 9), (9, 9), (28, 41)])
def test_wealth_of_the_half_beta_mixture_by_quadrature(k: int, m: int) -> None:
    p0 = 0.6
    density = stats.beta(0.5, 0.5)
    wealth, _ = integrate.quad(
        lambda u: stats.binom.pmf(k, m, np.sin(u) ** 2) / stats.binom.pmf(k, m, p0) * 2 / np.pi,
        np.arcsin(np.sqrt(p0)), np.pi / 2,
    )  # fmt: skip
    assert float(mixtures.half_beta(k, m, p0)) == pytest.approx(math.log(wealth / density.sf(p0)), abs=1e-6)


@pytest.mark.parametrize("wealth", [mixtures.half_beta, mixtures.kt])
def test_boundaries_are_the_least_counts(wealth: Wealth) -> None:
    looks = np.array([5, 40, 200])
    for p0 in (0.5, 0.9):
        found = mixtures.boundary(wealth, p0, 0.01, looks)
        for n, least in zip(looks, found, strict=True):
            counts = np.arange(n + 1)
            enough = (wealth(counts, np.full(n + 1, n), p0) >= math.log(100)) & (counts >= p0 * n)
            assert enough.sum() == n + 1 - least
            assert enough[least:].all()


def outcomes(blocks: tuple[int, ...], classes: int) -> list[Counts]:
    """All votes of each block."""
    return [
        np.array([v for v in itertools.product(range(size + 1), repeat=classes) if sum(v) == size]) for size in blocks
    ]


def run(blocks: tuple[int, ...], classes: int, alpha: float) -> tuple[Counts, list[Counts]]:
    """The answer of each sequence of votes, were all samples to look on to the end."""
    parts = outcomes(blocks, classes)
    grid = np.array(list(itertools.product(*(range(len(part)) for part in parts))))
    votes = [part[grid[:, b]] for b, part in enumerate(parts)]
    race = mixtures.Elimination(len(grid), classes, alpha)
    stopped = np.full(len(grid), -1)
    for part in votes:
        going = np.nonzero(stopped < 0)[0]
        race.add(going, part[going])
        stopped = np.where(stopped < 0, race.answers(), stopped)
    return stopped, votes


@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.01])
@pytest.mark.parametrize(("blocks", "classes"), [((1, 1, 2, 3, 4, 5), 2), ((2, 3, 4, 5, 6), 2), ((1, 3, 3, 4), 3)])
def test_wrong_predictions_by_enumeration(blocks: tuple[int, ...], classes: int, alpha: float) -> None:
    """Every sequence of votes, weighted with its probability."""
    said, votes = run(blocks, classes, alpha)
    assert (said >= 0).any() or alpha < 0.05
    worst = 0.0
    points = [(0.5, 0.5), (0.501, 0.499), (0.6, 0.4), (0.9, 0.1)]
    if classes == 3:
        points = [(1 / 3, 1 / 3, 1 / 3), (0.34, 0.33, 0.33), (0.5, 0.5, 0.0), (0.4, 0.35, 0.25), (0.5, 0.25, 0.25)]
    for p in points:
        chance = np.prod([stats.multinomial.pmf(part, part.sum(1), p) for part in votes], axis=0)
        assert chance.sum() == pytest.approx(1)
        likely = [c for c in range(classes) if p[c] == max(p)]
        for best in likely:  # of equally likely classes either may be g's: neither is ruled out more often
            wrong = float(chance[(said >= 0) & (said != best)].sum())
            assert wrong <= alpha
            worst = max(worst, wrong)
    if alpha >= 0.05:
        assert worst > 0


def test_simulated_predictions_over_six_classes() -> None:
    """20,000 rows whose two strongest classes are nearly equal."""
    generator, alpha = np.random.default_rng(0), 0.05
    p = np.array([0.301, 0.299, 0.2, 0.1, 0.05, 0.05])
    race, before, going = mixtures.Elimination(20_000, 6, alpha), 0, np.arange(20_000)
    for look in (10, 20, 50, 200):
        race.add(going, generator.multinomial(look - before, p, size=len(going)))
        going, before = going[race.left[going].sum(1) > 1], look
    wrong = int((race.answers() > 0).sum())
    assert 0 < wrong <= stats.binom.isf(1e-4, 20_000, alpha)
