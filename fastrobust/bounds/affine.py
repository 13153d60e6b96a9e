"""Affine layers: exact for linear functions but for rounding, centre and radius for boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust import ops
from fastrobust.bounds.guarantee import SAFE, Guarantee, finite
from fastrobust.bounds.interval import Ball, Interval
from fastrobust.bounds.layers import (
    Boxes,
    Layer,
    Lines,
    Sums,
    Tensors,
    Window,
    dot,
    dot_size,
    read_by,
    sum_error,
    total,
)
from fastrobust.ops.interval_linear import LINEAR
from fastrobust.ops.transpose import TRANSPOSED

__all__ = ["Affine", "Convolution", "Linear", "Pooling"]

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Affine(Layer):
    """y = L x + b. A subclass gives L, |L|, its transpose, b, and how many roundings a result passes through.

    Attributes:
        fan: roundings of a sum of L x, in any order; with b there is one more.
        fan_back: the same of the transpose.
    """

    fan = 0
    fan_back = 0

    def linear(self, x: Tensor, tensors: Tensors, absolute: bool = False) -> Tensor:
        """L x, or |L| x."""
        raise NotImplementedError

    def both(self, x: Tensor, radius: Tensor, tensors: Tensors) -> tuple[Tensor, Tensor]:
        """L x and |L| radius."""
        return self.linear(x, tensors), self.linear(radius, tensors, absolute=True)

    def transposed(self, y: Tensor, tensors: Tensors) -> Tensor:
        """L^T y."""
        raise NotImplementedError

    def bias(self, tensors: Tensors) -> Tensor | None:
        """b, of a shape that broadcasts against (batch, ...)."""
        return None

    def bias_size(self, tensors: Tensors) -> Tensor | None:
        """What errors of b are relative to."""
        bias = self.bias(tensors)
        return None if bias is None else bias.abs()

    def row_norms(self, scale: Tensor, norm: str, tensors: Tensors) -> Tensor | None:
        """At least the norms of the rows of L times diag(scale), of the dual of `norm`: float64 (1, ...), or None."""
        return None

    def interval(self, inputs: Boxes, tensors: Tensors, g: Guarantee) -> Interval:
        (x,) = inputs
        size = x.size() if g.net else None
        result = Interval(*self._ends(x.lower, x.upper, size, tensors, g))
        if x.ball is None:
            return result
        ends = self._ends(x.ball.lower, x.ball.upper, size, tensors, g)
        return self.through_ball(result, x.ball, ends, tensors, g)

    def through_ball(
        self, box: Interval, ball: Ball, ends: tuple[Tensor, Tensor], tensors: Tensors, g: Guarantee
    ) -> Interval:
        """The box met with what the layer makes of a ball, whose centre goes to between `ends`."""
        norms = self.row_norms(ball.scale, ball.norm, tensors)
        if norms is None:
            return box
        dtype = box.lower.dtype
        far = norms.to(dtype) * (ball.eps * (1 + g.own_error(8))).to(dtype).view(-1, *[1] * (norms.dim() - 1))
        return box.meet(g.down(ends[0] - far), g.up(ends[1] + far))

    def _ends(
        self, lower: Tensor, upper: Tensor, size: Tensor | None, tensors: Tensors, g: Guarantee
    ) -> tuple[Tensor, Tensor]:
        """L c + b -+ |L| r, widened by the errors of the sums, and of those of evaluations at inputs of this size."""
        x = Interval(lower, upper)
        centre = x.centre()
        radius = x.radius(centre, g)
        own, net = g.own_error(self.fan + 1), g.net_error(self.fan + 1)
        if g.sound:
            more = own * centre.abs()
            radius = g.up(radius + SAFE * (more if size is None else more + net * size))
        bias = self.bias(tensors)
        middle, reach = self.both(centre, radius, tensors)
        middle = middle if bias is None else middle + bias
        if not g.sound:
            return middle - reach, middle + reach
        middle = middle.masked_fill(~torch.isfinite(middle), torch.nan)  # a sum that overflowed says nothing
        more = 2 * own * reach + g.underflow(2 * self.fan + 2)
        bias_size = self.bias_size(tensors)
        if bias_size is not None:
            more = more + (own + net) * bias_size
        reach = g.up(reach + SAFE * more)
        return finite(g.down(middle - reach), g.up(middle + reach))

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        g = sums.g
        moved = self.transposed(weight.flatten(0, 1), tensors).unflatten(0, weight.shape[:2])
        bias = self.bias(tensors)
        if bias is not None:
            sums.add(self._bias_dot(weight, bias))
        if not g.sound:
            return [moved]
        size = self.linear(inputs[0].size(), tensors, absolute=True)
        size = size * (1 + 2 * g.own_error(self.fan + 2)) + g.underflow(2 * self.fan + 2)
        bias_size = self.bias_size(tensors)
        if bias_size is not None:
            size = size + bias_size
        share = g.own_error(self.fan + self.fan_back + 8) + g.net_error(self.fan + 1) + sum_error(weight)
        sums.allow(share * dot_size(weight, SAFE * size, g))
        if self.fan_back:  # products that underflow: in the transpose, in evaluations, with b
            sums.allow(g.underflow(self.fan_back) * total(inputs[0].size()[:, None]))
            sums.allow(g.underflow(self.fan + 2) * (total(weight) + weight.shape[2:].numel()))
        return [moved]

    def _bias_dot(self, weight: Tensor, bias: Tensor) -> Tensor:
        if bias.dim() == weight.dim() - 1 and bias.shape[1] == bias.numel() == weight.shape[2]:  # a number a channel
            each = weight.flatten(3).sum(3, dtype=torch.float64) if weight.dim() > 3 else weight.double()
            return each.matmul(bias.double().flatten())
        return dot(weight, bias.expand(1, *weight.shape[2:]))


class Linear(Affine):
    """x W^T + b over the last dimension; weight and bias are numbers of tensors."""

    def __init__(self, weight: int, bias: int | None, shape: tuple[int, ...]) -> None:
        self.weight, self.at_bias = weight, bias
        self.fan_back, self.fan = shape

    def linear(self, x: Tensor, tensors: Tensors, absolute: bool = False) -> Tensor:
        weight = tensors[self.weight]
        return F.linear(x, weight.abs() if absolute else weight)

    def both(self, x: Tensor, radius: Tensor, tensors: Tensors) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return super().both(x, radius, tensors)
        shape = *x.shape[:-1], self.fan_back
        ends = LINEAR.run(x.flatten(0, -2), radius.flatten(0, -2), tensors[self.weight])  # reads the weights once
        return ends[0].view(shape), ends[1].view(shape)

    def transposed(self, y: Tensor, tensors: Tensors) -> Tensor:
        return y.matmul(tensors[self.weight])

    def bias(self, tensors: Tensors) -> Tensor | None:
        return None if self.at_bias is None else tensors[self.at_bias][None]

    def _bias_dot(self, weight: Tensor, bias: Tensor) -> Tensor:
        each = weight.double().matmul(bias.double().flatten())
        return each if each.dim() == 2 else each.flatten(2).sum(2)

    def row_norms(self, scale: Tensor, norm: str, tensors: Tensors) -> Tensor | None:
        weight = tensors[self.weight]
        if scale.dim() != 2:
            return None
        rows = weight.double() * scale.double()
        order = 2 if norm == "L2" else torch.inf
        norms: Tensor = torch.linalg.vector_norm(rows, order, dim=1)
        return norms[None] * (1 + sum_error(rows[:, None]))


class Convolution(Affine):
    """A convolution in 1, 2 or 3 dimensions; weight and bias are numbers of tensors."""

    def __init__(
        self, weight: int, bias: int | None, shape: tuple[int, ...], size: tuple[int, ...], stride: tuple[int, ...],
        padding: tuple[int, ...], dilation: tuple[int, ...], groups: int,
    ) -> None:  # fmt: skip
        self.weight, self.at_bias, self.dims = weight, bias, len(shape) - 2
        self.settings, self.size, self.kernel = (stride, padding, dilation, groups), size, shape[2:]
        self.before = padding
        self.pads: list[int] | None = None  # of a window: those of F.pad, in the place of padding
        taps = math.prod(self.kernel)
        self.fan, self.fan_back = shape[1] * taps, shape[0] // groups * taps

    def linear(self, x: Tensor, tensors: Tensors, absolute: bool = False) -> Tensor:
        weight = tensors[self.weight]
        return self.convolve(x, weight.abs() if absolute else weight)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.settings
        x = x if self.pads is None else F.pad(x, self.pads)
        out: Tensor = CONVOLUTIONS[self.dims](x, weight, None, stride, padding, dilation, groups)
        return out

    def transposed(self, y: Tensor, tensors: Tensors) -> Tensor:
        stride, _, dilation, groups = self.settings
        weight = tensors[self.weight]
        # Where weights are trained, a checkpoint runs an op of ours again, but not PyTorch's.
        trained = torch.is_grad_enabled() and weight.requires_grad
        transpose = TRANSPOSED.reference if trained else ops.convolution_transposed
        if self.dims == 2:
            return transpose(y, weight, self.size, stride, self.before, dilation, groups)
        if self.dims == 1:
            size, stride, before, dilation = (1, *self.size), (1, *stride), (0, *self.before), (1, *dilation)
            return transpose(y[:, :, None], weight[:, :, None], size, stride, before, dilation, groups)[:, :, 0]
        whole = F.conv_transpose3d(y, weight, None, stride, 0, 0, groups, dilation)
        around = zip(self.before, self.size, whole.shape[2:], strict=True)
        return F.pad(whole, [n for p, size, read in reversed([*around]) for n in (-p, size + p - read)])

    def window(self, out: Window) -> tuple[Layer, Window] | None:
        stride, padding, dilation, groups = self.settings
        found = read_by(out, self.size, self.kernel, stride, padding, dilation)
        if found is None:
            return None
        part, none = copy(self), (0,) * self.dims
        part.settings, part.size = (stride, none, dilation, groups), tuple(each.stop - each.start for each in found[0])
        part.before, part.pads = (
            tuple(before for before, _ in found[1]),
            [n for pair in reversed(found[1]) for n in pair],
        )
        return part, found[0]

    def bias(self, tensors: Tensors) -> Tensor | None:
        return None if self.at_bias is None else tensors[self.at_bias].reshape(1, -1, *[1] * self.dims)

    def row_norms(self, scale: Tensor, norm: str, tensors: Tensors) -> Tensor | None:
        weight = tensors[self.weight]
        wide = weight.double().abs()
        if norm == "L2":
            return self.convolve(scale.double() ** 2, wide**2).sqrt() * (1 + sum_error(wide[:, None]))
        # The largest weight of each tap, over the channels; of an output those taps count that lie in the image.
        stride, padding, dilation, groups = self.settings
        largest = scale.double().flatten(2).amax(2).view(groups, 1, -1, *[1] * self.dims)
        taps = (wide.unflatten(0, (groups, -1)) * largest).amax(2).flatten(0, 1).flatten(1)
        count = taps.shape[1]
        one_tap = torch.eye(count, dtype=wide.dtype, device=wide.device).view(count, 1, *weight.shape[2:])
        image = wide.new_ones(1, 1, *scale.shape[2:])
        there = CONVOLUTIONS[self.dims](image, one_tap, None, stride, padding, dilation)[0]
        norms = wide.new_zeros(len(taps), *there.shape[1:])
        for k in range(count):
            norms = torch.maximum(norms, taps[:, k].view(-1, *[1] * self.dims) * there[k])
        return norms[None]


class Pooling(Affine):
    """Means over windows, a function of (batch, ...) without parameters.

    Args:
        count: elements of the largest window.
        overlap: windows that an element may belong to.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], sample: tuple[int, ...], count: int, overlap: int
    ) -> None:  # fmt: skip
        self.function, self.sample, self.fan, self.fan_back = function, sample, count + 2, overlap + 2

    def linear(self, x: Tensor, tensors: Tensors, absolute: bool = False) -> Tensor:
        return self.function(x)

    def transposed(self, y: Tensor, tensors: Tensors) -> Tensor:
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = y.new_zeros(len(y), *self.sample).requires_grad_()
            moved = torch.autograd.grad(self.function(x), x, y, create_graph=graph)[0]
        return moved
