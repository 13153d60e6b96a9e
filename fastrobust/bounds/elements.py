"""Affine layers that work element by element: scales and shifts, moves, sums, concatenation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from fastrobust.bounds.affine import Affine
from fastrobust.bounds.guarantee import SAFE, Guarantee, finite
from fastrobust.bounds.interval import Ball, Interval
from fastrobust.bounds.layers import Boxes, Layer, Lines, Sums, Tensors, Window, cropped, dot_size, total

__all__ = ["BatchNorm", "Concat", "Move", "Scale", "Sum"]


class Scale(Affine):
    """x * scale + shift, elementwise, by numbers that `factors` makes of the tensors in float64.

    Args:
        factors: gives scale and shift, either None for 1 and 0, and the size of what the shift's errors are relative
            to; each broadcasts against (batch, ...).
        roundings: in an evaluation, that of the factors included.
    """

    def __init__(
        self, factors: Callable[[Tensors], tuple[Tensor | None, Tensor | None, Tensor | None]], dtype: torch.dtype,
        roundings: int,
    ) -> None:  # fmt: skip
        self.factors, self.dtype, self.fan, self.fan_back = factors, dtype, roundings, roundings

    def linear(self, x: Tensor, tensors: Tensors, absolute: bool = False) -> Tensor:
        scale = self.factors(tensors)[0]
        if scale is None:
            return x
        return x * (scale.abs() if absolute else scale).to(x.dtype)

    def transposed(self, y: Tensor, tensors: Tensors) -> Tensor:
        return self.linear(y, tensors)

    def bias(self, tensors: Tensors) -> Tensor | None:
        shift = self.factors(tensors)[1]
        return None if shift is None else shift.to(self.dtype)

    def bias_size(self, tensors: Tensors) -> Tensor | None:
        size = self.factors(tensors)[2]
        return None if size is None else size.to(self.dtype) * SAFE

    def through_ball(
        self, box: Interval, ball: Ball, ends: tuple[Tensor, Tensor], tensors: Tensors, g: Guarantee
    ) -> Interval:
        scale = self.linear(ball.scale, tensors, absolute=True) * (1 + g.own_error(self.fan + 4))
        return replace(box, ball=replace(ball, lower=ends[0], upper=ends[1], scale=scale))

    def window(self, out: Window) -> tuple[Layer, Window] | None:
        def factors(tensors: Tensors) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
            scale, shift, size = (None if part is None else cropped(part, out) for part in self.factors(tensors))
            return scale, shift, size

        part = copy(self)
        part.factors = factors
        return part, out


class BatchNorm(Scale):
    """Batch norm with running statistics: (x - mean) / sqrt(var + eps) * weight + bias, for each channel.

    Args:
        weight, bias, mean, var: their numbers; of the first two None for 1 and 0.
        dims: dimensions of x, the batch included.
    """

    def __init__(
        self, weight: int | None, bias: int | None, mean: int, var: int, eps: float, dims: int, dtype: torch.dtype
    ) -> None:
        self.weight, self.at_bias, self.mean, self.var = weight, bias, mean, var
        self.eps, self.channels = eps, (1, -1) + (1,) * (dims - 2)
        super().__init__(self._factors, dtype, 16)  # in any order and with an approximate root

    def _factors(self, tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        w, b = (None if k is None else tensors[k].double().reshape(self.channels) for k in (self.weight, self.at_bias))
        m, v = (tensors[k].double().reshape(self.channels) for k in (self.mean, self.var))
        scale = torch.rsqrt(v + self.eps)
        scale = scale if w is None else scale * w
        offset = -m * scale
        if b is None:
            return scale, offset, offset.abs()
        return scale, offset + b, offset.abs() + b.abs()


class Move(Affine):
    """Elements moved, repeated, left out, or 0 put between: element i is order[i] of the input, -1 a 0."""

    def __init__(self, order: Sequence[int], sample: tuple[int, ...], shape: tuple[int, ...]) -> None:
        self.sample, self.shape = sample, shape
        numbers = torch.tensor(order, dtype=torch.int64)
        whole = len(order) == math.prod(sample) and bool((numbers == torch.arange(len(order))).all())
        self.order = None if whole else numbers
        self.fan_back = max(0, int(torch.bincount(numbers[numbers >= 0], minlength=1).max()) - 1)

    def linear(self, x: Tensor, tensors: Tensors, absolute: bool = False) -> Tensor:
        if self.order is None:
            return x.reshape(len(x), *self.shape)
        order = self.order = self.order.to(x.device)
        picked = x.flatten(1).index_select(1, order.clamp(min=0))
        return picked.masked_fill(order < 0, 0).reshape(len(x), *self.shape)

    def transposed(self, y: Tensor, tensors: Tensors) -> Tensor:
        if self.order is None:
            return y.reshape(len(y), *self.sample)
        order = self.order = self.order.to(y.device)
        kept = y.flatten(1).masked_fill(order < 0, 0)
        total = y.new_zeros(len(y), math.prod(self.sample)).index_add(1, order.clamp(min=0), kept)
        return total.reshape(len(y), *self.sample)

    def interval(self, inputs: Boxes, tensors: Tensors, g: Guarantee) -> Interval:
        (x,) = inputs
        if self.fan_back:  # an element that is repeated makes a vector longer: a ball holds it no more
            x = replace(x, ball=None)
        return x.moved(lambda end: self.linear(end, tensors))


class Sum(Layer):
    """x + alpha y of two activations."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def interval(self, inputs: Boxes, tensors: Tensors, g: Guarantee) -> Interval:
        x, y = inputs
        ends = (y.lower, y.upper) if self.alpha >= 0 else (y.upper, y.lower)
        if abs(self.alpha) == 1:  # rounding is monotone, so one operation's ends enclose all evaluations
            low, high = (end * self.alpha for end in ends)
        else:
            low, high = g.widen(ends[0] * self.alpha, ends[1] * self.alpha, 3, 3)
        return Interval(*finite(g.down(x.lower + low), g.up(x.upper + high)))

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        g = sums.g
        if g.sound:
            x, y = inputs
            size = (x.size() + abs(self.alpha) * y.size()) * SAFE
            sums.allow((g.own_error(3) + g.net_error(3)) * dot_size(weight, size, g))
            if abs(self.alpha) != 1:
                sums.allow(g.underflow(4) * (total(weight) + total(y.size()[:, None])))
        return [weight, weight if self.alpha == 1 else weight * self.alpha]

    def window(self, out: Window) -> tuple[Layer, Window] | None:
        return self, out


class Concat(Layer):
    """Activations side by side along a dimension of the sample."""

    def __init__(self, dim: int, sizes: Sequence[int]) -> None:
        self.dim, self.sizes = dim, list(sizes)

    def interval(self, inputs: Boxes, tensors: Tensors, g: Guarantee) -> Interval:
        lower, upper = (torch.cat(ends, self.dim) for ends in ([x.lower for x in inputs], [x.upper for x in inputs]))
        return Interval(lower, upper)

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        return list(weight.split(self.sizes, self.dim + 1))

    def window(self, out: Window) -> tuple[Layer, Window] | None:
        return (self, out) if self.dim == 1 else None
