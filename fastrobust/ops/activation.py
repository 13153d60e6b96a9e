"""Activations of interval propagation: value and slope of each, for the reference; numbers as the kernels have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "Function"]


class Function(NamedTuple):
    """f and f', of (x, a, b); `turn` is where f stops falling and begins to rise, None where it never falls."""

    code: int
    value: Callable[[Tensor, float, float], Tensor]
    slope: Callable[[Tensor, float, float], Tensor]
    turn: float | None = None


def _silu_slope(x: Tensor, a: float, b: float) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _gelu_slope(x: Tensor, a: float, b: float) -> Tensor:
    below: Tensor = torch.special.ndtr(x)
    return below + x * torch.exp(-x * x / 2) * 0.3989422804014327


def _gelu_tanh_slope(x: Tensor, a: float, b: float) -> Tensor:
    c = 0.7978845608028654
    t = torch.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


def _softplus(x: Tensor, a: float, b: float) -> Tensor:
    return F.softplus(x, a, b)


ACTIVATIONS: dict[str, Function] = {
    "identity": Function(9, lambda x, a, b: x, lambda x, a, b: torch.ones_like(x)),
    "relu": Function(10, lambda x, a, b: x.clamp(min=0), lambda x, a, b: (x > 0).to(x.dtype)),
    "leaky_relu": Function(0, lambda x, a, b: torch.where(x > 0, x, a * x),
                            lambda x, a, b: torch.where(x > 0, 1.0, a).to(x.dtype)),
    "hardtanh": Function(8, lambda x, a, b: x.clamp(a, b), lambda x, a, b: ((x > a) & (x < b)).to(x.dtype)),
    "tanh": Function(2, lambda x, a, b: torch.tanh(x), lambda x, a, b: 1 / torch.cosh(x) ** 2),
    "sigmoid": Function(1, lambda x, a, b: torch.sigmoid(x), lambda x, a, b: torch.sigmoid(x) * torch.sigmoid(-x)),
    "softplus": Function(6, _softplus, lambda x, a, b: torch.where(a * x > b, 1.0, torch.sigmoid(a * x)).to(x.dtype)),
    "elu": Function(7, lambda x, a, b: F.elu(x, a),
                     lambda x, a, b: torch.where(x > 0, 1.0, a * x.clamp(max=0).exp()).to(x.dtype)),
    "silu": Function(3, lambda x, a, b: F.silu(x), _silu_slope, -1.2784645427610738),
    "gelu": Function(4, lambda x, a, b: F.gelu(x), _gelu_slope, -0.7517915246935645),
    "gelu_tanh": Function(5, lambda x, a, b: F.gelu(x, approximate="tanh"), _gelu_tanh_slope, -0.7524614220710162),
}  # fmt: skip
"""By name; a and b are the slope of "leaky_relu", the ends of "hardtanh", beta and threshold of "softplus", alpha of
"elu"."""
