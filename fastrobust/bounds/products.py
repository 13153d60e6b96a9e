"""Matrix products and convolutions of points and radii, W p and |W| r, with one gradient for W."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastrobust.bounds.affine import Convolution, Linear
from fastrobust.ops.interval_linear import BACKWARD, LINEAR

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
        if isinstance(layer, Linear):
            ends = LINEAR.run(points.flatten(0, -2), radius.flatten(0, -2), weight)
            return tuple(end.unflatten(0, part.shape[:-1]) for end, part in zip(ends, (points, radius), strict=True))
        return layer.convolve(points, weight), layer.convolve(radius, weight.abs())

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
        needs = ctx.needs_input_grad[3] or ctx.needs_input_grad[4], ctx.needs_input_grad[5], False
        layer, flat = ctx.layer, (part.flatten(0, -2) for part in (*grads, points, radius))
        if isinstance(layer, Linear):
            by_points, by_radius, by_weight = BACKWARD.run(*flat, weight)
            return None, None, None, by_points.view_as(points), by_radius.view_as(radius), by_weight
        stride, padding, dilation, groups = layer.settings
        parts = [
            torch.ops.aten.convolution_backward(
                grad, x, w, None, stride, padding, dilation, False, [0] * layer.dims, groups, needs
            )
            for grad, x, w in zip(grads, (points, radius), (weight, weight.abs()), strict=True)
        ]
        by_weight = parts[0][1].addcmul_(parts[1][1], weight.sign()) if needs[1] else None
        return None, None, None, parts[0][0], parts[1][0], by_weight
