"""The engine's other questions: intervals instead of points, and votes under noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_nets import Layers, Mixed, native, shaken
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.network import compile

pytestmark = native


def reference(layers: nn.Module, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Interval arithmetic in float64, module by module."""
    for layer in layers:  # type: ignore[attr-defined]
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            size = type(layer).forward
            centre, radius = (low + high) / 2, (high - low) / 2
            plain = layer(centre)
            kept = layer.weight.data, layer.bias.data
            layer.weight.data, layer.bias.data = kept[0].abs(), torch.zeros_like(kept[1])
            wide = size(layer, radius)
            layer.weight.data, layer.bias.data = kept
            low, high = plain - wide, plain + wide
        elif isinstance(layer, nn.BatchNorm2d):
            ends = layer(low), layer(high)
            low, high = torch.minimum(*ends), torch.maximum(*ends)
        else:
            low, high = layer(low), layer(high)
    return low, high


def test_intervals_are_those_of_interval_arithmetic() -> None:
    torch.manual_seed(0)
    model = shaken(nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1), nn.Tanh(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1),
        nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 40), nn.Softplus(), nn.Linear(40, 7),
    ))  # fmt: skip
    model[0].weight.data[1] *= -1
    x, radius = torch.randn(21, 3, 8, 8), 0.05 * torch.rand(21, 3, 8, 8)
    compiled = compile(model, x)
    centre, wide = compiled.interval(x, radius)
    with torch.no_grad():
        low, high = reference(model.double(), x.double() - radius.double(), x.double() + radius.double())
    scale = float(high.abs().max())
    assert float((centre - wide - low).abs().max()) <= 4e-5 * scale
    assert float((centre + wide - high).abs().max()) <= 4e-5 * scale
    assert float(wide.min()) > 0


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_intervals_hold_every_point(data: Any) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model = shaken(Layers(data.draw, 2, 7))
    x, radius = torch.randn(17, 2, 7, 7), 0.3 * torch.rand(17, 2, 7, 7)
    compiled = compile(model, x)
    centre, wide = compiled.interval(x, radius)
    slack = 1e-4 * (1 + wide + centre.abs())
    for point in (x, x + radius, x - radius, *(x + radius * torch.empty_like(x).uniform_(-1, 1) for _ in range(5))):
        assert bool(((model(point) - centre).abs() <= wide + slack).all())
    points, none = compiled.interval(x, torch.zeros_like(x))
    assert float(none.max()) <= 1e-4 * (1 + float(points.abs().max()))  # ends are rounded outwards
    torch.testing.assert_close(points, compiled(x), rtol=1e-4, atol=1e-4)


def test_every_model_of_the_library_has_intervals() -> None:
    for name in ("mlp", "small_cnn", "cnn7", "resnet18", "preact_resnet18"):
        torch.manual_seed(0)
        model = shaken(fr.models.create(name, (3, 32, 32), 10, 8))
        x = torch.rand(3, 3, 32, 32)
        centre, wide = compile(model, x).interval(x, torch.full_like(x, 1e-3))
        moved = model(x + 1e-3 * torch.randn_like(x).sign())
        assert bool(((moved - centre).abs() <= wide * 1.001 + 1e-4).all()), name


def test_an_op_without_a_rule_for_intervals_is_named() -> None:
    x = torch.rand(2, 4)
    compiled = compile(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)), x)
    with pytest.raises(ValueError, match="op 1 of the tape has no rule"):
        compiled.interval(x, x)
    with pytest.raises(ValueError, match="interval: samples must be"):
        compiled.interval(torch.rand(2, 5), torch.rand(2, 5))


def test_votes_of_a_linear_model_follow_the_normal_distribution() -> None:
    """P(class 1) = Phi(margin / (sigma |w|)), and the sampling error is that of n draws."""
    torch.manual_seed(0)
    model = nn.Linear(30, 2)
    x, sigma, n = torch.randn(5, 30), 0.7, 40_000
    votes = compile(model, x).votes(x, n, sigma, seed=3)
    assert bool((votes.sum(1) == n).all())
    margin = (model(x)[:, 1] - model(x)[:, 0]).detach().double()
    p = torch.special.ndtr(margin / (sigma * (model.weight[1] - model.weight[0]).detach().double().norm()))
    error = (votes[:, 1] / n - p).abs() / (p * (1 - p) / n).sqrt()
    assert float(error.max()) < 4.5


def test_votes_depend_on_seed_index_and_copy_alone() -> None:
    torch.manual_seed(0)
    model = shaken(Mixed())
    x = torch.randn(6, 2, 6, 6)
    compiled = compile(model, x)
    whole = compiled.votes(x, 50, 0.5, seed=2**63 + 1)
    parts = compiled.votes(x, 13, 0.5, seed=2**63 + 1) + compiled.votes(x, 37, 0.5, seed=2**63 + 1, first=13)
    assert torch.equal(whole, parts)
    order = torch.tensor([4, 0, 5])
    assert torch.equal(compiled.votes(x[order], 50, 0.5, seed=2**63 + 1, index=order), whole[order])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(compiled.votes(x, 50, 0.5, seed=2**63 + 1), whole)
    torch.set_num_threads(before)
    assert not torch.equal(compiled.votes(x, 50, 0.5, seed=1), whole)
    clean = F.one_hot(model(x).argmax(1), whole.shape[1])
    assert torch.equal(compiled.votes(x, 50, 0.0), 50 * clean)
    assert int(compiled.votes(torch.full_like(x, torch.nan), 50, 0.5).sum()) == 0
    with pytest.raises(ValueError, match="votes: scale must be finite and >= 0, got -1"):
        compiled.votes(x, 5, -1)
    with pytest.raises(ValueError, match="votes: kind must be one of normal, uniform, laplace, got 'split'"):
        compiled.votes(x, 5, 0.5, kind="split")
