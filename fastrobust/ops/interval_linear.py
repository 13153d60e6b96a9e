"""Linear layers of interval propagation: W p and |W| r of one reading of W, whose magnitudes are nowhere stored."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust import _checks
from fastrobust._registry import OpSpec, direct, register
from fastrobust.ops.perturb import pointer, where_to

__all__ = ["BACKWARD", "LINEAR", "interval_linear"]


# --- public function --------------------------------------------------------------------------------------------


def interval_linear(points: Tensor, radius: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """points W^T and radius |W|^T: a linear layer, without its bias, of samples and of boxes (Gowal et al., ICCV 2019).

    Args:
        points: (rows, features), float32, float64 or 16 bits.
        radius: (boxes, features), dtype of points.
        weight: (outputs, features), dtype of points.

    Returns:
        (rows, outputs) and (boxes, outputs); differentiable with respect to all three.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    where = "interval_linear"
    _checks.check_tensor(where, "points", points, _checks.FLOATS)
    for name, value in (("points", points), ("radius", radius), ("weight", weight)):
        _checks.check_tensor(where, name, value, (points.dtype,))
        if value.dim() != 2 or value.shape[1] != points.shape[-1]:
            raise ValueError(f"{where}: {name} must have shape (.., {points.shape[-1]}), got {tuple(value.shape)}")
    arguments = (points, radius, weight)
    needs = torch.is_grad_enabled() and any(value.requires_grad for value in arguments)
    found: tuple[Tensor, Tensor] = LINEAR.run(*arguments) if direct() and not needs else LINEAR.op(*arguments)
    return found


# --- reference --------------------------------------------------------------------------------------------------


def _reference(points: Tensor, radius: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return F.linear(points, weight), F.linear(radius, weight.abs())


def _reference_backward(
    grad_points: Tensor, grad_radius: Tensor, points: Tensor, radius: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    by_weight = grad_points.T.matmul(points).addcmul_(grad_radius.T.matmul(radius), weight.sign())
    return grad_points.matmul(weight), grad_radius.matmul(weight.abs()), by_weight


# --- native -----------------------------------------------------------------------------------------------------


def _native(module: ModuleType, points: Tensor, radius: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    if points.dtype != torch.float32 or not hasattr(module, "interval_linear"):
        return _reference(points, radius, weight)
    points, radius, weight = points.contiguous(), radius.contiguous(), weight.contiguous()
    out, reach = _fake(points, radius, weight)
    module.interval_linear(
        *(pointer(value) for value in (points, radius, weight)), *_sizes(points, radius, weight),
        *(pointer(value) for value in (out, reach)), where_to(points),
    )  # fmt: skip
    return out, reach


def _native_backward(
    module: ModuleType, grad_points: Tensor, grad_radius: Tensor, points: Tensor, radius: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if points.dtype != torch.float32 or not hasattr(module, "interval_linear"):
        return _reference_backward(grad_points, grad_radius, points, radius, weight)
    grad_points, grad_radius, points, radius, weight = (
        value.contiguous() for value in (grad_points, grad_radius, points, radius, weight)
    )
    found = _fake_backward(grad_points, grad_radius, points, radius, weight)
    module.interval_linear_backward(
        *(pointer(value) for value in (points, radius, weight)), *_sizes(points, radius, weight),
        *(pointer(value) for value in (grad_points, grad_radius, *found)), where_to(points),
    )  # fmt: skip
    return found


def _sizes(points: Tensor, radius: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
    return len(points), len(radius), weight.shape[1], weight.shape[0]


# --- fake, backward, registration -------------------------------------------------------------------------------


def _fake(points: Tensor, radius: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    outputs = weight.shape[0]
    return points.new_empty(points.shape[0], outputs), points.new_empty(radius.shape[0], outputs)


def _fake_backward(
    grad_points: Tensor, grad_radius: Tensor, points: Tensor, radius: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    by_points, by_radius, by_weight = (points.new_empty(value.shape) for value in (points, radius, weight))
    return by_points, by_radius, by_weight


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_points: Tensor, grad_radius: Tensor) -> tuple[Tensor, ...]:
    arguments = (grad_points, grad_radius, *ctx.saved_tensors)
    found: tuple[Tensor, ...] = BACKWARD.run(*arguments) if direct() else BACKWARD.op(*arguments)
    return found


def _samples(device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    for rows, boxes, features, outputs in ((14, 5, 70, 9), (1, 1, 1, 1), (7, 4, 1029, 66), (3, 0, 33, 4)):
        points, radius, weight = (
            torch.randn(count, features, generator=generator).to(device) for count in (rows, boxes, outputs)
        )
        yield points, radius.abs(), weight


def _backward_samples(device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    for points, radius, weight in _samples(device):
        out, reach = _reference(points, radius, weight)
        yield torch.cos(out), torch.sin(reach), points, radius, weight


LINEAR = register(
    OpSpec(
        "interval_linear",
        "(Tensor points, Tensor radius, Tensor weight) -> (Tensor, Tensor)",
        _reference,
        _native,
        _fake,
        _samples,
        (_setup_context, _backward),
    )
)
BACKWARD = register(
    OpSpec(
        "interval_linear_backward",
        "(Tensor grad_points, Tensor grad_radius, Tensor points, Tensor radius, Tensor weight) "
        "-> (Tensor, Tensor, Tensor)",
        _reference_backward,
        _native_backward,
        _fake_backward,
        _backward_samples,
    )
)
