"""Samples of all noises against their distributions, and smoothed classifiers whose probabilities are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn
from worst_case import DIRECTIONS, ORDER, norm_at, points

from fastrobust.ops import _rounding as rounding
from fastrobust.smoothing import (
    Exp1,
    Exp2,
    ExpInf,
    Gaussian,
    Laplace,
    Noise,
    Pow1,
    Pow2,
    PowInf,
    Smooth,
    Uniform,
    UniformBall,
)
from fastrobust.smoothing.radial import RADIUS

RADIAL = [
    UniformBall(2.0), ExpInf(0.5), ExpInf(0.5, k=3), Exp2(0.5), Exp2(0.1, k=0.7), Exp1(0.5, k=2),
    PowInf(2.0, a=3090), Pow2(2.0, a=3080), Pow2(2.0, a=1560, k=2), Pow1(0.5, a=3100),
]  # fmt: skip
ALL = [*RADIAL, Uniform(0.4), Uniform(0.4, norm="Linf"), Laplace(0.3), Laplace(0.3, norm="Linf"), ExpInf(1, norm="L1")]
name = lambda v: f"{v}"  # noqa: E731


def drawn(noise: Noise, dim: int, count: int, seed: int = 5) -> np.ndarray:
    """Noise of `count` copies of two images in turns."""
    slots = torch.arange(count)
    x = torch.zeros(2, dim, dtype=torch.float64)
    return noise.copies(x, slots % 2, slots // 2, torch.tensor([3, 2**32 - 1]), seed).numpy()


@pytest.mark.parametrize("dim", [1, 4, 3072])
@pytest.mark.parametrize("noise", RADIAL, ids=name)
def test_norms(noise, dim: int) -> None:
    """Kolmogorov and Smirnov's test of 20,000 norms against scipy's distribution; few are alike."""
    slots = torch.arange(20_000)
    r = noise.radii(slots, slots % 7, 11, dim).numpy() / noise.scale
    kind = type(noise).__name__
    if kind == "UniformBall":
        cdf = r**dim
    elif kind.startswith("Exp"):
        cdf = stats.gamma.cdf(r**noise.k, (dim - noise.j) / noise.k)
    else:
        cdf = stats.betaprime.cdf(r**noise.k, dim / noise.k, noise.a - dim / noise.k)
    assert stats.kstest(cdf, "uniform").pvalue > 1e-4
    assert len(np.unique(r)) > 19_990
    x = noise.copies(torch.zeros(1, dim, dtype=torch.float64), slots[:50] * 0, slots[:50], torch.tensor([4]), 11)
    again = noise.radii(slots[:50], torch.full((50,), 4), 11, dim)
    assert torch.linalg.vector_norm(x, ord=ORDER[noise.SHAPE], dim=1).numpy() == pytest.approx(again.numpy(), rel=1e-9)


def test_norms_at_the_ends_of_the_uniform_numbers() -> None:
    """2^-65 from either end: the norm is the distribution's, not 0 and not infinite."""
    end = np.array([2.0**-65])
    for noise in (Exp2(1), Exp2(1, k=3), ExpInf(1, k=0.5), Pow2(1, a=60), Pow1(1, a=60, k=0.9), UniformBall(1)):
        low, high = (float(noise.norms(*pair, 50)[0]) for pair in ((end, 1 - end), (1 - end, end)))
        assert 0 < low < high < np.inf
        kind = type(noise).__name__
        if kind.startswith("Exp"):
            law = stats.gamma(50 / noise.k)
            assert law.logcdf(low**noise.k) == pytest.approx(np.log(end[0]), rel=1e-9)
            assert law.logsf(high**noise.k) == pytest.approx(np.log(end[0]), rel=1e-9)
        elif kind.startswith("Pow"):
            law = stats.betaprime(50 / noise.k, noise.a - 50 / noise.k)
            assert law.logcdf(low**noise.k) == pytest.approx(np.log(end[0]), rel=1e-6)
    assert float(UniformBall(1).norms(end, 1 - end, 50)[0]) == pytest.approx(2.0 ** (-65 / 50))


def test_norms_have_a_stream_of_their_own() -> None:
    """The four words that the stream holds, by Philox itself; ids and copies of 32 bits."""
    copy, index, seed = torch.tensor([0, 5, 2**32 - 1]), torch.tensor([2**32 - 1, 0, 9]), 2**63 + 1
    words = rounding.philox(seed, torch.zeros(3, dtype=torch.int64), copy, index, RADIUS)
    u = (words[0].double() * 2**32 + words[1].double() + 0.5) * 2.0**-64
    assert UniformBall(3).radii(copy, index, seed, 7).numpy() == pytest.approx(3 * u.numpy() ** (1 / 7), rel=1e-12)
    assert RADIUS not in (1, 2, 3)  # those of csrc/common/philox.h before it


@pytest.mark.parametrize("noise", ALL, ids=name)
def test_deviations(noise) -> None:
    """Of samples, for an element; 1 and 3072 elements. Tolerance: five standard errors, by batches."""
    for dim, count in ((1, 20_000), (3072, 600)):
        squares = (drawn(noise, dim, count) ** 2).mean(1)
        error = squares.std() / np.sqrt(count)
        assert abs(squares.mean() - noise.deviation(dim) ** 2) < 5 * error + 1e-12


@pytest.mark.parametrize("dim", [2, 3, 12])
@pytest.mark.parametrize(
    "noise", [Exp1(1, k=2), Exp2(1, k=3), ExpInf(1, k=2), UniformBall(1), PowInf(1, a=20)], ids=name
)
def test_elements_and_directions(noise, dim: int) -> None:
    """One element's distribution against Sobol points of the same law; signs and places are alike and independent."""
    z = drawn(noise, dim, 20_000)
    other = points(noise, dim, 16)
    for element in (0, dim - 1):
        assert stats.ks_2samp(z[:, element], other[:, element]).pvalue > 1e-4
    r = np.linalg.norm(z, ord=ORDER[noise.SHAPE], axis=1)
    v = z / r[:, None]
    assert np.abs(v.mean(0)).max() < 5 * v.std() / np.sqrt(len(v))
    products = (v[:, :-1] * v[:, 1:]).mean(0)
    assert np.abs(products).max() < 5 * v.var() / np.sqrt(len(v))
    assert abs(stats.spearmanr(r, np.abs(v[:, 0]))[0]) < 5 / np.sqrt(len(v))  # norm and direction are independent
    largest = np.bincount(np.abs(v).argmax(1), minlength=dim)
    assert stats.chisquare(largest).pvalue > 1e-4


def test_elements_of_independent_noise() -> None:
    for noise, law in ((Uniform(0.4), stats.uniform(-0.4, 0.8)), (Laplace(0.3), stats.laplace(0, 0.3))):
        assert stats.kstest(drawn(noise, 11, 3000).ravel(), law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("noise", ALL, ids=name)
def test_copies_depend_on_seed_index_and_copy_alone(noise) -> None:
    x, index = torch.rand(3, 2, 4, 5), torch.tensor([9, 0, 2**32 - 1])
    image, copy = torch.tensor([0, 1, 2, 2, 0]), torch.tensor([4, 4, 0, 2**32 - 1, 3])
    whole = noise.copies(x, image, copy, index, 8)
    assert whole.shape == (5, 2, 4, 5)
    assert whole.dtype == x.dtype
    back = noise.copies(x, image.flip(0), copy.flip(0), index, 8).flip(0)
    assert torch.equal(back, whole)
    alone = noise.copies(x[2:], torch.tensor([0]), copy[3:4], index[2:], 8)
    assert torch.equal(alone[0], whole[3])
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(noise.copies(last, image, copy, index, 8), whole)
    assert not torch.equal(noise.copies(x, image, copy, index, 9), whole)
    for a, b in pairwise(whole - x[image]):
        assert (a != b).any()


class Halfspace(nn.Module):
    """Class 1 where w . x > 0."""

    def __init__(self, w: np.ndarray) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(w))

    def forward(self, x: Tensor) -> Tensor:
        said = x.flatten(1) @ self.w
        return torch.stack([torch.zeros_like(said), said], 1)


DUAL = {"L1": np.inf, "L2": 2, "Linf": 1}
SMALL = [
    Gaussian(0.5), Uniform(1), Uniform(1, norm="Linf"), Laplace(0.5), Laplace(0.5, norm="Linf"), UniformBall(1.5),
    ExpInf(0.4), ExpInf(1, k=3), ExpInf(0.4, norm="L1"), Exp2(0.4), Exp2(0.7, k=2), Exp2(1, k=2, j=1), Exp1(0.4),
    Exp1(0.7, k=2), PowInf(1, a=6), PowInf(1, a=6, norm="L1"), Pow2(1, a=6), Pow2(1, a=3, k=2), Pow1(1, a=7),
]  # fmt: skip


@pytest.mark.parametrize("noise", SMALL, ids=name)
def test_no_radius_exceeds_the_distance_to_a_halfspace(noise) -> None:
    """Its probability by 2^16 Sobol points (error below 2e-3), its distance by the dual norm: 60 of random slopes."""
    z, generator = points(noise, 3, 16), np.random.default_rng(2)
    best = 0.0
    for case in range(60):
        w = generator.normal(size=3) if case % 3 else (np.eye(3)[0] if noise.norm != "Linf" else np.ones(3))
        distance = generator.uniform(0.02, 1.0)
        margin = distance * np.linalg.norm(w, ord=DUAL[noise.norm])
        p = float((z @ w > -margin).mean())
        radius = float(noise.radius(np.array([p - 2e-3]), 3)[0])
        assert radius <= distance
        best = max(best, radius / distance)
    assert best > 0.5  # and not because nothing is certified


def marginal(noise, distance: float) -> float:
    """P(an element > -distance), by quadrature over the norm."""
    u = (np.arange(200_000) + 0.5) / 200_000
    r = noise.scale * norm_at(noise, u, 6)
    y = np.minimum(distance / r, 1)
    if noise.SHAPE == "L2":  # y^2 of beta's distribution
        inside = special.betainc(0.5, 2.5, y * y)
    elif noise.SHAPE == "L1":  # |v| of beta's distribution
        inside = special.betainc(1, 5, y)
    else:  # 1 with the probability 1/6, else uniform
        inside = np.where(y >= 1, 1.0, 5 / 6 * y)
    return float(0.5 + inside.mean() / 2)


@pytest.mark.parametrize(
    "noise",
    [
        Uniform(1.0), Laplace(0.5), UniformBall(1.5), Exp1(0.4), Exp1(0.8, k=2), ExpInf(0.2, norm="L1"),
        ExpInf(1.2, k=4, norm="L1"), Exp2(0.3), Exp2(0.9, k=3), Exp2(0.9, k=2, j=2), PowInf(1, a=12, norm="L1"),
        Pow2(1.5, a=12), Pow1(2, a=12),
    ],
    ids=name,
)  # fmt: skip
def test_smoothed_halfspaces_from_end_to_end(noise) -> None:
    """A halfspace across one element: its probability and its distance are known."""
    w = np.zeros(6)
    w[2] = 2.0
    distance = 0.35
    x = torch.zeros(3, 1, 2, 3, dtype=torch.float64)
    x.view(3, 6)[:, 2] = torch.tensor([distance, -distance, 0.0])
    laws = {"Uniform": stats.uniform(-1, 2), "Laplace": stats.laplace(0, 0.5)}
    law = laws.get(type(noise).__name__)
    p = float(law.cdf(distance)) if law else marginal(noise, distance)
    smooth = Smooth(Halfspace(w), 2, noise, seed=7, box=None)
    found = smooth.certify(x, 100, 20_000, 0.001)
    assert found.prediction.tolist() == [1, 0, -1]
    tends = float(noise.radius(np.array([p]), 6)[0])
    assert tends <= distance * (1 + 1e-6)
    less = float(noise.radius(np.array([p - 0.02]), 6)[0])
    assert less < float(found.radius[:2].min())
    assert float(found.radius[:2].max()) <= tends
    at = smooth.certify_at(x, [less, 1.001 * distance], n_max=20_000)
    assert at.certified.tolist() == [[True, False], [True, False], [False, False]]
    assert smooth.predict(x, 500).tolist() == [1, 0, -1]


@pytest.mark.parametrize("noise", [Uniform(0.4), Laplace(0.3), ExpInf(0.3), Exp2(0.1), Pow1(0.5, a=40)], ids=name)
def test_the_engine_votes_as_the_model(noise) -> None:
    """But for near ties."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(4, 3, 4)
    ours, plain = (Smooth(model, 3, noise, compile=c).sampler.votes(x, 500, 2**63 + 5, first=3) for c in (True, False))
    assert (ours.sum(1) == 500).all()
    assert int((ours - plain).abs().sum()) <= 2


def test_all_noises_keep_to_the_protocol() -> None:
    for noise in [*ALL, *SMALL]:
        assert isinstance(noise, Noise)
        assert noise.norm in ("L1", "L2", "Linf")
        assert hash(noise) == hash(noise)
    assert set(DIRECTIONS) == set(ORDER)


@pytest.mark.parametrize(
    ("noise", "says"),
    [
        (ExpInf(1.0, k=0.01), "norms that overflow"),
        (ExpInf(1.0, k=0.01, norm="L1"), "norms that overflow"),
        (Exp2(1.0, k=0.01), "norms that overflow"),
        (Exp1(1.0, k=0.007), "shape .* above 400,000"),
    ],
    ids=name,
)
def test_what_floating_point_cannot_say_has_no_radius(noise, says: str) -> None:
    with pytest.raises(ValueError, match=f"of 3072 elements has .*{says}: no radius can be computed"):
        noise.radius(np.array([0.6]), 3072)


def test_moments_of_heavy_exponents_are_exact() -> None:
    """2 d / (a - d) (p - 1/2), whatever the size of a: differences of log-gamma functions lose five digits here."""
    for a in (1e2, 1e6, 1e9, 1e11):
        noise = PowInf(1.0, a=3072 + a, norm="L1")
        assert float(noise.radius(np.array([0.9]), 3072)[0]) == pytest.approx(2 * 3072 / a * 0.4, rel=1.3e-7)
        assert float(noise.radius(np.array([0.9]), 3072)[0]) < 2 * 3072 / a * 0.4


def test_too_few_elements_are_named_when_noise_is_drawn() -> None:
    smooth = Smooth(Halfspace(np.ones(6)), 2, Exp2(1, j=9))
    with pytest.raises(ValueError, match="Exp2: j must be 0 or less than dim - 1 = 5, got 9"):
        smooth.predict(torch.zeros(1, 6, dtype=torch.float64), 100)
    with pytest.raises(ValueError, match="Pow1: a must be more than dim / k = 6, got 3"):
        Pow1(1, a=3).copies(torch.zeros(1, 6), torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), 1)
