"""Error probabilities, computed exactly; against enumeration, simulation and published figures."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fastrobust.smoothing import sequential, statistics
from fastrobust.smoothing.noise import Gaussian

ALPHAS = (0.05, 0.001, 1e-6)
LOST = 0.05  # of claims near p0, by giving up


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [1, 2, 17, 300])
def test_clopper_pearson_covers(n: int, alpha: float) -> None:
    """For each k the bound is the p at which counts of k and more have the probability alpha; so none is wrong more
    often, whatever p."""
    bounds = statistics.lower_bound(np.arange(n + 1), n, alpha)
    assert bounds[0] == 0
    assert (np.diff(bounds) > 0).all()
    tails = stats.binom.sf(np.arange(n), n, bounds[1:])
    assert (tails <= alpha).all()
    assert (tails >= alpha * (1 - 1e-5)).all()  # and no looser than that
    for p in (0.01, 0.3, 0.5, 0.9, 0.999):
        wrong = stats.binom.pmf(np.arange(n + 1), n, p)[bounds > p].sum()
        assert wrong <= alpha


@pytest.mark.parametrize("alpha", ALPHAS)
def test_upper_bounds_cover(alpha: float) -> None:
    n = 60
    bounds = statistics.upper_bound(np.arange(n + 1), n, alpha)
    assert bounds[-1] == 1
    tails = stats.binom.cdf(np.arange(n), n, bounds[:-1])
    assert (tails <= alpha).all()
    assert (tails >= alpha * (1 - 1e-5)).all()


def multinomial(n: int, p: tuple[float, ...]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All votes, and their probabilities."""
    votes = np.array([v for v in product(range(n + 1), repeat=len(p)) if sum(v) == n])
    return votes, np.asarray(stats.multinomial.pmf(votes, n, p))


@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.001])
@pytest.mark.parametrize(
    "p", [(0.3, 0.3, 0.2, 0.2), (0.25, 0.25, 0.25, 0.25), (0.1, 0.8, 0.05, 0.05), (0.4, 0.3, 0.3, 0)]
)
def test_bounds_on_rivals_cover_without_correction(p: tuple[float, ...], alpha: float) -> None:
    """By enumeration: the true probability of any s classes but 0 and those that a guess excludes."""
    n = 14
    votes, chance = multinomial(n, p)
    own = np.zeros(len(votes), dtype=np.int64)
    for guess, excluded in (((0, 3, 2, 1), 1), ((9, 0, 0, 1), 3)):
        for k in (1, 2, 3):
            found = statistics.strongest(votes, own, np.tile(guess, (len(votes), 1)), k)
            for s in range(1, k + 1):
                rest = [c for c in (1, 2, 3) if c != excluded or k == s]  # the strongest of the guess is left out
                if k - s == 2:
                    rest = [c for c in rest if c != (2 if excluded == 1 else 1)]
                true = sum(sorted(p[c] for c in rest)[-s:])
                wrong = chance[statistics.upper_bound(found[s - 1], n, alpha) < true * (1 - 1e-12)].sum()
                assert wrong <= alpha


def test_two_sided_is_the_binomial_test() -> None:
    for first in range(12):
        for second in range(12):
            expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
            assert statistics.two_sided(first, second) == pytest.approx(expected, rel=1e-8)
            assert statistics.two_sided(first, second) >= expected * (1 - 1e-12)


def test_largest_radii_are_those_of_the_literature() -> None:
    for n, radius in ((1_000, 2.46), (10_000, 3.20), (100_000, 3.81)):
        assert Gaussian(1.0).radius(statistics.lower_bound(n, n, 0.001), 1) == pytest.approx(radius, abs=0.006)


def exact_error(upper: tuple[int, ...], looks: tuple[int, ...], p: Fraction) -> Fraction:
    """The probability that a boundary is reached, by whole fractions, draw by draw."""
    state, crossed, before = {0: Fraction(1)}, Fraction(0), 0
    for look, bound in zip(looks, upper, strict=True):
        for _ in range(look - before):
            after: dict[int, Fraction] = {}
            for count, chance in state.items():
                after[count] = after.get(count, Fraction(0)) + chance * (1 - p)
                after[count + 1] = after.get(count + 1, Fraction(0)) + chance * p
            state = after
        crossed += sum((chance for count, chance in state.items() if count >= bound), Fraction(0))
        state, before = {count: chance for count, chance in state.items() if count < bound}, look
    return crossed


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("p0", [0.5, 0.75, 0.97])
def test_false_claims_of_a_sequential_test_in_whole_fractions(p0: float, alpha: float) -> None:
    looks = (20, 40, 60, 90)
    test = sequential.sequential(p0, alpha, looks)
    error = exact_error(test.upper, looks, Fraction(p0))
    assert error <= Fraction(alpha)
    assert float(error) == pytest.approx(test.spent, rel=1e-9, abs=1e-20)
    assert exact_error(test.upper, looks, Fraction(p0) * Fraction(99, 100)) <= error
    eager = (*test.upper[:-1], test.upper[-1] - 1)  # one count less at the last look would be too many
    assert exact_error(eager, looks, Fraction(p0)) > Fraction(alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("rule", sequential.TESTS)
def test_no_rule_claims_falsely_more_often_than_alpha(rule: str, alpha: float) -> None:
    """At full length, for p at p0 and below; without giving up, which can only lower it."""
    looks = sequential.looks_until(100_000)
    assert looks[0] == 100
    assert looks[-1] == 100_000
    for p0 in (0.5, 0.98):
        test = sequential.sequential(p0, alpha, looks, None, rule)
        bare = sequential.Sequential(p0, looks, test.upper, (-1,) * len(looks), test.spent)
        for p in (p0, p0 * 0.999):
            assert bare.outcome(p)[0] <= alpha
            assert test.outcome(p)[0] <= bare.outcome(p)[0] * (1 + 1e-9)
        assert bare.outcome(p0)[0] == pytest.approx(test.spent, rel=1e-6)
        assert test.spent > (0.9 if rule == "exact" else 0.02) * alpha


@pytest.mark.parametrize("rule", sequential.TESTS)
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_false_claims_of_every_rule_in_whole_fractions(rule: str, alpha: float) -> None:
    looks = (10, 20, 40, 60)
    for p0 in (0.5, 0.8):
        test = sequential.sequential(p0, alpha, looks, None, rule)
        error = exact_error(test.upper, looks, Fraction(p0))
        assert error <= Fraction(alpha)
        assert float(error) == pytest.approx(test.spent, rel=1e-9, abs=1e-20)


def test_the_exact_test_needs_the_fewest_samples() -> None:
    looks = sequential.looks_until(20_000)
    for p0, p in ((0.5, 0.55), (0.8, 0.83), (0.977, 0.99)):
        exact, *others = (
            sequential.sequential(p0, 0.001, looks, None, rule).outcome(p)[1] for rule in sequential.TESTS
        )
        assert all(exact < other for other in others)


def test_giving_up_loses_no_more_claims_than_stated() -> None:
    looks = sequential.looks_until(20_000)
    for p0 in (0.5, 0.84, 0.98):
        test = sequential.sequential(p0, 0.001, looks)
        bare = sequential.Sequential(p0, looks, test.upper, (-1,) * len(looks), test.spent)
        for p in ((stats.binom.isf(0.001, looks[-1], p0) + 1) / looks[-1], p0 + (1 - p0) / 5, p0 + (1 - p0) / 2):
            assert bare.outcome(p)[0] - test.outcome(p)[0] <= sequential.FUTILE


def test_expected_samples_match_simulation() -> None:
    looks = sequential.looks_until(20_000)
    test = sequential.sequential(0.7, 0.001, looks)
    generator = np.random.default_rng(0)
    for p in (0.68, 0.705, 0.72, 0.8):
        runs = 100_000
        counts, going = np.zeros(runs, int), np.ones(runs, bool)
        samples, claims, before = np.zeros(runs), np.zeros(runs, bool), 0
        for look, up, down in zip(looks, test.upper, test.lower, strict=True):
            counts[going] += generator.binomial(look - before, p, going.sum())
            samples[going] += look - before
            claims |= going & (counts >= up)
            going &= (counts < up) & (counts > down)
            before = look
        assert not going.any()
        claim, expected = test.outcome(p)
        assert expected == pytest.approx(samples.mean(), rel=0.01)
        assert claims.mean() == pytest.approx(claim, abs=4 * math.sqrt(max(claim * (1 - claim), 1e-5) / runs))


def test_few_samples_far_from_p0_and_nearly_the_power_of_a_fixed_number_near_it() -> None:
    looks, p0 = sequential.looks_until(100_000), Gaussian(0.5).probability(0.5, 1)
    test = sequential.sequential(p0, 0.001, looks)
    for p, most in ((0.5, 150), (0.7, 400), (0.95, 300), (0.99, 200)):
        assert test.outcome(p)[1] < most, p
    needed = stats.binom.isf(0.001, 75_000, p0) + 1  # of a fixed number a quarter smaller
    for p in np.linspace(p0 + 0.001, p0 + 0.01, 10):
        assert test.outcome(p)[0] > stats.binom.sf(needed - 1, 75_000, p) - LOST


def test_claims_of_larger_radii_come_no_earlier() -> None:
    looks = sequential.looks_until(10_000)
    tests = sequential.nested([0.5, 0.5001, 0.6, 0.601, 0.9, 0.99999], 0.001, looks)
    for a, b in pairwise(tests):
        assert all(x <= y for x, y in zip(a.upper, b.upper, strict=True))
        assert b.spent <= 0.001
    assert tests[-1].upper[-1] == 10_001  # no count proves 0.99999 with so few samples
