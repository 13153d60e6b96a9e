"""Every method of convolution is as near to the truth as PyTorch's."""

from __future__ import annotations

import itertools

import pytest
import torch
from sample_nets import eager, native
from torch import nn

from fastrobust.network import compile

SHAPES = [  # channels, outputs, rows, columns
    (12, 12, 8, 8), (16, 31, 7, 9), (33, 16, 1, 5), (64, 64, 4, 4), (13, 12, 2, 1), (48, 48, 5, 6), (32, 64, 11, 4),
    (4, 4, 6, 6),
]  # fmt: skip
METHODS = [(1, 0), (1, 1), (1, 2), (2, 1), (2, 0)]  # stride, padding


@native
@pytest.mark.parametrize(("shape", "method"), list(itertools.product(SHAPES, METHODS)), ids=str)
def test_three_by_three(shape: tuple[int, int, int, int], method: tuple[int, int]) -> None:
    channels, outputs, rows, columns = shape
    stride, padding = method
    if min(rows, columns) + 2 * padding < 3:
        padding = 1
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, outputs, 3, stride, padding), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * outputs, 3),
    ).eval()  # fmt: skip
    x, y = torch.randn(18, channels, rows, columns), torch.randint(3, (18,))
    compiled = compile(model, x)
    have, usual = compiled.gradient(x, y)[::3], eager(model, x, y)
    truth = eager(model.double(), x.double(), y)
    for ours, theirs, exact in zip(have, usual, truth, strict=True):
        size = float(exact.abs().max())
        error, eager_error = (float((v.double() - exact).abs().max()) for v in (ours, theirs))
        assert error <= 4 * eager_error + 1e-6 * size


@native
def test_zeros_around_stay_zeros() -> None:
    """Values of one shape share memory, borders included; what the first passes leave there must not matter."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *[layer for _ in range(5) for layer in (nn.Conv2d(12, 12, 3, padding=1), nn.Tanh())], nn.Flatten(),
        nn.Linear(12 * 49, 3),
    ).eval()  # fmt: skip
    x, y = 10 * torch.randn(16, 12, 7, 7), torch.randint(3, (16,))
    compiled = compile(model, x)
    first = compiled.gradient(x, y)
    compiled.gradient(x * float("inf"), y)
    assert all(map(torch.equal, first, compiled.gradient(x, y)))
