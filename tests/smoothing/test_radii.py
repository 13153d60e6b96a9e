"""Radii of all noises: published formulas, quadrature of other code's kind, and the worst case itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats
from worst_case import needed, needed_l2, points, shifts

from fastrobust.smoothing import Exp1, Exp2, ExpInf, Gaussian, Laplace, Pow1, Pow2, PowInf, Uniform, UniformBall

P = np.array([0.5001, 0.6, 0.8, 0.95, 0.99, 0.999, 0.99993])
DIM = 3072


def close(found: np.ndarray, expected: np.ndarray, rel: float = 1e-6) -> None:
    """Not above what is expected, and hardly below."""
    assert (found <= expected * (1 + 1e-12)).all(), found / expected
    assert (found >= expected * (1 - rel)).all(), found / expected


@pytest.mark.parametrize("dim", [2, 3, 50, DIM])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_closed_forms(scale: float, dim: int) -> None:
    """As the paper and its authors' code have them."""
    beta = stats.beta
    close(Uniform(scale).radius(P, dim), 2 * scale * (P - 0.5))
    close(Uniform(scale, norm="Linf").radius(P, dim), 2 * scale * (1 - (1.5 - P) ** (1 / dim)))
    close(Laplace(scale).radius(P, dim), -scale * np.log(2 * (1 - P)))
    close(Exp1(scale).radius(P, dim), -scale * np.log(2 * (1 - P)))
    close(ExpInf(scale).radius(P, dim), scale * np.log(0.5 / (1 - P)))
    close(Exp2(scale, k=2).radius(P, dim), scale * stats.norm.ppf(P) / math.sqrt(2))
    half = (dim + 1) / 2
    close(UniformBall(scale).radius(P, dim), scale * (2 - 4 * beta.ppf(0.75 - P / 2, half, half)))
    half = (dim - 1) / 2
    close(Exp2(scale).radius(P, dim), scale * (dim - 1) * np.arctanh(1 - 2 * beta.ppf(1 - P, half, half)))
    few = P[dim * (1 - P) >= 0.5]
    for k, j in ((1, 0), (3, 0), (0.5, 0), (2, 0.5), (1, 0.9)):
        gamma = dim / (dim - 1) * np.exp(math.lgamma((dim - j) / k) - math.lgamma((dim - j - 1) / k))
        close(ExpInf(scale, k=k, j=j, norm="L1").radius(few, dim), 2 * scale * gamma * (few - 0.5))
    for more in (0.5, 4, 100):
        noise = PowInf(scale, a=dim + more, norm="L1")
        close(noise.radius(few, dim), 2 * scale * dim / more * (few - 0.5))


def phi_exponential(p: float, dim: int, k: float) -> float:
    """E of the larger part of +-k r^(k-1), by the gamma distribution."""
    shape = (dim + k - 1) / k
    r = stats.gamma.isf(2 * p, dim / k) if k >= 1 else stats.gamma.ppf(2 * p, dim / k)
    tail = special.gammaincc(shape, r) if k >= 1 else special.gammainc(shape, r)
    return float(tail * k / 2 * np.exp(math.lgamma(shape) - math.lgamma(dim / k)))


def phi_power(p: float, dim: int, a: float) -> float:
    return float(stats.betaprime.cdf(stats.betaprime.ppf(2 * p, dim, a - dim), dim, a + 1 - dim) * (a - dim) / 2)


def phi_signs(p: float, dim: int) -> float:
    """E of the largest part p of a sum of signs."""
    k = np.arange(dim, -1, -1)
    taken = np.clip(p - np.concatenate([[0.0], np.cumsum(stats.binom.pmf(k, dim, 0.5))[:-1]]), 0, None)
    return float(np.sum(np.minimum(taken, stats.binom.pmf(k, dim, 0.5)) * (2 * k - dim)))


@pytest.mark.parametrize("dim", [1, 3, DIM])
def test_tables_against_quadrature(dim: int) -> None:
    """The integral of 1 / Phi, Phi as the authors' code has it, by scipy: below it, and by less than 3e-4 of it."""
    cases = [
        *((Exp1(1, k=k), lambda p, k=k: phi_exponential(p, dim, k)) for k in (0.7, 2, 5)),
        *((ExpInf(1, k=k), lambda p, k=k: phi_exponential(p, dim, k)) for k in (0.7, 1, 4)),
        (PowInf(1, a=dim + 5), lambda p: phi_power(p, dim, dim + 5)),
        (Pow1(1, a=dim + 20), lambda p: phi_power(p, dim, dim + 20)),
    ]
    if dim < 100:
        cases.append((Laplace(1, norm="Linf"), lambda p: phi_signs(p, dim)))
    for noise, phi in cases:
        jumps = np.cumsum(stats.binom.pmf(np.arange(dim), dim, 0.5)) if isinstance(noise, Laplace) else []
        for p in (0.51, 0.7, 0.9, 0.999):
            inside = [v for v in jumps if 1 - p < v < 0.5]
            exact = integrate.quad(lambda q, phi=phi: 1 / phi(q), 1 - p, 0.5, points=inside or None, epsabs=0)[0]
            assert exact * (1 - 3e-4) < float(noise.radius(np.array([p]), dim)[0]) < exact * (1 + 1e-8), (noise, p)


def test_laplace_in_linf_tends_to_the_normal_distribution() -> None:
    p = P[P < 0.995]
    assert Laplace(1, norm="Linf").radius(p, DIM) == pytest.approx(stats.norm.ppf(p) / math.sqrt(DIM), rel=5e-4)


TIGHT = [  # (noise, dimension): the worst shift of the radius leaves exactly 1/2
    (Uniform(0.7), 2),
    (Uniform(0.7, norm="Linf"), 2),
    (Laplace(0.7), 2),
    (UniformBall(0.7), 2),
    (UniformBall(1), 3),
    (ExpInf(0.7), 2),
    (Exp1(0.7), 3),
    (Exp2(0.7, k=2), 3),
    (Exp2(0.7, k=3), 1),
    (Exp1(0.7, k=3), 1),
    (ExpInf(0.7, k=3), 1),
    (ExpInf(0.7, k=3, norm="L1"), 1),
    (Laplace(1, norm="Linf"), 1),
]
LOOSE = [
    (Laplace(0.7, norm="Linf"), 2),
    (ExpInf(1, k=3), 2),
    (ExpInf(1, k=0.5), 2),
    (ExpInf(1, k=2, j=0.5), 3),
    (ExpInf(1, norm="L1"), 2),
    (ExpInf(1, k=3, norm="L1"), 3),
    (ExpInf(1, k=2, j=0.5, norm="L1"), 2),
    (Exp2(1), 2),
    (Exp2(1), 3),
    (Exp2(1, k=4), 3),
    (Exp2(1, k=0.7), 2),
    (Exp2(1, k=2, j=1), 3),
    (Exp1(1, k=3), 3),
    (PowInf(1, a=5), 1),
    (PowInf(1, a=5), 3),
    (PowInf(1, a=5, norm="L1"), 3),
    (Pow2(1, a=5), 3),
    (Pow2(1, a=5, k=2), 2),
    (Pow1(1, a=5, k=2), 3),
    (Pow1(1, a=4), 2),
]
name = lambda v: f"{v}"  # noqa: E731


@pytest.mark.parametrize(("noise", "dim"), TIGHT + LOOSE, ids=name)
def test_no_shift_of_the_radius_takes_the_majority(noise, dim: int) -> None:
    """The worst set of all for shifts of that length, by Neyman and Pearson; 1e-3 is the oracle's error."""
    z, levels = points(noise, dim, 14), np.array([0.6, 0.9, 0.98])
    for p, radius in zip(levels, noise.radius(levels, dim), strict=True):
        assert radius > 0
        for shift in shifts(noise.norm, dim, 3):
            assert needed(noise, z, radius * shift) <= p + 1e-3


@pytest.mark.parametrize(("noise", "dim"), TIGHT, ids=name)
def test_radii_said_to_be_the_best_are(noise, dim: int) -> None:
    """5% beyond them there is a set that has the probability and loses the majority."""
    z, levels = points(noise, dim, 14), np.array([0.6, 0.9, 0.98])
    for p, radius in zip(levels, noise.radius(levels, dim), strict=True):
        corner = shifts(noise.norm, dim, 1)[0]
        assert needed(noise, z, radius * corner) == pytest.approx(p, abs=1e-3)
        assert needed(noise, z, 1.05 * radius * corner) > p


@pytest.mark.parametrize(
    ("noise", "dim", "loss"),
    [
        (Exp2(1), DIM, 2e-4),  # the table of docs/smoothing/noises.md
        (Exp2(1, k=4), DIM, 2e-4),
        (Exp2(2, k=2, j=2048), DIM, 3e-4),
        (Exp2(1, k=2, j=3000), DIM, 5e-3),
        (Exp2(1, k=2, j=3064), DIM, 7e-2),
        (Pow2(1, k=2, a=1636), DIM, 2e-3),
        (Pow2(1, k=2, a=1540), DIM, 5e-2),
        (Exp2(1, k=4), 10, 5e-3),
        (Exp2(1, k=0.7), 40, 2e-2),
        (Pow2(1, a=30), 10, 6e-2),
    ],
    ids=name,
)
def test_radii_in_l2_against_the_level_sets(noise, dim: int, loss: float) -> None:
    """The best radius there is, by quadrature over the norm: ours is below, and by no more than said."""
    for deviations in (0.25, 1.0, 2.0):
        best = deviations * noise.deviation(dim)
        p = needed_l2(noise, dim, best)
        radius = float(noise.radius(np.array([p]), dim)[0])
        assert best * (1 - loss) < radius < best * (1 + 2e-5)


NOISES = [
    Gaussian(0.5), Uniform(0.5), Uniform(2, norm="Linf"), Laplace(0.3), Laplace(0.3, norm="Linf"), UniformBall(3),
    ExpInf(1), ExpInf(1, k=8), ExpInf(1, k=0.5, norm="L1"), ExpInf(1, k=2, j=5),
    Exp2(1), Exp2(1, k=2), Exp2(1, k=3, j=7), Exp1(1), Exp1(1, k=3),
    PowInf(1, a=30), PowInf(1, a=23, norm="L1"), Pow2(1, a=30), Pow2(1, a=26, k=0.9), Pow1(1, a=33),
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(noise=st.sampled_from(NOISES), p=st.floats(0.5, 1 - 1e-9), q=st.floats(0.5, 1 - 1e-9))
def test_radii_and_probabilities_belong_together(noise, p: float, q: float) -> None:
    low, high = sorted((p, q))
    a, b = (float(v) for v in noise.radius(np.array([low, high]), 20))
    assert 0 <= a <= b * (1 + 1e-12)
    if a > 1e-6:
        least = noise.probability(a, 20)
        assert least == pytest.approx(low, abs=1e-6)
        assert float(noise.radius(np.array([least]), 20)[0]) >= a * (1 - 3e-7 if isinstance(noise, Gaussian) else 1)


@pytest.mark.parametrize("noise", NOISES, ids=name)
def test_ends(noise) -> None:
    found = noise.radius(np.array([0.0, 0.3, 0.5, np.nan, np.nextafter(0.5, 1), 1.0]), 20)
    assert (found[:4] == 0).all()
    assert 0 <= found[4] < 1e-12
    assert found[5] > float(noise.radius(np.array([0.999]), 20)[0])
    assert noise.probability(0.0, 20) == pytest.approx(0.5, abs=1e-7)
    assert noise.probability(1e9, 20) == 1.0
    assert noise.radius(np.zeros((0,)), 20).shape == (0,)


def test_radii_scale_with_the_noise() -> None:
    for noise in NOISES[1:]:
        other = noise.at_deviation(3.0, 20)
        assert other.deviation(20) == pytest.approx(3.0)
        factor = other.scale / noise.scale
        assert other.radius(P, 20) == pytest.approx(noise.radius(P, 20) * factor, rel=1e-12)


def test_norm_of_one_dimension() -> None:
    """There all norms are one."""
    for k, j in ((0.8, 0), (1, 0), (3, 0)):
        first = Exp1(1, k=k, j=j).radius(P, 1)
        for other in (Exp2(1, k=k, j=j), ExpInf(1, k=k, j=j), ExpInf(1, k=k, j=j, norm="L1")):
            assert other.radius(P, 1) == pytest.approx(first, rel=3e-4)
    first = Pow1(1, a=3).radius(P, 1)
    for other in (Pow2(1, a=3), PowInf(1, a=3), PowInf(1, a=3, norm="L1")):
        assert other.radius(P, 1) == pytest.approx(first, rel=3e-4)
    assert UniformBall(1).radius(P, 1) == pytest.approx(Uniform(1).radius(P, 1), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Uniform(0), "Uniform: scale must be a finite number > 0, got 0"),
        (lambda: Laplace(-1), "Laplace: scale must be a finite number > 0, got -1"),
        (lambda: UniformBall(math.inf), "UniformBall: scale must be a finite number > 0, got inf"),
        (lambda: Exp2("1"), "Exp2: scale must be a finite number > 0, got '1'"),
        (lambda: Laplace(1, norm="L2"), "Laplace: norm must be L1 or Linf, got 'L2'"),
        (lambda: Pow2(1, a=9, norm="L1"), "Pow2: norm must be L2, got 'L1'"),
        (lambda: ExpInf(1, k=0), "ExpInf: k must be a finite number > 0, got 0"),
        (lambda: Exp1(1, j=-1), "Exp1: j must be a finite number >= 0, got -1"),
        (lambda: PowInf(1, a=0), "PowInf: a must be a finite number > 0, got 0"),
        (lambda: Pow1(1, a=3, k=-2), "Pow1: k must be a finite number > 0, got -2"),
        (lambda: Exp2(1, j=4).radius(P, 5), "Exp2: j must be 0 or less than dim - 1 = 4, got 4"),
        (lambda: Pow2(1, a=5, k=2).probability(1, 10), "Pow2: a must be more than dim / k = 5, got 5"),
        (lambda: ExpInf(1).radius(P, 2**20 + 1), "ExpInf: dim must be at most 1048576, got 1048577"),
        (lambda: Uniform(1).radius(P, 0), "Uniform: dim must be an integer >= 1, got 0"),
        (lambda: Uniform(1).at_deviation(0, 5), "Uniform: deviation must be a finite number > 0, got 0"),
        (lambda: Pow2(1, a=6).at_deviation(1, 5), "Pow2: its deviation must be finite, got inf for 5 elements"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(make, says: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        make()
    assert str(raised.value) == says
