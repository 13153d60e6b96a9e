"""Gaussian noise in whole steps: its law exactly, its certificates point by point, and what floats are fooled by."""

from __future__ import annotations

import decimal
import math
from bisect import bisect_right
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from fastrobust.ops import _rounding as rounding
from fastrobust.smoothing import Gaussian, IntegerGaussian, Noise, Smooth
from fastrobust.smoothing.grid import grid_points, grid_values
from fastrobust.smoothing.integer import STREAM, _thresholds, steps
from fastrobust.smoothing.words import words64


def law(sigma: float, levels: int) -> dict[int, Fraction]:
    """The probability of each number of steps, as it is drawn."""
    table = [0, *(int(t) + 2**63 for t in _thresholds(sigma, levels)), 2**64]
    middle = (len(table) - 2) // 2
    return {n - middle: Fraction(b - a, 2**64) for n, (a, b) in enumerate(pairwise(table))}


def normal(t: Decimal) -> Decimal:
    """Phi(t) to some 50 digits, by a series of positive terms: another one than the library's."""
    if t < 0:
        return 1 - normal(-t)
    term = total = t
    k = 1
    while term > total * Decimal("1e-60"):
        k += 2
        term *= t * t / k
        total += term
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
    return Decimal("0.5") + total * (-t * t / 2).exp() / (2 * pi).sqrt()


@pytest.mark.parametrize(("sigma", "levels"), [(0.25, 255), (0.07, 100), (0.5, 3), (1.0, 1), (0.001, 255)])
def test_the_law_is_that_of_a_rounded_normal_variable(sigma: float, levels: int) -> None:
    """Every threshold is the nearest whole number; the total variation is within the slack."""
    drawn = law(sigma, levels)
    assert sum(drawn.values()) == 1
    assert all(drawn[n] == drawn[-n] for n in drawn)
    table = [int(t) + 2**63 for t in _thresholds(sigma, levels)]
    assert table == sorted(table)
    with decimal.localcontext(decimal.Context(prec=90)):
        step = 1 / (Decimal(sigma) * levels)
        first = 1 - len(table) // 2
        exact = [normal((first + j - Decimal("0.5")) * step) for j in range(len(table))]
        for t, p in zip(table, exact, strict=True):
            assert abs(Decimal(t) - p * 2**64) <= Decimal("0.5") + Decimal("1e-9")
        outside = normal((first - 1 - Decimal("0.5")) * step)
        assert outside * 2**64 <= Decimal("0.5")  # the first threshold that is left out would have been 0
        ends = [outside, *exact, 1 - outside]
        differences = [
            abs(Decimal(p.numerator) / p.denominator - (b - a))
            for p, a, b in zip(drawn.values(), ends, ends[1:], strict=False)
        ]
        assert sum(differences) / 2 + outside <= Decimal(IntegerGaussian(sigma, levels).slack(1))
    near = np.array([float(p) for p in exact])
    points = (first + np.arange(len(table)) - 0.5) / (sigma * levels)
    np.testing.assert_allclose(near, special.ndtr(points), rtol=1e-12)


def test_words_are_compared_as_whole_numbers() -> None:
    """Each element by Python's integers; parts, order and the images' places change nothing."""
    noise, seed = IntegerGaussian(0.6, 16), 2**63 + 9
    x = torch.randint(0, 17, (3, 1, 3, 5)) / 16
    index = torch.tensor([4, 2**32 - 1, 0])
    image, copy = torch.tensor([2, 0, 1, 1]), torch.tensor([7, 0, 2**32 - 1, 3])
    found = noise.copies(x, image, copy, index, seed)
    table = [int(t) + 2**63 for t in _thresholds(0.6, 16)]
    whole = words64(seed, 15, copy, index[image], STREAM)
    for slot in range(4):
        words = rounding.philox(seed, torch.arange(8), copy[slot], index[image[slot]], STREAM)
        for element in range(15):
            high, low = (int(words[2 * (element % 2) + j][element // 2]) for j in range(2))
            number = high * 2**32 + low
            assert int(whole[slot, element]) == number - 2**63
            drawn = bisect_right(table, number) - len(table) // 2
            k = round(float(x[image[slot]].flatten()[element]) * 16)
            assert float(found[slot].flatten()[element]) == (k + drawn) / 16
    assert torch.equal(noise.copies(x, image[[3, 1]], copy[[3, 1]], index, seed), found[[3, 1]])
    assert torch.equal(noise.copies(x[[1]], torch.tensor([0]), copy[2:3], index[[1]], seed), found[2:3])
    assert noise.copies(x, image[:0], copy[:0], index, seed).shape == (0, 1, 3, 5)
    many = torch.arange(40_000)
    whole = noise.copies(x, many % 3, many, index, 1)
    assert torch.equal(noise.copies(x, many[::997] % 3, many[::997], index, 1), whole[::997])


def test_words_next_to_a_threshold() -> None:
    table = _thresholds(0.25, 255)
    for off in (-1, 0, 1):
        words = (table + off * (table.abs() < 2**62)).contiguous()
        expected = [bisect_right(table.tolist(), word) - len(table) // 2 for word in words.tolist()]
        assert steps(words, table).tolist() == expected


def test_draws_follow_the_law() -> None:
    sigma, levels = 0.5, 4
    slots = torch.arange(4000)
    noise = IntegerGaussian(sigma, levels).copies(torch.zeros(1, 100), 0 * slots, slots, torch.tensor([3]), 12)
    found = (noise * levels).round().long().flatten()
    chances = {n: float(p) for n, p in law(sigma, levels).items()}
    kept = range(-6, 7)
    observed = [int((found == n).sum()) for n in kept]
    expected = [chances[n] * len(found) for n in kept]
    rest = len(found) - sum(expected)
    assert stats.chisquare([*observed, len(found) - sum(observed)], [*expected, rest]).pvalue > 1e-3
    together = (noise[:, 0::2] * noise[:, 1::2]).flatten().double()  # of one block's two words
    assert abs(float(together.mean())) < 4.5 * float(together.std()) / math.sqrt(len(together))


def chances_of(says: Tensor, first: int, points: range, drawn: dict[int, Fraction]) -> list[float]:
    """P(f(k + N) = 1) for each grid point k, where says[j] = f(first + j); rounded down."""
    weights = np.array([float(p) for p in drawn.values()])
    start = min(drawn)
    table = says.numpy().astype(float)
    return [float(weights @ table[k + start - first : k + start - first + len(weights)]) - 1e-12 for k in points]


@pytest.mark.parametrize("seed", range(4))
def test_no_certificate_of_a_classifier_of_grid_points_is_wrong(seed: int) -> None:
    """Exact probabilities of random intervals; every grid point within a radius is looked at."""
    noise, drawn = IntegerGaussian(0.3, 40), law(0.3, 40)
    widest = max(drawn)
    generator = torch.Generator().manual_seed(seed)
    first, points = -widest - 150, range(-150, 151)
    says = torch.zeros(2 * widest + 301, dtype=torch.bool)
    for cut in torch.randint(0, len(says), (60,), generator=generator):
        says[int(cut) :] ^= True
    p = np.array(chances_of(says, first, points, drawn))
    for chance, certified in ((p, p > 0.5), (1 - p - 2e-12, p < 0.5)):
        radius = noise.radius(chance, 1)
        for j, k in enumerate(points):
            near = [i for i, other in enumerate(points) if abs(other - k) / 40 <= radius[j]]
            if radius[j] > 0:
                assert certified[near].all()
    assert (noise.radius(p, 1) > 0.1).any()


def test_radii_of_a_half_line_are_tight() -> None:
    """f rounds to the grid, so its boundary lies half a step before its first point."""
    noise, drawn = IntegerGaussian(0.3, 40), law(0.3, 40)
    says = torch.arange(-2000, 2001) >= 0
    points = range(0, 30)
    radius = noise.radius(np.array(chances_of(says, -2000, points, drawn)), 1)
    for k, r in zip(points, radius, strict=True):
        assert r <= (k + 0.5) / 40
        assert r == pytest.approx((k + 0.5) / 40, rel=1e-5)


@dataclass(frozen=True)
class Ordinary:
    """What published code does: x + sigma * randn in float32."""

    sigma: float
    norm = "L2"

    def radius(self, p: Any, dim: int) -> Any:
        return Gaussian(self.sigma).radius(p, dim)

    def probability(self, radius: float, dim: int) -> float:
        return Gaussian(self.sigma).probability(radius, dim)

    def copies(self, x: Tensor, image: Tensor, copy: Tensor, index: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + int(copy[0]))
        return x[image] + self.sigma * torch.randn(len(image), *x.shape[1:], generator=generator)


class Coarse(nn.Module):
    """Whether a number is a multiple of 2^-24: what a float32 noise of 1 always is, and one of 0 seldom."""

    def forward(self, x: Tensor) -> Tensor:
        whole = x.double() * 2**24
        return torch.cat([(whole == whole.round()), (whole != whole.round())], 1).float()


def test_floats_lie_and_steps_do_not() -> None:
    """An adversarial f in the manner of Voracek and Hein: it reads from a float's last bits where the noise began."""
    assert isinstance(Ordinary(0.3), Noise)
    x = torch.tensor([[1.0], [0.0]])
    floats = Smooth(Coarse(), 2, Ordinary(0.3), seed=5, compile=False).certify(x, 200, 100_000)
    assert floats.prediction.tolist() == [0, 1]
    assert floats.radius[0] > 1  # and g says otherwise at a distance of 1: a false certificate
    noise, drawn = IntegerGaussian(0.3), law(0.3, 255)
    found = Smooth(Coarse(), 2, noise, seed=5, compile=False).certify(x, 200, 100_000)
    assert found.radius[0] < 1
    widest, most = max(drawn), 300
    k = torch.arange(-widest - most, widest + most + 256)
    says = Coarse()(grid_values(k, 255, torch.float32)[:, None]).argmax(1) == 0
    points = range(-most, most + 256)
    p = np.array(chances_of(says, int(k[0]), points, drawn))
    assert p[most + 255] == pytest.approx(0.95, abs=0.04)
    for row, here in enumerate((255, 0)):
        near = [most + j for j in range(-most, most + 256) if abs(j - here) / 255 <= float(found.radius[row])]
        if found.prediction[row] >= 0:
            assert ((p[near] > 0.5) == (found.prediction[row] == 0)).all()


def test_smoothing_takes_it_with_and_without_the_engine() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    x = torch.randint(0, 256, (6, 3, 4)) / 255
    noise = IntegerGaussian(0.25)
    assert isinstance(noise, Noise)
    a, b = (Smooth(model, 2, noise, seed=3, compile=c).certify(x, 100, 2000) for c in (True, False))
    assert torch.equal(a.radius, b.radius)
    weight = model[1].weight.double()
    z = model.double()(x.double()).detach()
    true = (z[:, 1] - z[:, 0]) / (weight[1] - weight[0]).norm()
    sure = a.prediction >= 0
    assert sure.any()
    assert (a.radius <= true.abs() + 0.5 / 255 * math.sqrt(12))[sure].all()
    at = Smooth(model.float(), 2, noise, seed=3).certify_at(x, [0.1, 0.3], n_max=2000)
    assert not (at.certified & (true.abs()[:, None] < torch.tensor([0.09, 0.29]))).any()


def test_radii_and_probabilities_allow_for_the_table() -> None:
    noise, plain = IntegerGaussian(0.25), Gaussian(0.25)
    p = np.array([0.0, 0.4, 0.5, 0.5 + 1e-12, 0.6, 0.99, 1.0])
    for dim in (1, 3072, 150_528):
        slack = noise.slack(dim)
        assert 0 < slack < 1e-10
        assert noise.radius(np.array(0.5 + 0.99 * slack), dim) == 0
        assert noise.radius(np.array(0.5 + 1.01 * slack + 3e-16), dim) > 0
        radius = noise.radius(p, dim)
        assert (radius <= plain.radius(p, dim)).all()
        assert (radius[:3] == 0).all()
        assert np.isfinite(radius).all()
        for r in (0.1, 0.5, 1.0):
            needed = noise.probability(r, dim)
            assert Fraction(needed) >= Fraction(plain.probability(r, dim)) + Fraction(slack)
            assert noise.radius(np.array(needed + 1e-6), dim) >= r
    assert noise.probability(100.0, 1) == 1


def test_two_class_radii_allow_for_the_table_twice() -> None:
    noise, plain, dim = IntegerGaussian(0.5), Gaussian(0.5), 3072
    slack = noise.slack(dim)
    p_a, p_b = np.array([0.5, 0.8, 0.999, 1 - 1e-9, 0.3]), np.array([0.5, 0.1, 0.001, 1e-9, 0.3])
    for among in (1, 3):
        found = noise.radius_between(p_a, p_b, dim, among)
        assert (found <= plain.radius_between(p_a, p_b, dim, among)).all()
        looser = plain.radius_between(np.maximum(p_a - 2 * slack, 0), np.minimum(p_b + 2 * slack, 1), dim, among)
        assert (found >= looser).all()
    assert np.isfinite(noise.radius_between(p_a, p_b, dim)).all()
    assert noise.radius_between(np.array(0.5 + 0.9 * slack), np.array(0.5 - 0.9 * slack), dim) == 0
    assert noise.radius_between(np.array(0.8), np.array(0.1), dim) > 0.5


def test_finer_grids_hold_bytes_too() -> None:
    k = torch.arange(256)
    for x in (k / 255, k * (1 / 255), k.double() / 255):
        assert torch.equal(grid_points("f", x, 255), k)
        assert torch.equal(grid_points("f", x, 255 * 16), 16 * k)
        assert torch.equal(grid_points("f", x, 65535), 257 * k)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, x: IntegerGaussian(0), "sigma must be a finite number > 0, got 0"),
        (lambda m, x: IntegerGaussian(float("inf")), "sigma must be a finite number > 0, got inf"),
        (lambda m, x: IntegerGaussian(0.5, 0), "levels must be an integer in 1 .. 65535, got 0"),
        (lambda m, x: IntegerGaussian(0.5, 2.5), "levels must be an integer in 1 .. 65535, got 2.5"),
        (lambda m, x: IntegerGaussian(1.0, 5000), "sigma \\* levels must be at most 4096, got 5000"),
        (lambda m, x: Smooth(m, 2, IntegerGaussian(0.5)).certify(x + 0.002), "multiples of 1/255, got a value off"),
        (lambda m, x: Smooth(m, 2, IntegerGaussian(0.5)).certify(x / 0), "x must be finite"),
        (lambda m, x: Smooth(m, 3, IntegerGaussian(0.5)).certify(x), "num_classes must be the model's, 2, got 3"),
        (lambda m, x: grid_points("f", x * torch.nan, 255), "f: x must be finite"),
        (lambda m, x: grid_points("f", x + 1e20, 255), "f: x must lie within 1.77e\\+13 of 0, got 1e\\+20"),
        (lambda m, x: grid_points("f", x.half(), 255), "f: x must have dtype float32 or float64, got float16"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call: Any, says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        call(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.full((2, 1, 2, 2), 0.2))
