"""Smoothed classifiers whose probabilities are known exactly; the noise; what callers rely on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sample_nets import Mixed, shaken
from scipy import stats
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.smoothing import Gaussian, Noise
from fastrobust.smoothing import Smooth as Boxed


def Smooth(model: Any, num_classes: int, noise: Noise, **kwargs: Any) -> Boxed:
    """Without a box."""
    return Boxed(model, num_classes, noise, **({"box": None} | kwargs))


def linear(seed: int = 0) -> tuple[nn.Sequential, Tensor]:
    """A linear classifier of two classes, and points of known distances to its boundary."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(9, 3, 4)


def distances(model: nn.Sequential, x: Tensor) -> Tensor:
    layer = model[1]
    z = (x.flatten(1).double() @ layer.weight.double().T + layer.bias.double()).detach()
    return (z[:, 1] - z[:, 0]) / (layer.weight[1] - layer.weight[0]).detach().double().norm()


@pytest.mark.parametrize("compile_", [True, False])
def test_radii_of_a_linear_classifier_tend_to_its_distances(compile_: bool) -> None:
    """P(class) = Phi(distance / sigma), so that the radius for the true probability is the distance."""
    model, x = linear()
    true, sigma = distances(model, x), 0.5
    found = Smooth(model, 2, Gaussian(sigma), seed=1, compile=compile_).certify(x, 100, 20_000, 0.001)
    sure = found.prediction >= 0
    assert torch.equal(found.prediction[sure], (true > 0).long()[sure])
    assert (found.radius <= true.abs())[sure].all()
    near = true.abs() < 1  # where 20,000 samples say enough
    assert ((true.abs() - found.radius)[sure & near] < 0.05).all()
    assert (found.samples == 20_100).all()
    assert not found.fresh


def test_certificates_of_given_radii() -> None:
    model, x = linear(1)
    true, sigma = distances(model, x), 0.5
    radii = [0.6, 0.1, 0.3]
    found = Smooth(model, 2, Gaussian(sigma), seed=2).certify_at(x, radii, n_max=20_000)
    for k, radius in enumerate(radii):
        assert not (found.certified[:, k] & (true.abs() < radius)).any()
        assert found.certified[(true.abs() > radius + 0.05) & (true.abs() < 1.5), k].all()
    assert (found.certified[:, 0] <= found.certified[:, 2]).all()
    assert (found.certified[:, 2] <= found.certified[:, 1]).all()
    for radius, certified in zip(found.radius, found.certified, strict=True):  # the largest that holds
        assert float(radius) == max([r for r, ok in zip(radii, certified, strict=True) if ok], default=0.0)
    assert (found.samples <= 20_100).all()
    assert found.samples.double().mean() < 10_000
    far = Smooth(model, 2, Gaussian(sigma), seed=2).certify_at(x, [*radii, 50.0], n_max=20_000)
    assert torch.equal(far.samples, found.samples)  # nobody draws for what no count could prove
    assert not far.certified[:, 3].any()
    alone = Smooth(model, 2, Gaussian(sigma), seed=2).certify_at(x[3:4], radii, n_max=20_000, index=torch.tensor([3]))
    assert torch.equal(alone.certified[0], found.certified[3])
    assert alone.samples[0] == found.samples[3]


def test_false_certificates_are_as_rare_as_promised() -> None:
    """20,000 points just below their radius."""
    torch.manual_seed(0)
    model, sigma, alpha, radius = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)), 0.5, 0.05, 0.2
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    x = torch.tensor([[radius * (1 - 1e-6), 0.0]]).repeat(20_000, 1)
    found = Smooth(model, 2, Gaussian(sigma), seed=3).certify_at(x, [radius, 0.4], n_max=1000, alpha=alpha)
    wrong = int((found.certified.any(1) & (found.prediction == 1)).sum())
    assert wrong <= stats.binom.isf(1e-4, 20_000, alpha)
    assert wrong > 0


def test_the_engine_draws_the_reference_noise() -> None:
    """Votes of both paths agree but for near ties; copies are the same in parts, in any order, on any threads."""
    torch.manual_seed(0)
    model = shaken(Mixed())
    x, index = torch.randn(5, 2, 6, 6), torch.tensor([7, 0, 2**32 - 1, 3, 4])
    classes = model(x).shape[1]
    ours, plain = (Smooth(model, classes, Gaussian(0.4), compile=c) for c in (True, False))
    a, b = (smooth.sampler.votes(x, 300, 2**63 + 5, index, first=11) for smooth in (ours, plain))
    assert int((a - b).abs().sum()) <= 4
    assert (a.sum(1) == 300).all()
    parts = plain.sampler.votes(x, 120, 2**63 + 5, index, first=11) + plain.sampler.votes(
        x, 180, 2**63 + 5, index, first=131
    )
    assert torch.equal(parts, b)
    assert torch.equal(plain.sampler.votes(x[[4, 0]], 300, 2**63 + 5, index[[4, 0]], first=11), b[[4, 0]])


def test_noise_is_normal() -> None:
    x = torch.zeros(8, 501, dtype=torch.float64)
    slots = torch.arange(2000)
    noise = Gaussian(2.0).copies(x, slots // 250, slots % 250, torch.arange(8), 9).flatten().numpy() / 2
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert abs(noise.mean()) < 4.5 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 4.5 * np.sqrt(2 / noise.size)
    assert abs((np.abs(noise) > 4).sum() - 2 * stats.norm.sf(4) * noise.size) < 4.5 * np.sqrt(
        2 * stats.norm.sf(4) * noise.size
    )


def test_fresh_seeds_are_drawn_and_recorded() -> None:
    model, x = linear()
    smooth = Smooth(model, 2, Gaussian(1.0))
    a, b = (smooth.certify(x, 50, 500) for _ in range(2))
    assert a.fresh
    assert a.seed != b.seed
    again = Smooth(model, 2, Gaussian(1.0), seed=a.seed).certify(x, 50, 500)
    assert not again.fresh
    assert torch.equal(again.radius, a.radius)


def test_predictions_abstain_near_the_boundary() -> None:
    model, x = linear()
    true = distances(model, x)
    said = Smooth(model, 2, Gaussian(0.5), seed=4).predict(x, 1000)
    assert torch.equal(said[true.abs() > 0.2], (true > 0).long()[true.abs() > 0.2])
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
    one = Smooth(nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), 1, Gaussian(0.5)).predict(x, 100)
    assert (one == 0).all()


def test_side_effects_none() -> None:
    model, x = linear()
    model.train()
    state = torch.random.get_rng_state()
    Smooth(model, 2, Gaussian(0.5)).certify_at(x, 0.2, n_max=500)
    Smooth(model, 2, Gaussian(0.5), compile=False).predict(x, 50)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_empty_batches() -> None:
    model, x = linear()
    smooth = Smooth(model, 2, Gaussian(0.5))
    assert smooth.predict(x[:0]).shape == (0,)
    assert smooth.certify(x[:0], n=100).prediction.shape == (0,)
    assert smooth.certify_at(x[:0], [0.1, 0.2], n_max=500).certified.shape == (0, 2)


def test_models_that_say_nan_have_no_votes() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * float("nan")

    found = Smooth(Broken(), 3, Gaussian(0.5)).certify(torch.rand(2, 1, 4, 4), n=200)
    assert (found.prediction == -1).all()
    assert (found.radius == 0).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, x: Gaussian(0), "sigma must be a finite number > 0, got 0"),
        (lambda m, x: Gaussian(True), "sigma must be a finite number > 0, got True"),
        (lambda m, x: Gaussian(-0.1), "sigma must be"),
        (lambda m, x: Smooth(m, 3, Gaussian(1)).predict(x), "num_classes must be the model's, 2, got 3"),
        (lambda m, x: Smooth(m, 2, Gaussian(1)).certify(x, alpha=0), "alpha must be between 0 and 1, got 0"),
        (lambda m, x: Smooth(m, 2, Gaussian(1)).certify(x, n0=0), "n0 must be an integer >= 1, got 0"),
        (lambda m, x: Smooth(m, 2, Gaussian(1)).certify_at(x, 3.0, n_max=50), "n_max = 50 samples cannot certify"),
        (lambda m, x: Smooth(m, 2, Gaussian(1)).certify_at(x, []), "radii must be finite numbers > 0"),
        (lambda m, x: Smooth(m, 2, Gaussian(1)).predict(x / 0), "x must be finite"),
        (lambda m, x: Smooth(m, 2, Gaussian(1)).certify_at(x, None), "radii must be finite numbers > 0, got None"),
        (lambda m, x: Smooth(m, 2, Gaussian(1)).predict(x[:1], index=torch.tensor([-1])), "index must be in 0 .. 2"),
        (lambda m, x: Smooth(m, 2, Gaussian(1), ledger="no/such/votes"), "path must be in a folder that exists"),
        (lambda m, x: Smooth(m, 2, Gaussian), "noise must be one of fastrobust.smoothing"),
        (lambda m, x: Smooth(m, 2, Gaussian(1), autocast=torch.float32), "autocast must be None, torch.bfloat16 or"),
        (lambda m, x: Smooth(m, 2, Gaussian(1), autocast=torch.bfloat16, compile=True), "compile=True, but the engine"),
        (lambda m, x: Smooth(m, 2, 0.25), "noise must be one of fastrobust.smoothing"),
        (lambda m, x: Smooth(m, 2, Gaussian(1), seed=-1), "seed must be None or in"),
        (lambda m, x: Smooth(lambda x: x, 2, Gaussian(1)), "model must be a torch.nn.Module"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call: Any, says: str) -> None:
    model, x = linear()
    with pytest.raises((ValueError, TypeError), match=says):
        call(model, x)


def test_numbers_of_numpy_are_numbers() -> None:
    model, x = linear()
    smooth = Smooth(model, 2, Gaussian(0.5), seed=1)
    one, other = smooth.certify(x, n=1000), smooth.certify(x, np.int64(100), np.int32(1000))
    assert torch.equal(one.radius, other.radius)
    several = smooth.certify_at(x, np.array([0.1, 0.2]), n_max=np.int64(1000))
    assert several.certified.shape == (len(x), 2)
    assert smooth.certify_at(x, np.float32(0.1), n_max=1000).certified.shape == (len(x), 1)
    p = np.float32(0.9)  # a lower bound's precision does not move the radius
    assert Gaussian(0.5).radius(p, 1) == Gaussian(0.5).radius(float(p), 1)
    assert Gaussian(0.5).radius([0.9, 1.5], 1).tolist() == [float(Gaussian(0.5).radius(0.9, 1)), np.inf]


class Casts(nn.Module):
    """Runs another network in bfloat16."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.inner(x)
        return logits


def test_in_16_bits_the_certificate_is_for_the_network_in_16_bits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))
    x = torch.rand(8, 3, 4)

    def votes(model: nn.Module, **options: Any) -> Tensor:
        return Smooth(model, 3, Gaussian(0.5), seed=2, **options).bare.votes(x, 2000, 2)

    half, whole = votes(model, autocast=torch.bfloat16), votes(model)
    assert torch.equal(half, votes(Casts(model), compile=False))
    assert not torch.equal(half, whole)
    with torch.autocast("cpu", torch.bfloat16):  # the caller's own changes nothing
        assert torch.equal(votes(model), whole)
        inside = votes(model, compile=False)
    assert torch.equal(inside, votes(model, compile=False))


def test_the_namespace() -> None:
    assert fr.smoothing.Smooth is Boxed
