"""Matrix products and convolutions of points and radii, W p and |W| r, with one gradient for W."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust.bounds.affine import Convolution, Linear

__all__ = ["products"]

Remake = Callable[..., tuple[Tensor, Tensor]]


def products(
    layer: Linear | Convolution, points: Tensor, radius: Tensor, weight: Tensor, remake: Remake | None = None,
    source: tuple[Any, ...] = (),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """W points and |W| radius.

    `remake(*source)` gives points and radius again: then the backward pass keeps the tensors of `source` alone. |W| is
    made anew there, and nowhere kept.
    """
    kind = points.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        points, radius, weight = points.to(dtype), radius.to(dtype), weight.to(dtype)
    found: tuple[Tensor, Tensor] = _Products.apply(layer, remake, source, points, radius, weight)
    return found


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layer: Linear | Convolution, remake: Remake | None, source: tuple[Any, ...], points: Tensor,
        radius: Tensor, weight: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.layer, ctx.remake, ctx.dtype = layer, remake, points.dtype
        ctx.numbers = [None if isinstance(part, Tensor) else part for part in source]
        tensors = [part for part in source if isinstance(part, Tensor)] if remake else [points, radius]
        ctx.places = [k for k, part in enumerate(source) if isinstance(part, Tensor)]
        ctx.save_for_backward(weight, *tensors)
        return _product(layer, points, weight), _product(layer, radius, weight.abs())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, *tensors = ctx.saved_tensors
        if ctx.remake is not None:
            source = list(ctx.numbers)
            for place, tensor in zip(ctx.places, tensors, strict=True):
                source[place] = tensor
            with torch.no_grad():
                tensors = [part.to(ctx.dtype) for part in ctx.remake(*source)]
        points, radius = tensors
        needs = ctx.needs_input_grad[3] or ctx.needs_input_grad[4], ctx.needs_input_grad[5]
        by_points, by_weight = _backward(ctx.layer, grads[0], points, weight, needs)
        by_radius, by_size = _backward(ctx.layer, grads[1], radius, weight.abs(), needs)
        if by_weight is not None and by_size is not None:
            by_weight = by_weight.addcmul_(by_size, weight.sign())
        return None, None, None, by_points, by_radius, by_weight


def _product(layer: Linear | Convolution, x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight) if isinstance(layer, Linear) else layer.convolve(x, weight)


def _backward(
    layer: Linear | Convolution, grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and of the weight."""
    if isinstance(layer, Linear):
        by_x = grad.matmul(weight) if needs[0] else None
        return by_x, grad.flatten(0, -2).T.matmul(x.flatten(0, -2)) if needs[1] else None
    stride, padding, dilation, groups = layer.settings
    by_x, by_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0] * layer.dims, groups, [*needs, False]
    )
    return by_x, by_weight
