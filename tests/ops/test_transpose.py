"""The transpose of a convolution against autograd's, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrobust import ops

WHOLE = st.integers(1, 4)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 35), WHOLE, WHOLE, st.tuples(WHOLE, WHOLE), st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(WHOLE, WHOLE), st.tuples(st.integers(0, 3), st.integers(0, 3)), st.tuples(st.integers(1, 2), WHOLE),
    st.sampled_from([1, 1, 2, 3]),
)  # fmt: skip
def test_it_is_the_gradient_of_a_convolution(
    rows: int, outputs: int, channels: int, result: tuple[int, int], kernel: tuple[int, int],
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int,
) -> None:  # fmt: skip
    size = [
        max(1, (n - 1) * s + d * (k - 1) + 1 - 2 * p + (n % s))
        for n, s, k, d, p in zip(result, stride, kernel, dilation, padding, strict=True)
    ]
    if any(n + 2 * p < d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
        return
    x = torch.randn(rows, channels * groups, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(outputs * groups, channels, *kernel, dtype=torch.float64)
    z = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    y = torch.randn_like(z)
    (expected,) = torch.autograd.grad((z * y).sum(), x)
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        got = ops.convolution_transposed(y.to(dtype), weight.to(dtype), size, stride, padding, dilation, groups)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=close * weight.numel())


def test_gradients() -> None:
    y = torch.randn(3, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 1, 3, 2, dtype=torch.float64, requires_grad=True)
    settings_ = (5, 6), (2, 3), (1, 0), (1, 2), 2
    assert torch.autograd.gradcheck(lambda y, w: ops.convolution_transposed(y, w, *settings_), (y, weight))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"size": (0, 5)}, "size must be two integers >= 1"), ({"padding": (-1, 0)}, "padding must be"),
     ({"stride": (1,)}, "stride must be two"), ({"groups": 3}, "y must have the 4 outputs"),
     ({"y": torch.zeros(2, 3, 3, 3)}, "y must have the 4 outputs"), ({"y": torch.zeros(2, 4, 9)}, "y must have 4 dim"),
     ({"weight": torch.zeros(4, 2, 3, 3, dtype=torch.float64)}, "weight must have dtype float32")],
)  # fmt: skip
def test_wrong_arguments_are_named(change: dict[str, Any], says: str) -> None:
    given_ = {"y": torch.zeros(2, 4, 3, 3), "weight": torch.zeros(4, 2, 3, 3), "size": (5, 5)} | change
    with pytest.raises((ValueError, TypeError), match=says):
        ops.convolution_transposed(**given_)


@pytest.mark.parametrize(("rows", "channels", "kernel"), [(0, 2, 3), (3, 0, 3), (3, 2, 0)])
def test_nothing_to_add_up(rows: int, channels: int, kernel: int) -> None:
    got = ops.convolution_transposed(torch.ones(rows, 4, 3, 3), torch.ones(4, channels, kernel, kernel), (5, 5))
    assert torch.equal(got, torch.zeros(rows, channels, 5, 5))
