"""A convolution's transpose of many functions at once: how linear relaxation goes back through one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust import _checks
from fastrobust._registry import OpSpec, direct, register
from fastrobust.ops.perturb import where_to

__all__ = ["TRANSPOSED", "convolution_transposed"]

Pair = Sequence[int]


# --- public function --------------------------------------------------------------------------------------------


def convolution_transposed(
    y: Tensor, weight: Tensor, size: Pair, stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """The gradient of <y, conv2d(x, weight)> with respect to x, each row of y being a function of the result.

    Unlike `torch.nn.functional.conv_transpose2d` it takes the input's size, and padding on one side only: what lies
    behind follows from the sizes.

    Args:
        y: (rows, outputs, height, width), float32, float64 or 16 bits.
        weight: (outputs, channels / groups, *kernel), dtype of y.
        size: the convolution's input's (height, width).
        padding: rows above, columns on the left; those below and on the right are as many as the result needs.

    Returns:
        (rows, channels, *size); differentiable with respect to y and weight.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    where = "convolution_transposed"
    for name, value in (("y", y), ("weight", weight)):
        _checks.check_tensor(where, name, value, (y.dtype,) if name == "weight" else _checks.FLOATS)
        if value.dim() != 4:
            raise ValueError(f"{where}: {name} must have 4 dimensions, got {tuple(value.shape)}")
    if weight.device != y.device:
        raise ValueError(f"{where}: weight must be on y's device {y.device}, got {weight.device}")
    for name, pair, least in (
        ("size", size, 1), ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)
    ):  # fmt: skip
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(f"{where}: {name} must be two integers >= {least}, got {tuple(pair)}")
    if groups < 1 or y.shape[1] != weight.shape[0] or y.shape[1] % groups:
        raise ValueError(
            f"{where}: y must have the {weight.shape[0]} outputs of weight in {groups} groups, got {y.shape[1]}"
        )
    arguments = (y, weight, list(size), list(stride), list(padding), list(dilation), groups)
    needs = torch.is_grad_enabled() and (y.requires_grad or weight.requires_grad)
    found: Tensor = TRANSPOSED.run(*arguments) if direct() and not needs else TRANSPOSED.op(*arguments)
    return found


# --- reference --------------------------------------------------------------------------------------------------


def _reference(
    y: Tensor, weight: Tensor, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    if not (y.numel() and weight.numel()):
        return _fake(y, weight, size, stride, padding, dilation, groups).zero_()
    rest = _rest(y, weight, size, stride, padding, dilation)
    if rest is not None:
        return F.conv_transpose2d(y, weight, None, list(stride), list(padding), rest, groups, list(dilation))
    whole = F.conv_transpose2d(y, weight, None, list(stride), 0, 0, groups, list(dilation))
    return F.pad(whole, _around(_read(y, weight, stride, dilation), size, padding))


def _rest(y: Tensor, weight: Tensor, size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> list[int] | None:
    """Where there is as much padding behind as before, rows and columns past the last window; None elsewhere."""
    read = _read(y, weight, stride, dilation)
    rest = [n + 2 * p - k for n, p, k in zip(size, padding, read, strict=True)]
    return rest if all(0 <= r < s for r, s in zip(rest, stride, strict=True)) else None


def _read(y: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> list[int]:
    """How large an image the convolution's taps cover."""
    sides = zip(y.shape[2:], stride, dilation, weight.shape[2:], strict=True)
    return [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in sides]


def _around(shape: Pair, size: Pair, padding: Pair) -> list[int]:
    """What `F.pad` has to add to make an image of `size` of what a convolution read, which starts `padding` before."""
    return [n for k in (1, 0) for n in (-padding[k], size[k] + padding[k] - shape[k])]


# --- native -----------------------------------------------------------------------------------------------------


def _native(
    module: ModuleType, y: Tensor, weight: Tensor, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    if y.dtype != torch.float32 or not hasattr(module, "convolution_transposed") or not (y.numel() and weight.numel()):
        return _reference(y, weight, size, stride, padding, dilation, groups)
    y, weight = y.contiguous(), weight.contiguous()
    out = _fake(y, weight, size, stride, padding, dilation, groups)
    module.convolution_transposed(
        y.data_ptr(), weight.data_ptr(), out.data_ptr(), len(y), tuple(out.shape[1:]), tuple(y.shape[1:]),
        tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation), groups, where_to(y),
    )  # fmt: skip
    return out


# --- fake, backward, registration -------------------------------------------------------------------------------


def _fake(y: Tensor, weight: Tensor, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    return y.new_empty(y.shape[0], weight.shape[1] * groups, *size)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, weight, *ctx.settings = inputs
    ctx.save_for_backward(y, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (y, weight), (size, stride, padding, dilation, groups) = ctx.saved_tensors, ctx.settings
    rest, needs = _rest(y, weight, size, stride, padding, dilation), (*ctx.needs_input_grad[:2], False)
    backward = torch.ops.aten.convolution_backward
    if rest is not None:
        by_y, by_weight, _ = backward(grad, y, weight, None, stride, padding, dilation, True, rest, groups, needs)
    else:
        inner = F.pad(grad, [-n for n in _around(_read(y, weight, stride, dilation), size, padding)])
        by_y, by_weight, _ = backward(inner, y, weight, None, stride, (0, 0), dilation, True, (0, 0), groups, needs)
    return by_y, by_weight, None, None, None, None, None


def _samples(device: torch.device) -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    # rows, outputs, channels, size, kernel, stride, padding, dilation, groups
    for rows, o, c, size, kernel, stride, padding, dilation, groups in (
        (37, 8, 6, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1),
        (5, 12, 4, (11, 12), (3, 5), (2, 3), (1, 2), (1, 1), 2),
        (17, 3, 9, (6, 6), (6, 6), (1, 1), (0, 0), (1, 1), 3),
        (16, 1, 1, (8, 1), (2, 1), (2, 1), (0, 0), (2, 1), 1),
        (3, 5, 2, (13, 14), (7, 9), (1, 2), (4, 0), (1, 1), 1),
    ):
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        result = [(n + p - k) // s + 1 for n, p, k, s in zip(size, padding, spans, stride, strict=True)]
        y = torch.randn(rows, o, *result, generator=generator).to(device)
        weight = torch.randn(o, c // groups, *kernel, generator=generator).to(device)
        yield y, weight, list(size), list(stride), list(padding), list(dilation), groups


TRANSPOSED = register(
    OpSpec(
        "convolution_transposed",
        "(Tensor y, Tensor weight, int[] size, int[] stride, int[] padding, int[] dilation, int groups) -> Tensor",
        _reference,
        _native,
        _fake,
        _samples,
        (_setup_context, _backward),
    )
)
