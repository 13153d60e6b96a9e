"""CROWN's step through an activation, for training: linear functions of its result, brought to its input."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastrobust import _checks
from fastrobust._registry import OpSpec, direct, register
from fastrobust.ops.perturb import DTYPE_CODE, device_guard, where_to

__all__ = ["CROWN_TERMS", "crown_lines"]

CROWN_TERMS = 64  # roundings of weight's type that a term of the constant may pass through; its sums end in float64


# --- public function --------------------------------------------------------------------------------------------


def crown_lines(
    weight: Tensor, low_slope: Tensor, low: Tensor, high_slope: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """<weight, y> from below, for y between low_slope x + low and high_slope x + high (Zhang et al., NeurIPS 2018).

    <weight, y> >= <moved, x> + constant, each weight taking the line below where it is positive, else that above. No
    rounding is allowed for; that of a term of the constant is at most `CROWN_TERMS` roundings in weight's type.

    Args:
        weight: (batch, rows, ...), float32 or float64.
        low_slope, low, high_slope, high: (batch, ...), dtype of weight.

    Returns:
        moved, like weight, and constant (batch, rows), float64; differentiable with respect to all.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    where = "crown_lines"
    _checks.check_tensor(where, "weight", weight, _checks.ITERATES)
    lines = {"low_slope": low_slope, "low": low, "high_slope": high_slope, "high": high}
    for name, value in lines.items():
        _checks.check_tensor(where, name, value, (weight.dtype,))
        if weight.dim() < 2 or value.shape != weight.shape[:1] + weight.shape[2:]:
            raise ValueError(
                f"{where}: {name} must have the shape of weight (batch, rows, ...) without its rows, "
                f"got {tuple(value.shape)} beside {tuple(weight.shape)}"
            )
    arguments = (weight, *lines.values())
    needs = torch.is_grad_enabled() and any(value.requires_grad for value in arguments)
    found: tuple[Tensor, Tensor] = LINES.run(*arguments) if direct() and not needs else LINES.op(*arguments)
    return found


# --- reference --------------------------------------------------------------------------------------------------


def _reference(
    weight: Tensor, low_slope: Tensor, low: Tensor, high_slope: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    above = weight > 0
    constant = (weight * torch.where(above, low[:, None], high[:, None])).flatten(2).sum(2, dtype=torch.float64)
    return weight * torch.where(above, low_slope[:, None], high_slope[:, None]), constant


def _reference_backward(
    grad_moved: Tensor, grad_constant: Tensor, weight: Tensor, low_slope: Tensor, low: Tensor, high_slope: Tensor,
    high: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    c = grad_constant.to(weight.dtype).view(*weight.shape[:2], *[1] * (weight.dim() - 2))
    above = weight > 0
    by_weight = grad_moved * torch.where(above, low_slope[:, None], high_slope[:, None])
    by_weight = by_weight + c * torch.where(above, low[:, None], high[:, None])
    plus, minus = weight.clamp(min=0), weight.clamp(max=0)
    return (
        by_weight, (grad_moved * plus).sum(1), (c * plus).sum(1), (grad_moved * minus).sum(1), (c * minus).sum(1),
    )  # fmt: skip


# --- native -----------------------------------------------------------------------------------------------------


def _native(module: ModuleType, *values: Tensor) -> tuple[Tensor, Tensor]:
    weight, *lines = (value.contiguous() for value in values)
    out = _fake(weight, *lines)
    if weight.numel():
        with device_guard(weight):
            module.crown_lines(*_place(weight, lines), *(part.data_ptr() for part in out), where_to(weight))
    else:
        out[1].zero_()
    return out


def _native_backward(module: ModuleType, *values: Tensor) -> tuple[Tensor, ...]:
    grad_moved, grad_constant, weight, *lines = (value.contiguous() for value in values)
    grad_constant = grad_constant.double()
    out = _fake_backward(grad_moved, grad_constant, weight, *lines)
    if weight.numel():
        with device_guard(weight):
            module.crown_lines_backward(
                *_place(weight, lines), grad_moved.data_ptr(), grad_constant.data_ptr(),
                *(part.data_ptr() for part in out), where_to(weight),
            )  # fmt: skip
    else:
        for part in out:
            part.zero_()
    return out


def _place(weight: Tensor, lines: list[Tensor]) -> tuple[int, ...]:
    shape = weight.shape
    addresses = (weight.data_ptr(), *(line.data_ptr() for line in lines))
    return (*addresses, DTYPE_CODE[weight.dtype], shape[0], shape[1], shape[2:].numel())


# --- fake, backward, registration -------------------------------------------------------------------------------


def _fake(weight: Tensor, *lines: Tensor) -> tuple[Tensor, Tensor]:
    moved = torch.empty_like(weight, memory_format=torch.contiguous_format)
    return moved, weight.new_empty(weight.shape[:2], dtype=torch.float64)


def _fake_backward(grad_moved: Tensor, grad_constant: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(value, memory_format=torch.contiguous_format) for value in values)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_moved: Tensor, grad_constant: Tensor) -> tuple[Tensor, ...]:
    arguments = (grad_moved, grad_constant, *ctx.saved_tensors)
    found: tuple[Tensor, ...] = BACKWARD.run(*arguments) if direct() else BACKWARD.op(*arguments)
    return found


def _samples(device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for batch, rows, shape in ((3, 5, (4, 7, 3)), (2, 1, (1100,)), (1, 9, (1,))):
            sizes = [(batch, rows, *shape), *[(batch, *shape)] * 4]
            yield tuple(torch.randn(size, dtype=dtype, generator=generator).to(device) for size in sizes)


def _backward_samples(device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    for arguments in _samples(device):
        moved, constant = _reference(*arguments)
        yield torch.cos(moved), torch.sin(constant), *arguments


LINES = register(
    OpSpec(
        "crown_lines",
        "(Tensor weight, Tensor low_slope, Tensor low, Tensor high_slope, Tensor high) -> (Tensor, Tensor)",
        _reference,
        _native,
        _fake,
        _samples,
        (_setup_context, _backward),
        tolerance=1e-6,  # the constant is a double made of sums of weight's type
    )
)
BACKWARD = register(
    OpSpec(
        "crown_lines_backward",
        "(Tensor grad_moved, Tensor grad_constant, Tensor weight, Tensor low_slope, Tensor low, Tensor high_slope, "
        "Tensor high) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _reference_backward,
        _native_backward,
        _fake_backward,
        _backward_samples,
    )
)
