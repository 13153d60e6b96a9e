"""Boxes by the native engine: the soundness hunt through it, and the layers' own boxes beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import corners, evaluations
from sample_nets import Layers, native, shaken
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.bounds import relaxation
from fastrobust.bounds.captured import program_for
from fastrobust.bounds.native import Native

pytestmark = native
COUNT = 9  # samples: enough for the engine


def line(weight: Tensor, bias: Tensor) -> nn.Module:
    """Weights before a function that changes nothing: what is not affine ends the engine's part."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, bias
    return nn.Sequential(layer, nn.LeakyReLU(1.0))


def boxes(model: nn.Module, x: Tensor, box: tuple[Tensor, Tensor], sound: Any) -> fr.bounds.Bounds:
    """Bounds, which the engine must have made."""
    assert program_for("test", model, x).native is not None
    return fr.bounds.ibp(model, x, box, sound)


def hunt_corners(neurons: int, inputs: int, eps: float) -> int:
    """How many neurons have an exact corner outside their bounds."""
    torch.manual_seed(inputs)
    weight, bias, x = torch.randn(neurons, inputs), torch.randn(neurons), torch.rand(COUNT, inputs)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    bounds = boxes(line(weight, bias), x, (low, high), "exact")
    escapes = 0
    for k in range(COUNT):
        size = ((weight.abs() * high[k]).sum(1) + bias.abs()).double().numpy() * inputs * 2.0**-62
        least = corners(weight, bias, low[k].expand_as(weight), high[k].expand_as(weight))
        most = -corners(-weight, -bias, low[k].expand_as(weight), high[k].expand_as(weight))
        lower, upper = (end[k].double().numpy() for end in (bounds.lower, bounds.upper))
        escapes += int(((lower > least + size) | (upper < most - size)).sum())
    return escapes


@pytest.mark.parametrize("eps", [0.0, 1 / 255, 8 / 255])
@pytest.mark.parametrize(("neurons", "inputs"), [(30_000, 1), (10_000, 2), (3_000, 27), (400, 784), (8, 32_768)])
def test_exact_corners_are_inside(neurons: int, inputs: int, eps: float) -> None:
    assert hunt_corners(neurons, inputs, eps) == 0


def hunt_sums(inputs: int) -> int:
    """The same of points where every addition rounds the same way, so that errors do not cancel."""
    escapes = 0
    for step in (0.49, -0.49):
        for bits in range(6, 15):
            x = torch.full((COUNT, inputs), 1 + step * 2.0**-bits)
            bounds = boxes(line(torch.ones(1, inputs), torch.zeros(1)), x, (x, x), "exact")
            total = float(x[0, 0]) * inputs  # exact: 24 bits times a power of two
            escapes += not bool(((bounds.lower <= total) & (total <= bounds.upper)).all())
    return escapes


def test_sums_whose_errors_do_not_cancel_are_inside() -> None:
    assert hunt_sums(32_768) == 0


def hunt_evaluations(neurons: int, inputs: int, eps: float) -> int:
    """How many float32 evaluations lie outside."""
    torch.manual_seed(inputs)
    weight, bias, x = torch.randn(neurons, inputs), torch.randn(neurons), torch.rand(COUNT, inputs)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    bounds = boxes(line(weight, bias), x, (low, high), "float32")
    ends = torch.where(weight > 0, low[0], high[0]), torch.where(weight > 0, high[0], low[0])
    return sum(
        int(((total < bounds.lower[0]) | (total > bounds.upper[0])).sum())
        for points in (*ends, x[0].expand_as(weight))
        for total in evaluations(weight, bias, points)
    )


@pytest.mark.parametrize("eps", [0.0, 8 / 255])
@pytest.mark.parametrize(("neurons", "inputs"), [(3000, 2), (500, 27), (100, 784)])
def test_float32_evaluations_in_any_order_are_inside(neurons: int, inputs: int, eps: float) -> None:
    assert hunt_evaluations(neurons, inputs, eps) == 0


class Parts(nn.Module):
    """Normalisation, groups, a strided convolution, a residual, channels put together, both kinds of pools, and a
    constant from which an activation is subtracted."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = fr.models.Normalize((0.4, 0.6), (0.3, 0.2))
        self.first, self.second = nn.Conv2d(2, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.batch, self.third = nn.BatchNorm2d(6), nn.Conv2d(12, 5, 2)
        self.wide, self.last = nn.Linear(5 * 6, 20), nn.Linear(20, 4)
        self.flat, self.top = nn.BatchNorm1d(20), nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(self.norm(x)))
        g = nn.functional.leaky_relu(self.batch(self.second(h)) - 0.5 * h, 0.1)
        h = self.third(nn.functional.max_pool2d(torch.cat([h, self.top - g], 1), 2, 1))
        h = nn.functional.avg_pool2d(h, (1, 2), 1, (0, 1))
        out: Tensor = self.last(torch.relu(self.flat(self.wide(h[..., 1:].flatten(1)))))
        return out


def check(model: nn.Module, x: Tensor, eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's bounds are no wider than the layers', and hold IBP in float64 and points in both precisions."""
    low, high = x - eps, x + eps
    wide = copy.deepcopy(model).double()
    plain = fr.bounds.ibp(wide, x.double(), (low.double(), high.double()), False)
    for sound in ("exact", "float32"):
        found = boxes(model, x, (low, high), sound)
        with monkeypatch.context() as patch:
            patch.setattr(relaxation, "FEW", len(x) + 1)
            layers = fr.bounds.ibp(model, x, (low, high), sound)
        assert bool((found.lower.double() <= plain.lower).all())
        assert bool((plain.upper <= found.upper.double()).all())
        size = 1e-4 * (layers.upper - layers.lower + layers.upper.abs().max())
        assert bool((found.upper <= layers.upper + size).all())
        assert bool((found.lower >= layers.lower - size).all())
        for share in (torch.zeros_like(x), torch.ones_like(x), *(torch.rand_like(x) for _ in range(4))):
            for inner in (share, share.round()):
                point = (low + (high - low) * inner).clamp(low, high)
                for out in (model(point).detach().double(), wide(point.double()).detach()):
                    assert bool((found.lower.double() <= out).all())
                    assert bool((out <= found.upper.double()).all())


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.3])
def test_layers_of_all_kinds(eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        model = Parts()
        check(shaken(model), torch.rand(COUNT + 8 * seed, 2, 9, 11)[:, :, :7, :10].contiguous(), eps, monkeypatch)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_networks(data: Any) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model = shaken(Layers(data.draw, 2, 7))
    assume(model.twice)  # else the last difference reads what was before the last ReLU
    with pytest.MonkeyPatch.context() as patch:
        check(model, torch.randn(COUNT, 2, 7, 7), data.draw(st.sampled_from([0.0, 0.02, 0.3])), patch)


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "cnn7", "resnet18"])
def test_models_of_the_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    check(shaken(fr.models.create(name, (3, 16, 16), 10, 8)), torch.rand(COUNT, 3, 16, 16), 2 / 255, monkeypatch)


def test_margins_are_those_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x, y = fr.models.small_cnn(1, 4, 12, 5).eval(), torch.rand(COUNT, 1, 12, 12), torch.randint(5, (COUNT,))
    found = fr.bounds.margins(model, x, y, fr.Linf(0.01), "ibp")
    monkeypatch.setattr(relaxation, "FEW", COUNT + 1)
    torch.testing.assert_close(found, fr.bounds.margins(model, x, y, fr.Linf(0.01), "ibp"), rtol=1e-4, atol=1e-4)


def test_long_sums_are_widened_by_less_than_a_hundredth() -> None:
    """Fan-in 32,768 at eps 8/255; sums in any order would want 2^-9 of the magnitudes."""
    torch.manual_seed(0)
    x = torch.rand(COUNT, 32_768)
    model = line(torch.randn(64, 32_768), torch.randn(64))
    box = (x - 8 / 255).clamp(0, 1), (x + 8 / 255).clamp(0, 1)
    exact, plain = boxes(model, x, box, "exact"), fr.bounds.ibp(copy.deepcopy(model).double(), x.double(), tuple(
        end.double() for end in box), False)  # fmt: skip
    share = ((exact.upper - exact.lower).double() / (plain.upper - plain.lower)).detach()
    assert 1 < float(share.min()) <= float(share.max()) < 1.01


def test_parameters_are_those_of_the_moment() -> None:
    torch.manual_seed(0)
    model, x = shaken(Parts()), torch.rand(COUNT, 2, 7, 10)
    for change in (lambda: None, lambda: model.batch.running_var.mul_(2), lambda: model.first.weight.data.neg_()):
        change()
        bounds = boxes(model, x, (x, x), True)
        assert bool(((bounds.lower <= model(x)) & (model(x) <= bounds.upper)).all())


def test_what_overflows_claims_nothing() -> None:
    x = torch.ones(COUNT, 2)
    weight = torch.tensor([[3e38, 3e38], [3e38, -3e38], [1.0, 0.0]])
    model = nn.Sequential(line(weight, torch.zeros(3)), nn.Linear(3, 2, bias=False), nn.ReLU())
    model[1].weight.data = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    bounds = boxes(model, x, (x - 0.1, x + 0.1), "exact")
    assert not bool((bounds.lower.isnan() | bounds.upper.isnan()).any())
    assert bool(torch.isinf(bounds.upper[:, 1]).all())
    exact = copy.deepcopy(model).double()(x.double())
    assert bool(((bounds.lower <= exact) & (exact <= bounds.upper)).all())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)),  # no function of the engine is a proof
        nn.Linear(4, 2),  # all affine
        nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double(),
    ],
)
def test_what_the_engine_does_not_serve(model: nn.Module) -> None:
    kind = next(model.parameters()).dtype
    x = torch.rand(COUNT, 4, dtype=kind)
    assert program_for("test", model, x).native is None
    bounds = fr.bounds.ibp(model, x, (x - 0.1, x + 0.1))
    assert bool(((bounds.lower <= model(x)) & (model(x) <= bounds.upper)).all())


# --- planted mistakes, each of which a hunt must find ---------------------------------------------------------------


def no_widening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Native, "_widening", lambda *arguments: (0.0, 0.0, None))


def no_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    widening = Native._widening
    monkeypatch.setattr(Native, "_widening", lambda self, op, roundings, *rest: widening(self, op, 1, *rest))


@pytest.mark.parametrize("mutant", [no_widening, no_chains])
def test_planted_mistakes_are_found(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    assert hunt_sums(32_768) > 0
