"""Boxes and lines of single functions hold them, and touch them where they can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.bounds import activations as act
from fastrobust.bounds.guarantee import guarantee
from fastrobust.bounds.interval import Interval
from fastrobust.bounds.nonlinear import Activation, Relu

FUNCTIONS: dict[str, tuple[act.Function, Callable[[Tensor], Tensor]]] = {
    "leaky_relu": (act.leaky_relu(0.1), lambda x: F.leaky_relu(x, 0.1)),
    "hardtanh": (act.hardtanh(-1.0, 2.0), lambda x: F.hardtanh(x, -1.0, 2.0)),
    "sigmoid": (act.sigmoid(), torch.sigmoid),
    "tanh": (act.tanh(), torch.tanh),
    "softplus": (act.softplus(1.0, 20.0), F.softplus),
    "softplus, steep": (act.softplus(3.0, 5.0), lambda x: F.softplus(x, 3.0, 5.0)),
    "elu": (act.elu(1.0), F.elu),
    "elu, steep": (act.elu(1.7), lambda x: F.elu(x, 1.7)),
    "silu": (act.silu(), F.silu),
    "gelu": (act.gelu("none"), F.gelu),
    "gelu, tanh": (act.gelu("tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "square": (act.square(), torch.square),
}


def between(box: Interval) -> Tensor:
    """Points of intervals (n, 1), ends and neighbours of the ends included: (n, points)."""
    low, high = box.lower, box.upper
    inner = low + (high - low) * torch.linspace(0, 1, 997)
    points = torch.cat([low, torch.nextafter(low, high), inner, torch.nextafter(high, low), high], 1)
    return torch.minimum(torch.maximum(points, low), high)


def box_of(ends: list[tuple[float, float]]) -> Interval:
    """Intervals (n, 1) from their lower ends and widths."""
    low, width = torch.tensor(ends).T
    return Interval(low[:, None], (low + width)[:, None])


INTERVALS = st.lists(
    st.one_of(
        st.tuples(st.floats(-8, 8, width=32), st.floats(0, 8, width=32)),
        st.tuples(st.floats(-100, 100, width=32), st.floats(0, 60, width=32)),
        st.tuples(st.floats(-2, 2, width=32), st.floats(0, 2.0**-10, width=32)),
    ),
    min_size=1, max_size=40,
)  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=25, deadline=None)
@given(INTERVALS)
def test_boxes_and_lines_hold_the_function(name: str, ends: list[tuple[float, float]]) -> None:
    function, evaluate = FUNCTIONS[name]
    box = box_of(ends)
    x = between(box)
    for sound in ("exact", "float32"):
        g = guarantee("test", sound, torch.float32)
        layer = Activation(function)
        out = layer.interval([box], (), g)
        lines = layer.relax([box], out, (), g)
        values = [evaluate(x.double())] + ([evaluate(x).double()] if sound == "float32" else [])
        for y in values:
            assert bool(((out.lower.double() <= y) & (y <= out.upper.double())).all())
            assert bool((lines.low_slope.double() * x + lines.low.double() <= y).all())
            assert bool((lines.high_slope.double() * x + lines.high.double() >= y).all())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lines_are_close_to_the_function(name: str) -> None:
    """Where the function is nearly straight, so are its lines: their gap falls with the square of the width."""
    function, _ = FUNCTIONS[name]
    g = guarantee("test", "exact", torch.float64)
    middle = torch.linspace(-4, 4, 41, dtype=torch.float64)[None]
    gaps = []
    for width in (0.4, 0.1):
        box = Interval(middle - width / 2, middle + width / 2)
        layer = Activation(function)
        lines = layer.relax([box], layer.interval([box], (), g), (), g)
        gaps.append((lines.high_slope - lines.low_slope) * middle + lines.high - lines.low)
    assert float(gaps[0].max()) <= 0.25
    bent = gaps[1] > 0.3 * gaps[0] + 1e-6 + function.jump  # a kink within
    assert int(bent.sum()) <= (4 if name in ("hardtanh", "leaky_relu", "elu, steep") else 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-(2.0**40), 2.0**40, width=32), st.floats(0, 2.0**40, width=32)), min_size=1))
def test_lines_of_relu_hold_it(ends: list[tuple[float, float]]) -> None:
    box = box_of(ends)
    g = guarantee("test", "exact", torch.float32)
    lines = Relu().relax([box], Relu().interval([box], (), g), (), g)
    x = between(box).double()
    assert bool((lines.low_slope.double() * x + lines.low.double() <= x.relu()).all())
    assert bool((lines.high_slope.double() * x + lines.high.double() >= x.relu()).all())


def test_softmax_and_max_pool_hold_every_point() -> None:
    torch.manual_seed(0)
    softmax = nn.Sequential(nn.Linear(4, 6), nn.Softmax(1)).eval()
    pool = nn.Sequential(nn.MaxPool2d((2, 3), (1, 2), (1, 1), ceil_mode=True), nn.Flatten()).eval()
    for model, x in ((softmax, torch.rand(5, 4)), (pool, torch.rand(5, 2, 6, 7))):
        for method in (fr.bounds.ibp, fr.bounds.crown):
            bounds = method(model, x, fr.Linf(0.1))
            for _ in range(200):
                y = model((x + 0.1 * (2 * torch.rand_like(x) - 1)).clamp(0, 1))
                assert bool(((bounds.lower <= y) & (y <= bounds.upper)).all())
    # A window's largest element is known where it wins: the bound is then a line, not a number.
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 1] = 1
    both = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 1)).eval()
    bounds = fr.bounds.crown(both, x, fr.Linf(0.2, box=(-1.0, 2.0)), "exact")
    w, b = both[2].weight.item(), both[2].bias.item()
    assert float(bounds.upper) == pytest.approx(w + b + 0.2 * abs(w), abs=1e-5)


def test_divided_and_shifted_activations_hold_every_point() -> None:
    class Arithmetic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))

        def forward(self, x: Tensor) -> Tensor:
            h = (1 - x) / 0.3 - self.shift
            return torch.cat([h * self.shift, -h, 2 - h**2, h * torch.sigmoid(x), x - 0.5 * h, self.shift + h], 1)

    model, x = Arithmetic().eval(), torch.rand(5, 3)
    for method in (fr.bounds.ibp, fr.bounds.crown):
        bounds = method(model, x, fr.Linf(0.1))
        for _ in range(300):
            y = model((x + 0.1 * (2 * torch.rand_like(x) - 1)).clamp(0, 1))
            assert bool(((bounds.lower <= y) & (y <= bounds.upper)).all())
