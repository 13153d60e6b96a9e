"""Certificates of a changed network from the old one's votes: their error, computed and simulated, and their price."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fastrobust.smoothing import Gaussian, Ledger, Smooth, incremental, recertify, statistics

SIGMA = 0.5


def linear(weight: Tensor, bias: float = 0.0) -> nn.Sequential:
    """Class 1 where weight . x + bias > 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.numel(), 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
        model[1].weight[1], model[1].bias[1] = weight.flatten(), bias
    return model


def distances(model: nn.Sequential, x: Tensor) -> Tensor:
    layer = model[1]
    weight = layer.weight[1].detach().double()
    return (x.flatten(1).double() @ weight + layer.bias[1].detach().double()) / weight.norm()


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize(("p", "zeta"), [(0.9, 0.001), (0.9, 0.02), (0.9, 0.05), (0.75, 0.15), (0.999, 0.3)])
def test_no_false_claim_is_made_more_often_than_alpha(p: float, zeta: float, alpha: float) -> None:
    """Over all counts of the old votes and of the pairs, at a radius that p - zeta just does not prove."""
    n, least = 400, np.array([p - zeta])
    counts = np.arange(n + 1)
    before = statistics.lower_bound(counts, n, incremental.OLD * alpha)
    for many in (n, 10**6):  # with the rule that spares pairs, and without
        pairs, wrong = incremental.pairs_for(before, least, many, alpha), 0.0
        for count in counts[pairs > 0]:
            m = int(pairs[count])
            if m > 20_000:
                continue
            lost = np.arange(m + 1)
            claims = incremental.carried(np.full(m + 1, before[count]), least, np.full(m + 1, m), lost, alpha)[:, 0]
            wrong += stats.binom.pmf(count, n, p) * stats.binom.pmf(lost, m, zeta)[claims].sum()
        assert wrong <= (incremental.OLD + incremental.PAIRS) * alpha
    careless = stats.binom.sf(counts[before > least[0]][0] - 1, n, p)  # the old bound taken for the new network
    assert careless > alpha or zeta < 0.01
    assert incremental.OLD + incremental.PAIRS + incremental.ANEW <= 1


def test_false_certificates_are_as_rare_as_promised() -> None:
    """3,000 points that the old network has to spare, and that lie just within their radius of the new one."""
    alpha, radius, rows = 0.1, 0.2, 3000
    x = torch.tensor([[radius * (1 - 1e-6), 0.0]]).repeat(rows, 1)
    old = Smooth(linear(torch.tensor([1.0, 0.0]), 0.2), 2, Gaussian(SIGMA), box=None, seed=1)
    new = Smooth(linear(torch.tensor([1.0, 0.0])), 2, Gaussian(SIGMA), box=None, seed=2)
    found = recertify(old, new, x, [radius, 0.3], n=1500, alpha=alpha)
    wrong = int((found.certified.any(1) & (found.prediction == 1)).sum())
    assert 0 < wrong <= stats.binom.isf(1e-4, rows, alpha)


def test_rounding_to_16_bits_costs_few_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(100) / 10
    first, second = linear(weight), linear(weight.bfloat16().float())
    x = torch.randn(60, 100)
    x += (torch.linspace(0.1, 1.2, 60) - distances(first, x).float())[:, None] * weight / weight.norm()
    radii = [0.25, 0.5]
    old = Smooth(first, 2, Gaussian(SIGMA), seed=100, box=None, ledger=tmp_path / "votes")
    before = old.certify(x, n=100_000)
    new = Smooth(second, 2, Gaussian(SIGMA), seed=9, box=None)
    found = recertify(old, new, x, radii)
    true = distances(second, x)
    for k, radius in enumerate(radii):
        assert not (found.certified[:, k] & (true < radius)).any()
        assert found.certified[(before.radius > radius + 0.02), k].all()
    assert (found.prediction == 1)[found.certified.any(1)].all()
    assert found.fresh is False
    anew = new.certify_at(x, radii)
    assert (found.certified == anew.certified).double().mean() > 0.97
    assert found.samples.double().mean() < 0.5 * anew.samples.double().mean()
    assert found.samples.double().mean() < 0.02 * before.samples.double().mean()
    sampler = Ledger(tmp_path / "votes").over(old.bare)  # the old votes are read, not drawn again
    kept = Smooth(first, 2, Gaussian(SIGMA), box=None, ledger=tmp_path / "votes")
    assert torch.equal(recertify(kept, new, x, radii).certified, found.certified)
    assert sampler.drawn == kept.sampler.drawn == 0  # type: ignore[attr-defined]


def test_another_network_is_certified_anew() -> None:
    """Where the pairs show nothing the answer is that of `certify_at`, for its class."""
    torch.manual_seed(1)
    weight, x = torch.randn(20), torch.randn(12, 20)
    old = Smooth(linear(weight), 2, Gaussian(SIGMA), box=None, seed=1)
    new = Smooth(linear(-weight), 2, Gaussian(SIGMA), box=None, seed=2)
    radii = [0.1, 0.2]
    found, n = recertify(old, new, x, radii, n=5000), 5000
    anew = new.certify_at(x, radii, n_max=n, alpha=incremental.ANEW * 0.001)
    held = old.certify(x, n=n, alpha=incremental.OLD * 0.001).radius > 0.2
    assert held.any()
    assert torch.equal(found.certified[held], anew.certified[held])
    assert torch.equal(found.prediction[held], anew.prediction[held])
    assert torch.equal(found.radius[held], anew.radius[held])
    assert (found.samples > anew.samples)[held].all()  # the pairs were for nothing
    assert not found.certified[old.certify(x, n=n).radius < 0.05].any()


def test_a_network_that_says_nan_loses_every_vote() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2] * float("nan")

    x = torch.tensor([[1.0, 0.0]])
    old = Smooth(linear(torch.tensor([1.0, 0.0])), 2, Gaussian(SIGMA), seed=1)
    found = recertify(old, Smooth(Broken(), 2, Gaussian(SIGMA)), x, 0.3, n=1000)
    assert not found.certified.any()
    assert found.radius.tolist() == [0.0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda old, new, x: recertify(old, new, x, []), "recertify: radii must be finite numbers > 0"),
        (lambda old, new, x: recertify(old, new, x, -0.1), "recertify: radii must be finite numbers > 0"),
        (lambda old, new, x: recertify(old, new, x, 0.1, alpha=1.0), "recertify: alpha must be between 0 and 1"),
        (lambda old, new, x: recertify(old, old, x, 0.1), "new must have another seed than old"),
        (
            lambda old, new, x: recertify(Smooth(new.bare.model, 2, Gaussian(SIGMA)), new, x, 0.1),
            "old must have a seed or a ledger",
        ),
        (
            lambda old, new, x: recertify(old, Smooth(new.bare.model, 2, Gaussian(0.1)), x, 0.1),
            r"new must have the noise and classes of old, Gaussian\(sigma=0.5\) and 2, got Gaussian\(sigma=0.1\) and 2",
        ),
    ],
)
def test_wrong_arguments_are_named(call: Any, says: str) -> None:
    weight, x = torch.ones(3), torch.ones(2, 3)
    old, new = (Smooth(linear(weight), 2, Gaussian(SIGMA), seed=seed) for seed in (1, 2))
    with pytest.raises(ValueError, match=says):
        call(old, new, x)
    assert recertify(old, new, x[:0], 0.1, n=100).certified.shape == (0, 1)
