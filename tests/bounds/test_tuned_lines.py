"""Lines that alpha-CROWN tunes: tighter ones, and below and above their functions whatever the search finds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastrobust as fr
from fastrobust.bounds.captured import program_for
from fastrobust.bounds.guarantee import guarantee
from fastrobust.bounds.interval import Interval
from fastrobust.bounds.layers import Sums
from fastrobust.bounds.nonlinear import MaxPool


def pools() -> list[nn.Module]:
    """Max pools; windows that overlap, and whose first ones are padding in part."""
    return [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 3, ceil_mode=True)]


TUNED = [nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.ELU(), nn.Hardtanh(), nn.LeakyReLU(), nn.GELU(), nn.SiLU()]


@pytest.mark.parametrize("layer", [*TUNED, *pools()], ids=str)
def test_alpha_crown_tunes_all_lines(layer: nn.Module) -> None:
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.Unflatten(1, (1, 5, 5)), layer, nn.Flatten())
    middle = pooled if isinstance(layer, nn.MaxPool2d) else layer
    first = 25 if middle is pooled else 24
    width = middle(torch.zeros(1, first)).shape[1]
    parts = [nn.Linear(6, first), middle, nn.Linear(width, first), middle, nn.Linear(width, 3)]
    model = nn.Sequential(*parts).eval()
    for p in model.parameters():
        p.data.mul_(2)
    x, eps = torch.rand(3, 6), 0.15
    threat = fr.Linf(eps, box=(-1, 2))
    found, plain = fr.bounds.alpha_crown(model, x, threat), fr.bounds.crown(model, x, threat)
    widths = [(b.upper - b.lower).mean() for b in (found, plain)]
    assert widths[0] < widths[1] * (1 - 1e-3)
    assert (found.lower >= plain.lower).all()
    assert (found.upper <= plain.upper).all()
    for k in range(400):
        step = 2 * torch.rand_like(x) - 1
        z = model(x + (eps * (step.sign() if k % 2 else step)).clamp(-eps, eps) * (1 - 2**-20))
        assert (found.lower <= z).all()
        assert (z <= found.upper).all()


@pytest.mark.parametrize("pool", pools(), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_mean_of_a_window_is_below_its_maximum(pool: nn.Module, dtype: torch.dtype) -> None:
    """Soundly: at single points, where nothing but roundings is between the bound and the value, with wild shares."""
    torch.manual_seed(0)
    layer = rule_of(pool, dtype)
    exact = guarantee("test", "exact", dtype)
    for scale in (1e-30, 1.0, 1e30):
        x = scale * torch.randn(64, 2, 5, 5, dtype=dtype)
        box = Interval(x, x)
        out = layer.interval([box], [], exact)
        lines = layer.relax([box], out, [], exact)
        assert lines is not None
        for shares in (torch.rand, torch.zeros, torch.ones, torch.randn):
            free = shares(64, 3, *layer.choice(lines).shape[1:], dtype=dtype).clamp(min=0)
            weight = torch.randn(64, 3, *out.lower.shape[1:], dtype=dtype)
            sums = Sums(weight.new_zeros(64, 3).double(), weight.new_zeros(64, 3).double(), exact)
            (back,) = layer.back(weight, [box], layer.with_shares(lines, free), [], sums)
            low = (back.double() * x[:, None].double()).flatten(2).sum(2) + sums.value - sums.error
            true = (weight.double() * layer.pool(x)[:, None].double()).flatten(2).sum(2)
            assert (low <= true + 1e-13 * (weight.abs() * layer.pool(x.abs())[:, None]).flatten(2).sum(2)).all()


def rule_of(pool: nn.Module, dtype: torch.dtype) -> MaxPool:
    """The layer that bounds make of it."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1), pool, nn.Flatten()).to(dtype)
    found = program_for("test", model, torch.zeros(1, 2, 5, 5, dtype=dtype)).steps[1].layer
    assert isinstance(found, MaxPool)
    return found
