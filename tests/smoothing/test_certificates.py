"""Two-class and top-k certificates, sequential predictions, rules of `certify_at`, averages, boxes."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fastrobust.smoothing import (
    Gaussian,
    Noise,
    Smooth,
    TwoClass,
    Uniform,
    average_radius,
    certified_accuracy,
    statistics,
)  # fmt: skip
from fastrobust.smoothing.certificate import Certificate
from fastrobust.smoothing.sequential import TESTS
from fastrobust.smoothing.smooth import _between

SIGMA = 0.5


class Bands(nn.Module):
    """Says 0 for x_0 > cut_0, else 1 for x_0 > cut_1, ...: probabilities and radii along x_0 are known."""

    def __init__(self, *cuts: float) -> None:
        super().__init__()
        self.register_buffer("cuts", torch.tensor([*cuts, -torch.inf]))

    def forward(self, x: Tensor) -> Tensor:
        over: Tensor = x.flatten(1)[:, :1] > self.cuts
        return over * torch.arange(len(self.cuts), 0, -1)


def bands(*cuts: float, **kwargs: Any) -> Smooth:
    return Smooth(Bands(*cuts), len(cuts) + 1, Gaussian(SIGMA), **({"seed": 5, "box": None, "compile": False} | kwargs))


X = torch.tensor([[0.0, 0.0]])


def test_two_class_radii_of_a_linear_classifier_tend_to_its_distance() -> None:
    smooth = bands(-0.3)  # P(0) = Phi(0.6)
    found, plain = (smooth.certify(X, n=20_000, runner_up=both) for both in (True, False))
    assert found.prediction.item() == 0
    assert 0.27 < float(found.radius) <= 0.3
    assert 0 <= float(plain.radius - found.radius) < 0.003  # alpha / 2 in place of alpha


def test_two_class_radii_where_the_rest_is_shared() -> None:
    """Classes of 0.45, 0.3, 0.25: a class below 1/2 is certified, as wide as Neyman and Pearson allow, not wider."""
    cuts = [float(stats.norm.ppf(q)) * SIGMA for q in (0.55, 0.25)]
    smooth = bands(*cuts)
    found, plain = (smooth.certify(X, n=20_000, runner_up=both) for both in (True, False))
    assert plain.prediction.item() == -1
    assert found.prediction.item() == 0
    best = SIGMA / 2 * (stats.norm.ppf(0.45) - stats.norm.ppf(0.3))
    assert best - 0.03 < float(found.radius) <= best


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_radii(k: int) -> None:
    """Never beyond the distance at which the class leaves the k most probable ones, along x_0."""
    cuts = [float(stats.norm.ppf(q)) * SIGMA for q in (0.7, 0.4, 0.15)]  # 0.3, 0.3, 0.25, 0.15
    smooth, y = bands(*cuts), torch.tensor([0])
    found = smooth.certify_top_k(X, y, k, n=20_000)
    steps = np.linspace(0, 2, 20_001)
    above = [1 - stats.norm.cdf((c + steps) / SIGMA) for c in cuts]  # P(x_0 - step > cut)
    p = np.stack([above[0], above[1] - above[0], above[2] - above[1], 1 - above[2]])
    leaves = steps[np.argmax((p > p[0]).sum(0) >= k)]
    assert float(found.radius) <= leaves + 1e-4
    assert (float(found.radius) > 0) == (k > 1)  # two classes share the first place
    assert found.prediction.item() == (0 if k > 1 else -1)


@pytest.mark.parametrize("k", [1, 2])
def test_simulated_certificates_are_wrong_as_rarely_as_promised(k: int) -> None:
    """20,000 draws of votes: radii beyond that of the true probabilities."""
    generator, alpha, n, noise = np.random.default_rng(1), 0.05, 500, Gaussian(1.0)
    p = np.array([0.5, 0.15, 0.15, 0.1, 0.1])
    counts, guess = (generator.multinomial(size, p, size=20_000) for size in (n, 50))
    own = np.zeros(len(counts), dtype=np.int64)
    found = _between(noise, counts[:, 0], statistics.strongest(counts, own, guess, k), n, alpha, 1)
    true = max(float(noise.radius_between(p[:1], np.sort(p[1:])[-k:][:s].sum(keepdims=True), 1, s)[0]) for s in (1, k))
    wrong = int((found > true * (1 + 1e-6)).sum())
    assert wrong <= stats.binom.isf(1e-4, len(counts), alpha)
    assert (found > 0).mean() > 0.99


def test_top_1_is_the_two_class_certificate() -> None:
    x = torch.tensor([[0.0, 0.0], [0.4, 0.0], [-0.35, 0.0]])
    smooth = bands(-0.1, -0.6)
    two = smooth.certify(x, n=20_000, runner_up=True)
    assert (two.prediction >= 0).all()
    one = smooth.certify_top_k(x, two.prediction, 1, n=20_000)
    assert torch.equal(one.radius, two.radius)
    wider = smooth.certify_top_k(x, two.prediction, 2, n=20_000)
    assert (wider.radius > one.radius).all()


def test_radii_among_several_rivals_by_their_definition() -> None:
    noise, a, b = Gaussian(2.0), np.array([0.5, 0.3, 0.9]), np.array([0.4, 0.5, 0.1])
    assert isinstance(noise, TwoClass)
    assert noise.radius_between(a, b, 1) == pytest.approx([0.2533471, 0, 2.5631031], abs=1e-5)
    for among in (2, 5):
        r = noise.radius_between(a, b, 1, among)
        gap = stats.norm.cdf(stats.norm.ppf(a) - r / 2) - stats.norm.cdf(stats.norm.ppf(b) + r / 2) / among
        assert (gap >= 0).all()
        assert (gap < 1e-5).all()
    assert noise.radius_between(np.array([0.0]), np.array([0.0]), 1) == 0
    assert noise.radius_between(np.array([0.2]), np.array([1.0]), 1, 2) == 0
    assert noise.radius_between(np.array([0.9]), np.array([1.0]), 1, 2) > 0


def test_sequential_predictions() -> None:
    x = torch.tensor([[1.2, 0.0], [0.1, 0.0], [-1.8, 0.0], [-0.5, 0.0]])
    smooth = bands(0.0, -1.0)  # the last in the middle of class 1
    found = smooth.predict_sequential(x, n_max=2000)
    assert found.prediction.tolist() == [0, 0, 2, 1]
    assert (found.samples[[0, 2]] <= 60).all()
    assert found.samples[0] < found.samples[1] <= 2000
    assert found.seed == 5
    assert not found.fresh
    unsure = smooth.predict_sequential(torch.zeros(1, 2), n_max=200)
    assert unsure.prediction.tolist() == [-1]
    assert unsure.samples.tolist() == [200]
    again = smooth.predict_sequential(x[1:2], n_max=2000, index=torch.tensor([1]))
    assert again.samples.item() == found.samples[1]
    assert smooth.predict_sequential(x[:0]).prediction.shape == (0,)


@pytest.mark.parametrize("rule", TESTS)
def test_every_rule_certifies(rule: str) -> None:
    x = torch.tensor([[0.6, 0.0], [0.1, 0.0], [0.35, 0.0]])
    found = bands(0.0).certify_at(x, [0.2, 0.5], n_max=20_000, test=rule)
    assert found.certified.tolist() == [[True, True], [False, False], [True, False]]


@pytest.mark.parametrize("rule", TESTS)
def test_radii_that_no_probability_proves_are_not_certified(rule: str) -> None:
    for noise in (Gaussian(0.25), Uniform(0.25)):
        smooth = Smooth(Bands(-1.0), 2, noise, seed=1, box=None, compile=False)
        found = smooth.certify_at(X, [0.05, 10.0], n_max=1000, test=rule)
        assert found.certified.tolist() == [[True, False]]


def test_averages_over_samples() -> None:
    found = Certificate(
        torch.tensor([0, 1, -1, 2]), torch.tensor([0.5, 0.25, 0.0, 0.0]).double(), torch.zeros(4, 0, dtype=torch.bool),
        torch.full((4,), 1100), 0, True,
    )  # fmt: skip
    y = torch.tensor([0, 0, 1, 2])
    assert average_radius(found, y) == 0.125
    assert certified_accuracy(found, y, [0, 0.5, 0.6]).tolist() == [0.25, 0.25, 0.0]
    assert certified_accuracy(found, torch.tensor([0, 1, 1, 2]), 0.25).tolist() == [0.5]
    with pytest.raises(ValueError, match="radii must be finite numbers >= 0"):
        certified_accuracy(found, y, [-1])
    with pytest.raises(ValueError, match=r"average_radius: y must have shape \(4,\), got \(3,\)"):
        average_radius(found, y[:3])


def test_the_average_radius_grows_with_n() -> None:
    always = bands(-50.0)
    few, many = (average_radius(always.certify(X, n=n), torch.tensor([0])) for n in (100, 1000))
    assert few == pytest.approx(SIGMA * stats.norm.ppf(0.001 ** (1 / 100)), rel=1e-6)
    assert many == pytest.approx(SIGMA * stats.norm.ppf(0.001 ** (1 / 1000)), rel=1e-6)


def test_progress_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = torch.tensor([[0.3, 0.0], [0.7, 0.0], [-0.6, 0.0]]), torch.tensor([0, 0, 1])
    for call in (
        lambda s: s.certify(x, n=40_000).radius,
        lambda s: s.predict(x),
        lambda s: s.certify_at(x, 0.2, n_max=1000).samples,
        lambda s: s.predict_sequential(x).samples,
        lambda s: s.certify_top_k(x, y, 1, n=500).radius,
    ):
        shown, quiet = call(bands(0.0, progress=True)), call(bands(0.0))
        assert torch.equal(shown, quiet)
        assert "3/3" in capsys.readouterr().err


def test_units_that_do_not_fit_are_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"x has values in \[0, 255\], outside the box 0.0 .. 1.0"):
        bands(0.0, box=(0.0, 1.0)).predict(torch.tensor([[0.0, 255.0]]))
    with pytest.warns(UserWarning, match=r"sigma = 0.5 exceeds the width of the box 0.0 .. 0.4"):
        bands(0.0, box=(0.0, 0.4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Smooth(Bands(0.5), 2, Gaussian(1.0)).predict(torch.tensor([[0.0, 1.0]]))
        bands(0.0, box=(0.0, 255.0)).predict(torch.tensor([[0.0, 255.0]]))


def test_clipping_only_where_asked() -> None:
    """P(x_0 > 1.1) is 0 once clipped to 0 .. 1."""
    x = torch.tensor([[0.9, 0.5]])
    assert bands(1.1, box=(0.0, 1.0), clip=True).sampler.votes(x, 500, 0).tolist() == [[0, 500]]
    assert 100 < int(bands(1.1, box=(0.0, 1.0)).sampler.votes(x, 500, 0)[0, 0]) < 250


class OneClass:
    """A noise without two-class radii."""

    norm = "L2"

    def __init__(self) -> None:
        plain: Noise = Gaussian(1.0)
        self.radius, self.probability, self.copies = plain.radius, plain.probability, plain.copies


def one_class() -> Smooth:
    return Smooth(Bands(0.0), 2, OneClass(), box=None)


Y = torch.tensor([0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: s.certify(X, n=9), "certify: n = 9 samples cannot certify anything at alpha = 0.001"),
        (lambda s: s.certify(X, n=10, runner_up=True), "certify: n = 10 samples cannot certify anything"),
        (lambda s: s.certify_top_k(X, Y, 1, n=3), "certify_top_k: n = 3 samples cannot certify anything"),
        (lambda s: s.predict(X, n=10), "predict: n = 10 samples cannot prove anything"),
        (lambda s: s.predict_sequential(X, n_max=15), "predict_sequential: n_max = 15 samples cannot prove anything"),
        (lambda s: s.certify_at(X, 0.1, test="best"), "test must be one of exact, half_beta, kt, union, got 'best'"),
        (lambda s: s.certify_top_k(X, Y, 2), "k must be in 1 .. num_classes - 1 = 1, got 2"),
        (lambda s: s.certify_top_k(X, Y + 2, 1), "y must be in 0 .. 1"),
        (lambda s: s.certify_top_k(X, Y.float(), 1), "y must have dtype int64"),
        (lambda s: s.predict(X, alpha=1), "alpha must be between 0 and 1, got 1"),
        (lambda s: s.predict_sequential(X, alpha=math.nan), "alpha must be between 0 and 1, got nan"),
        (lambda s: s.certify(X, index=Y + 0.5), "index must have dtype int64"),
        (lambda s: s.predict(torch.zeros(3)), r"x must have shape \(batch, ...\), got \(3,\)"),
        (lambda s: bands(0.0, clip=True), "clip=True needs a box, got None"),
        (lambda s: bands(0.0, box=1.0), "box must be a pair"),
        (lambda s: one_class().certify(X, runner_up=True), "runner_up needs a noise that"),
        (lambda s: one_class().certify_top_k(X, Y, 1), "certify_top_k needs a noise that"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call: Any, says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        call(bands(0.0))


def test_ten_votes_are_enough_to_certify() -> None:
    assert float(bands(-50.0).certify(X, n=10).radius) > 0
    assert bands(-50.0).predict(X, n=11).item() == 0
