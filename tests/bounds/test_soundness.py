"""The soundness hunt: nothing that the network can do lies outside its bounds, to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from oracles import corners, evaluations, exact_corner
from sample_nets import shaken
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.bounds import affine, guarantee, interval, nonlinear
from fastrobust.bounds.layers import Boxes, Lines

EPS = (0.0, 1 / 255, 8 / 255)


def line(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, bias
    return layer


def hunt_corners(neurons: int, inputs: int, eps: float, seed: int, magnitude: float = 1.0) -> int:
    """How many of these neurons have an exact corner outside their bounds."""
    torch.manual_seed(seed)
    weight, bias = torch.randn(neurons, inputs) * magnitude, torch.randn(neurons)
    x = torch.rand(1, inputs)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    bounds = fr.bounds.ibp(line(weight, bias), x, (low, high), sound="exact")
    size = ((weight.abs() * high).sum(1) + bias.abs()).double().numpy() * inputs * 2.0**-62
    least = corners(weight, bias, low.expand_as(weight), high.expand_as(weight))
    most = -corners(-weight, -bias, low.expand_as(weight), high.expand_as(weight))
    return int(
        ((bounds.lower[0].double().numpy() > least + size) | (bounds.upper[0].double().numpy() < most - size)).sum()
    )


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize(("neurons", "inputs"), [(300_000, 1), (30_000, 3), (10_000, 27), (2_000, 784), (40, 32_768)])
def test_exact_corners_of_affine_layers_are_inside(neurons: int, inputs: int, eps: float) -> None:
    assert hunt_corners(neurons, inputs, eps, seed=inputs) == 0


def tiny(count: int, inputs: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Weights, biases and boxes with mantissas full of ones, and of very different sizes."""
    generator = torch.Generator().manual_seed(count)

    def numbers(*shape: int) -> Tensor:
        mantissa = 1 + torch.randint(2**23 - 64, 2**23, shape, generator=generator).double() * 2.0**-23
        mantissa = torch.where(torch.rand(shape, generator=generator) < 0.5, mantissa, 1 + mantissa % 1 * 2.0**-12)
        sign = torch.randint(2, shape, generator=generator) * 2 - 1
        return (mantissa * sign * 2.0 ** torch.randint(-4, 5, shape, generator=generator)).float()

    for _ in range(count):
        ends = torch.stack([numbers(1, inputs), numbers(1, inputs)]).sort(0).values
        width = torch.rand((), generator=generator) < 0.5
        yield numbers(64, inputs), numbers(64), ends[0], ends[0] if width else ends[1]


def hunt_rationally(count: int, inputs: int) -> int:
    """The same in rational arithmetic, where the room that a sum leaves does not hide a bit."""
    escapes = 0
    for weight, bias, low, high in tiny(count, inputs):
        bounds = fr.bounds.ibp(line(weight, bias), low, (low, high), sound="exact")
        box = low[0].tolist(), high[0].tolist()
        for i, (w, b) in enumerate(zip(weight.tolist(), bias.tolist(), strict=True)):
            least, most = exact_corner(w, b, *box), -exact_corner([-v for v in w], -b, *box)
            escapes += Fraction(bounds.lower[0, i].item()) > least or Fraction(bounds.upper[0, i].item()) < most
    return escapes


@pytest.mark.parametrize("inputs", [1, 2])
def test_rational_corners_are_inside(inputs: int) -> None:
    assert hunt_rationally(100, inputs) == 0


def hunt_sums(inputs: int) -> int:
    """The same where every addition rounds the same way, so that errors do not cancel."""
    escapes = 0
    for step in (0.49, -0.49):
        for bits in range(6, 15):
            x = torch.full((1, inputs), 1 + step * 2.0**-bits)
            bounds = fr.bounds.ibp(line(torch.ones(1, inputs), torch.zeros(1)), x, (x, x), sound="exact")
            total = float(x[0, 0]) * inputs  # exact: 24 bits times a power of two
            escapes += not bounds.lower.item() <= total <= bounds.upper.item()
    return escapes


def test_sums_whose_errors_do_not_cancel_are_inside() -> None:
    assert hunt_sums(32_768) == 0


def hunt_evaluations(neurons: int, inputs: int, eps: float) -> int:
    """How many float32 evaluations at corners and at other points lie outside the bounds that promise them."""
    torch.manual_seed(inputs)
    weight, bias, x = torch.randn(neurons, inputs), torch.randn(neurons), torch.rand(1, inputs)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    bounds = fr.bounds.ibp(line(weight, bias), x, (low, high), sound="float32")
    escapes = 0
    for points in (torch.where(weight > 0, low, high), torch.where(weight > 0, high, low), x.expand_as(weight)):
        for total in evaluations(weight, bias, points):
            escapes += int(((total < bounds.lower[0]) | (total > bounds.upper[0])).sum())
    return escapes


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize(("neurons", "inputs"), [(5000, 1), (5000, 2), (500, 27), (200, 784)])
def test_float32_evaluations_in_any_order_are_inside(neurons: int, inputs: int, eps: float) -> None:
    assert hunt_evaluations(neurons, inputs, eps) == 0


KINDS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.Hardtanh, nn.LeakyReLU)


class Residual(nn.Module):
    """relu(body(x) + x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + x)


def network(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A random network, fully connected or convolutional, and its samples' shape."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    if seed % 2:
        parts: list[nn.Module] = [nn.Flatten()]
        size = 10
        for _ in range(int(rng.integers(2, 5))):
            wide = int(rng.integers(4, 24))
            parts += [nn.Linear(size, wide), KINDS[int(rng.integers(len(KINDS)))]()]
            size = wide
        return nn.Sequential(*parts, nn.Linear(size, 4)).eval(), (10,)
    wide = int(rng.integers(2, 7))
    pool = (nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3))[int(rng.integers(3))]
    layers = [
        nn.Conv2d(2, wide, int(rng.integers(1, 4)), int(rng.integers(1, 3)), 1), nn.BatchNorm2d(wide), nn.ReLU(),
        Residual(wide), KINDS[int(rng.integers(len(KINDS)))](), pool, nn.Flatten(), nn.LazyLinear(4),
    ]  # fmt: skip
    model = nn.Sequential(*layers)
    model.eval()(torch.rand(1, 2, 7, 7))
    return shaken(model), (2, 7, 7)


def points_in(model: nn.Module, low: Tensor, high: Tensor, count: int) -> Iterator[Tensor]:
    """Random points, corners, and corners that gradients lead to, of each output: (points, batch, ...)."""
    share = torch.rand(count, *low.shape)
    yield torch.stack([low, high, (low + high) / 2])
    yield (low + (high - low) * share).clamp(low, high)
    yield torch.where(share < 0.5, low, high)
    outputs = model(low).shape[1]
    for j in range(outputs):
        for sign in (-1, 1):
            x = (low + high) / 2
            for _ in range(5):
                x = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(sign * model(x)[:, j].sum(), x)
                x = torch.where(slope > 0, high, torch.where(slope < 0, low, x)).detach()
                yield x[None]


def hunt_points(method: Callable[..., fr.bounds.Bounds], seeds: range, count: int, sound: str = "float32") -> int:
    """How many outputs at points of the sets lie outside the bounds, in float32 and replayed in float64."""
    escapes = 0
    for seed in seeds:
        model, shape = network(seed)
        wide = copy.deepcopy(model).double()
        x = torch.rand(6, *shape)
        for eps in (0.0, 0.01, 0.1):
            low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
            bounds = method(model, x, (low, high), sound)
            assert bool((bounds.lower <= bounds.upper).all())
            for points in points_in(model, low, high, count):
                flat = points.flatten(0, 1)
                with torch.no_grad():
                    found = model(flat).double(), wide(flat.double())
                for out in found:
                    each = out.unflatten(0, points.shape[:2])
                    escapes += int(((each < bounds.lower.double()) | (each > bounds.upper.double())).sum())
    return escapes


class Touching(nn.Module):
    """relu(h), relu(h) - h and h - relu(h): functions that lines touch at corners, so that nothing else gives room."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.rand(300, 2) + 0.1
        self.line = line(weight, -weight.sum(1) * torch.rand(300))

    def forward(self, x: Tensor) -> Tensor:
        h = self.line(x)
        return torch.cat([torch.relu(h), torch.relu(h) - h, h - torch.relu(h)], 1)


def hunt_tight(method: Callable[..., fr.bounds.Bounds]) -> int:
    """How many of them lie outside their bounds at a corner."""
    torch.manual_seed(0)
    model, low, high = Touching(), torch.zeros(1, 2), torch.ones(1, 2)
    bounds = method(model, low, (low, high), "exact")
    wide = model.double()
    ends = [wide(point.double()).detach() for point in (low, high)]
    return sum(int(((end < bounds.lower) | (end > bounds.upper)).sum()) for end in ends)


METHODS = (fr.bounds.ibp, fr.bounds.crown_ibp, fr.bounds.crown)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_corners_that_lines_touch_are_inside(method: Callable[..., fr.bounds.Bounds]) -> None:
    assert hunt_tight(method) == 0


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_no_point_escapes(method: Callable[..., fr.bounds.Bounds]) -> None:
    """Over a million points of twenty networks: 6 samples, 3 radii, 1400 points within and 1400 corners of each."""
    assert hunt_points(method, range(20), 1400) == 0


def test_no_point_escapes_optimised_slopes() -> None:
    assert hunt_points(fr.bounds.alpha_crown, range(4), 1400) == 0


# --- planted mistakes, each of which a hunt must find ---------------------------------------------------------------


def wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affine.Linear, "bias", lambda self, tensors: -tensors[self.at_bias][None])


def no_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    def mutant(self: affine.Linear, x: Tensor, radius: Tensor, tensors: Any) -> tuple[Tensor, Tensor]:
        return self.linear(x, tensors), self.linear(radius, tensors)

    monkeypatch.setattr(affine.Linear, "both", mutant)


def no_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarantee.Guarantee, "own_error", lambda self, count: 0.0)
    monkeypatch.setattr(guarantee.Guarantee, "up", lambda self, value: value)
    monkeypatch.setattr(guarantee.Guarantee, "down", lambda self, value: value)


def shrunk_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    radius = interval.Interval.radius
    monkeypatch.setattr(interval.Interval, "radius", lambda *arguments: radius(*arguments) * (1 - 2.0**-19))


def no_sum_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarantee.Guarantee, "own_error", lambda self, count: self.own)


def no_evaluation_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarantee.Guarantee, "net_error", lambda self, count: 0.0)
    monkeypatch.setattr(guarantee.Guarantee, "own_error", lambda self, count: 0.0)


def low_line(monkeypatch: pytest.MonkeyPatch) -> None:
    relax = nonlinear.Relu.relax

    def mutant(self: nonlinear.Relu, *arguments: Any) -> Lines:
        lines = relax(self, *arguments)
        return replace(lines, high=lines.high * 0.999)

    monkeypatch.setattr(nonlinear.Relu, "relax", mutant)


def eager_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """ReLUs that are barely unstable are taken for stable ones."""
    relax = nonlinear.Relu.relax

    def mutant(self: nonlinear.Relu, inputs: Boxes, *arguments: Any) -> Lines:
        (x,) = inputs
        return relax(self, [replace(x, lower=torch.where(x.lower > -0.05, x.lower.clamp(min=0), x.lower))], *arguments)

    monkeypatch.setattr(nonlinear.Relu, "relax", mutant)


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], int]]] = [
    (wrong_sign, lambda: hunt_corners(100, 27, 0.0, 0)),
    (no_absolute, lambda: hunt_corners(100, 27, 1 / 255, 0)),
    (no_rounding, lambda: hunt_corners(1000, 27, 1 / 255, 0)),
    (no_rounding, lambda: hunt_rationally(20, 1)),
    (shrunk_radius, lambda: hunt_rationally(60, 1)),
    (no_sum_error, lambda: hunt_sums(32_768)),
    (no_evaluation_error, lambda: hunt_evaluations(500, 27, 0.0)),
    (low_line, lambda: hunt_tight(fr.bounds.crown)),
    (eager_stable, lambda: hunt_tight(fr.bounds.crown)),
]


@pytest.mark.parametrize(("mutant", "hunt"), MUTANTS, ids=[f"{m.__name__}-{i}" for i, (m, _) in enumerate(MUTANTS)])
def test_planted_mistakes_are_found(
    mutant: Callable[[pytest.MonkeyPatch], None], hunt: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    assert hunt() > 0
