"""What a hunt for unsound bounds found once: each case was wrong, or would be without its term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrobust as fr

METHODS = (fr.bounds.ibp, fr.bounds.crown_ibp, fr.bounds.crown)


class Told(nn.Module):
    """A model that is a function of itself and x."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def holds(model: nn.Module, x: Tensor, *points: Tensor, sound: str = "float32") -> None:
    """The float32 and the float64 result at x, as a set of one point, lie in their bounds."""
    for method in METHODS:
        bounds = method(model, x, (x, x), sound)
        for y in (*points, *([model(x)] if sound == "float32" else [])):
            assert bool(((bounds.lower.double() <= y) & (y <= bounds.upper.double())).all()), method.__name__


def test_balls_do_not_pass_through_repeated_elements() -> None:
    def function(self: Told, x: Tensor) -> Tensor:
        wide = F.interpolate(x[:, None], scale_factor=16.0, mode="nearest").flatten(1)
        out: Tensor = self.last(torch.relu(self.first(wide)))
        return out

    model = Told(function, first=nn.Linear(64, 1), last=nn.Linear(1, 2)).eval()
    model.first.weight.data.fill_(1)
    model.first.bias.data.fill_(-33)
    model.last.weight.data, model.last.bias.data = torch.tensor([[-1.0], [0.0]]), torch.tensor([1.0, 0.0])
    x, y = torch.full((1, 4), 0.5), torch.tensor([0])
    assert int(model(x + 0.04995).argmax()) == 1
    assert fr.bounds.certify(model, x, y, fr.L2(0.1)).verdict != ["robust"]
    assert 0.06 < float(fr.bounds.certified_radius(model, x, y, "L2", 0.5)) <= 0.0625


@pytest.mark.parametrize("value", [-1.0, 0.5, -torch.inf])
def test_constants_put_in_are_refused(value: float) -> None:
    model, x = nn.Sequential(nn.ConstantPad1d(1, value), nn.Linear(6, 3)), torch.rand(2, 4)
    with pytest.raises(ValueError, match="constant other than 0"):
        fr.bounds.crown(model, x, fr.Linf(0.01))
    if value > -torch.inf:  # compiled, the graph itself runs
        torch.testing.assert_close(fr.network.compile(model, x)(x), model(x))


def test_what_others_read_is_not_overwritten() -> None:
    def function(self: Told, x: Tensor) -> Tensor:
        h = self.first(x)
        h[:, :4].relu_()
        out: Tensor = self.last(h)
        return out

    for model in (
        Told(function, first=nn.Linear(4, 8), last=nn.Linear(8, 3)),
        nn.Sequential(nn.Hardtanh(0.4, 0.6, inplace=True), nn.Linear(4, 3)),
    ):
        with pytest.raises(ValueError, match="overwrites the input, or what others read"):
            fr.bounds.certify(model, torch.rand(2, 4), torch.zeros(2, dtype=torch.int64), fr.Linf(0.01))


@pytest.mark.parametrize(("beta", "threshold"), [(3.0, 20.0), (0.3, 20.0), (4.38, 0.42), (3.2, 2.6), (0.5, -2.0)])
def test_softplus_with_other_parameters(beta: float, threshold: float) -> None:
    model = nn.Sequential(nn.Softplus(beta, threshold))
    x = torch.cat([torch.linspace(-80, 10, 20_001) / beta, threshold / beta * (1 + torch.linspace(-1, 1, 2001) * 1e-6)])
    holds(model, x[:, None], model(x[:, None]))
    with pytest.raises(ValueError, match="beta that is not positive"):
        fr.bounds.ibp(nn.Sequential(nn.Softplus(-1.0, 0.5)), x[:1, None], fr.Linf(0.1, box=(-1e3, 1e3)))


def test_models_that_change_are_captured_again() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
            self.last.weight, self.settings = self.first.weight, {"slope": 0.1}

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(F.leaky_relu(self.first(x), self.settings["slope"]))
            return out

    torch.manual_seed(0)
    model, x = Changing().eval(), torch.rand(4, 3) - 0.5
    holds(model, x)
    model.settings["slope"] = 0.9
    holds(model, x)
    model.last.weight = nn.Parameter(torch.rand(3, 3))
    holds(model, x)
    model.last.bias = nn.Parameter(torch.rand(3))
    holds(model, x)
    model.last.bias = None
    holds(model, x)


def test_other_dtypes_within_are_refused() -> None:
    x = torch.rand(2, 4)
    for function in (
        lambda self, x: torch.softmax(x, 1, dtype=torch.bfloat16) * 1.0,
        lambda self, x: x.mean(1, keepdim=True, dtype=torch.float64),
    ):
        with pytest.raises(ValueError, match="in another dtype"):
            fr.bounds.ibp(Told(function), x, fr.Linf(0.01))
    with pytest.raises(ValueError, match="x must have the model's dtype"):
        fr.bounds.ibp(nn.Linear(4, 2), x.double(), fr.Linf(0.01))


def test_pools_with_many_terms() -> None:
    def spread(self: Told, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 64)
        for _ in range(6):
            x = F.avg_pool2d(x, 2)
        return x.flatten(1) * 0.1

    holds(Told(spread), torch.ones(1, 1, 1, 1), torch.full((1, 1), 0.1))
    torch.manual_seed(0)
    for x, function in (
        (torch.rand(1, 5000), lambda self, x: F.avg_pool1d(x, 5000)),
        (torch.rand(1, 3000), lambda self, x: F.adaptive_avg_pool1d(x, 1)),
        (torch.rand(1, 50, 60), lambda self, x: F.adaptive_avg_pool2d(x, 1).flatten(1)),
    ):
        total = x[0].flatten()[:1].clone()
        for value in x[0].flatten()[1:]:
            total += value
        holds(Told(function), x, total / x[0].numel(), x.double().mean())


def test_extreme_magnitudes() -> None:
    overflowing = nn.Linear(4, 1, bias=False)
    overflowing.weight.data = torch.tensor([[3e38, 3e38, -3e38, -3e38]])
    holds(overflowing, torch.ones(1, 4), torch.zeros(1, 1), sound="exact")
    vanishing = nn.Linear(1000, 1, bias=False)
    vanishing.weight.data.fill_(1e-25)
    holds(vanishing, torch.full((1, 1000), 5e-21), torch.zeros(1, 1))
    product = Told(lambda self, x: (x[:, :1] * x[:, 1:2]) * 1e-20)
    x = torch.tensor([[1e10, 1e-30]])
    holds(product, x, product.double()(x.double()))
    tail = torch.linspace(-90.45, -88.73, 1001)[:, None]
    holds(nn.Sequential(nn.SiLU()), tail, F.silu(tail.double()))
    huge = torch.tensor([[0.0, 1e30, 3.0]])
    holds(nn.Sequential(nn.Softmax(1)), huge, torch.tensor([[0.0, 1.0, 0.0]]))
    norm = nn.BatchNorm1d(1).eval()
    norm.weight.data.fill_(1e-40)
    with pytest.raises(ValueError, match="smaller than the smallest normal number"):
        fr.bounds.ibp(norm, torch.rand(2, 1), fr.Linf(0.1))


def test_models_that_depend_on_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="mixes samples"):
        fr.bounds.ibp(Told(lambda self, x: torch.roll(x, 2, 0)), torch.rand(4, 3), fr.Linf(0.1))
    with pytest.raises(fr.network.CaptureError, match="cannot be exported"):
        fr.bounds.ibp(Told(lambda self, x: x * 2 if len(x) > 1 else x * 3), torch.rand(1, 3), fr.Linf(0.1))


def test_settings_of_precision_are_as_before() -> None:
    products = torch.backends.cuda.matmul
    if not hasattr(products, "fp32_precision"):  # torch before 2.9 has flags alone
        return
    model, x = nn.Linear(3, 2), torch.rand(1, 3)
    fr.bounds.ibp(model, x, fr.Linf(0.1))  # torch.export itself sets what it only should restore
    before = torch.backends.fp32_precision, products.fp32_precision
    try:
        for setting in ("tf32", "ieee", before[0]):
            torch.backends.fp32_precision = setting
            seen = products.fp32_precision
            fr.bounds.ibp(model, x, fr.Linf(0.1))
            assert products.fp32_precision == seen
    finally:
        torch.backends.fp32_precision = before[0]
    assert products.fp32_precision == before[1]


def test_constants_made_by_the_models_code() -> None:
    holds(Told(lambda self, x: x * torch.tensor(2.0) + torch.tensor([1.0, 2.0])), torch.rand(3, 2))


@pytest.mark.parametrize("scale", [1e-3, 1e-40, 1e-150])
def test_slopes_of_float64_that_underflow_are_allowed_for(scale: float) -> None:
    """A slope near 1e-300 times a scale is 0 in float64; the weight of 1e300 behind makes it matter."""
    first, last = nn.Linear(1, 1).double(), nn.Linear(1, 1).double()
    for layer, weight, bias in ((first, 1 / scale, -690 / scale), (last, 1e300, 0.0)):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = first, last
            self.register_buffer("scale", torch.tensor([scale], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(torch.sigmoid(self.first(x) * self.scale))
            return out

    low = torch.zeros(1, 1, dtype=torch.float64)
    z = Scaled()(torch.linspace(0, 1, 5, dtype=torch.float64)[:, None])
    for method in (fr.bounds.crown_ibp, fr.bounds.crown):
        for sound in ("exact", "float32"):
            found = method(Scaled().eval(), low, (low, low + 1), sound)
            assert (found.lower <= z).all()
            assert (z <= found.upper).all()
