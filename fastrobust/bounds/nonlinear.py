"""Layers that are not affine."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust import ops
from fastrobust.bounds.activations import Function, range_of, tight_lines
from fastrobust.bounds.guarantee import SAFE, Guarantee, finite
from fastrobust.bounds.interval import Interval
from fastrobust.bounds.layers import (
    Boxes,
    Layer,
    Lines,
    Sums,
    Tensors,
    Window,
    dot,
    dot_size,
    of_rows,
    read_by,
    sum_error,
    total,
)

__all__ = ["Activation", "MaxPool", "Product", "Relu", "Softmax", "apply_lines", "through_lines"]


class Elementwise(Layer):
    """A function of each element, between two lines."""

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        assert lines is not None
        return [through_lines(weight, lines, inputs[0].size() if sums.g.sound else None, sums)]

    def window(self, out: Window) -> tuple[Layer, Window] | None:
        return self, out


class Relu(Elementwise):
    """max(x, 0). Its lines are those of CROWN (Zhang et al., NeurIPS 2018), the lower slope 0 or 1."""

    def interval(self, inputs: Boxes, tensors: Tensors, g: Guarantee) -> Interval:
        (x,) = inputs
        return Interval(x.lower.clamp(min=0), x.upper.clamp(min=0))

    def relax(self, inputs: Boxes, output: Interval, tensors: Tensors, g: Guarantee) -> Lines:
        (x,) = inputs
        lower, upper = x.lower, x.upper
        if not g.sound and torch.is_grad_enabled():  # in training: the same of finite boxes, in fewer passes
            low, high = lower.clamp(max=0), upper.clamp(min=0)
            slope = high / (high - low).clamp(min=torch.finfo(lower.dtype).tiny)
            above = (high > -low).to(lower.dtype)
            return Lines(above, torch.zeros_like(above), slope, -slope * low)
        on, off = lower >= 0, upper <= 0
        open_ = ~(on | off)
        # Convex, so a line above both ends is above: slope >= u / (u - l), and intercept >= -slope * l.
        width = torch.where(open_, g.down(upper - lower), 1)
        slope = torch.where(open_, g.up(upper / width), on.to(lower.dtype))
        high = torch.where(open_, g.up(-slope * lower), 0)
        wild = open_ & ~(torch.isfinite(slope) & torch.isfinite(high))
        slope, high = slope.masked_fill(wild, 0), torch.where(wild, upper, high)
        low = (on | (open_ & ~wild & (upper > -lower))).to(lower.dtype)
        return Lines(low, torch.zeros_like(low), slope, high)


class Activation(Elementwise):
    """Any other function."""

    def __init__(self, function: Function) -> None:
        self.function = function

    def interval(self, inputs: Boxes, tensors: Tensors, g: Guarantee) -> Interval:
        return range_of(self.function, inputs[0], g)

    def relax(self, inputs: Boxes, output: Interval, tensors: Tensors, g: Guarantee) -> Lines:
        return tight_lines(self.function, inputs[0], output, g)


def through_lines(weight: Tensor, lines: Lines, size: Tensor | None, sums: Sums) -> Tensor:
    """<weight, y> from below for y between lines: the lower ones where the weight is positive, else the upper ones."""
    if not sums.g.sound and lines.low_slope.dim() < weight.dim():
        moved, constant = ops.crown_lines(weight, lines.low_slope, lines.low, lines.high_slope, lines.high)
        sums.add(constant)
        return moved
    plus, minus = weight.clamp(min=0), weight.clamp(max=0)
    apply_lines(plus, minus, lines, sums)
    moved = plus * of_rows(lines.low_slope, weight) + minus * of_rows(lines.high_slope, weight)
    if size is not None:
        sums.allow(sums.g.own_error(4) * dot_size(moved, size, sums.g))
        sums.allow(sums.g.underflow(2) * size.flatten(1).sum(1, dtype=torch.float64)[:, None])
    return moved


def apply_lines(plus: Tensor, minus: Tensor, lines: Lines, sums: Sums) -> None:
    """Add the lines' intercepts."""
    g = sums.g
    low, high = dot(plus, lines.low), dot(minus, lines.high)
    sums.add(low)
    sums.add(high)
    if g.sound:
        size = dot_size(plus, lines.low.abs(), g) + dot_size(minus, lines.high.abs(), g)
        sums.allow((g.own_error(4) + sum_error(plus)) * size + g.underflow(2 * plus.shape[2:].numel()))


class MaxPool(Layer):
    """The largest of each window. From below it is any of its inputs, from above a number, or an input that wins."""

    def __init__(
        self, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int],
        sample: tuple[int, ...], shape: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.kernel, self.stride, self.dilation, self.sample, self.shape = kernel, stride, dilation, sample, shape
        # Rows and columns to add at the end, so that the last window is whole (ceil_mode).
        after = [
            max(0, (n - 1) * s + d * (k - 1) + 1 - size - p)
            for n, s, k, d, p, size in zip(shape[1:], stride, kernel, dilation, padding, sample[1:], strict=True)
        ]
        self.padding = (padding[1], after[1], padding[0], after[0])

    def window(self, out: Window) -> tuple[Layer, Window] | None:
        left, _, top, _ = self.padding
        found = read_by(out, self.sample[1:], self.kernel, self.stride, (top, left), self.dilation)
        if found is None:
            return None
        part, (rows, columns) = copy(self), found[1]
        part.sample, part.shape = (
            (self.sample[0], *(each.stop - each.start for each in window)) for window in (found[0], out)
        )
        part.padding = (*columns, *rows)
        return part, found[0]

    def pool(self, x: Tensor) -> Tensor:
        """The largest of each window, (batch, ...)."""
        return F.max_pool2d(F.pad(x, self.padding, value=-math.inf), self.kernel, self.stride, 0, self.dilation)

    def _windows(self, x: Tensor, fill: float) -> Tensor:
        """(batch, channels, elements of a window, windows)."""
        padded = F.pad(x, self.padding, value=fill)
        rows, columns = (
            (n - 1) * s + d * (k - 1) + 1
            for n, s, k, d in zip(self.shape[1:], self.stride, self.kernel, self.dilation, strict=True)
        )
        index = torch.arange(padded[0, 0].numel(), device=x.device).view(1, 1, *padded.shape[2:])[..., :rows, :columns]
        at = F.unfold(index.double(), self.kernel, self.dilation, 0, self.stride)[0].long()
        return padded.flatten(2)[:, :, at]

    def interval(self, inputs: Boxes, tensors: Tensors, g: Guarantee) -> Interval:
        low, high = (self._windows(end, -math.inf).amax(2) for end in (inputs[0].lower, inputs[0].upper))
        return Interval(*(end.unflatten(2, self.shape[1:]) for end in (low, high)))

    def relax(self, inputs: Boxes, output: Interval, tensors: Tensors, g: Guarantee) -> Lines:
        (x,) = inputs
        least = torch.finfo(x.lower.dtype).min
        low, high = self._windows(x.lower.clamp(min=least), -math.inf), self._windows(x.upper, -math.inf)
        at = low.argmax(2, keepdim=True)
        others = high.scatter(2, at, -math.inf).amax(2)
        wins = low.gather(2, at)[:, :, 0] >= others
        source = self._numbers(low.device).expand(len(low), low.shape[1], -1, -1)
        upper, slope = torch.where(wins, 0, high.amax(2)), wins.to(low.dtype)
        flat = torch.zeros_like(slope)
        return Lines(flat + 1, flat, slope, upper, source.gather(2, at)[:, :, 0])

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        g = sums.g
        assert lines is not None
        assert lines.source is not None
        if lines.shares is not None:
            return [self._mean_back(weight.flatten(3), lines, inputs[0], sums)]
        moved = through_lines(weight.flatten(3), lines, None, sums)
        source = lines.source[:, None].expand_as(moved)
        out = weight.new_zeros(*weight.shape[:2], self.sample[0], math.prod(self.sample[1:]))
        out = out.scatter_add(3, source, moved).unflatten(3, self.sample[1:])
        if g.sound:
            reach = math.prod(self.kernel)
            wide = weight.new_zeros(out.flatten(3).shape).scatter_add(3, source, moved.abs())
            size = inputs[0].size().flatten(2)
            sums.allow(g.own_error(reach + 2) * dot_size(wide, size, g))
        return [out]

    # --- means of windows as lower lines ---

    def choice(self, lines: Lines) -> Tensor:
        """The lower lines as shares of windows' elements: (batch, channels, elements of a window, windows)."""
        assert lines.source is not None
        return (self._numbers(lines.source.device) == lines.source[:, :, None]).to(lines.low.dtype)

    def with_shares(self, lines: Lines, shares: Tensor) -> Lines:
        """With lower lines that are means of windows' elements: shares >= 0 (batch, rows, ...) as `choice` has them."""
        inside = shares * (self._numbers(shares.device) >= 0)
        total = inside.sum(3, keepdim=True)
        none = total < 1e-6
        return replace(
            lines, shares=torch.where(none, self.choice(lines)[:, None], inside / total.masked_fill(none, 1))
        )

    def _numbers(self, device: torch.device) -> Tensor:
        """Of windows' elements in a channel, -1 for padding: (1, 1, elements of a window, windows)."""
        numbers = torch.arange(math.prod(self.sample[1:]), device=device, dtype=torch.float64)
        return self._windows(numbers.view(1, 1, *self.sample[1:]), -1.0).long()

    def _mean_back(self, weight: Tensor, lines: Lines, x: Interval, sums: Sums) -> Tensor:
        """`back` for weight (batch, rows, channels, windows): where it is positive the mean, else the upper line."""
        g = sums.g
        assert lines.shares is not None
        assert lines.source is not None
        plus, minus = weight.clamp(min=0), weight.clamp(max=0)
        apply_lines(plus, minus, lines, sums)
        upper = (self.choice(lines) * lines.high_slope[:, :, None])[:, None]
        moved = plus[:, :, :, None] * lines.shares + minus[:, :, :, None] * upper
        at = self._numbers(weight.device).expand_as(moved).flatten(3)
        out = weight.new_zeros(*weight.shape[:3], 1 + math.prod(self.sample[1:]))  # the last takes what is padding's
        found = out.scatter_add(3, at % out.shape[3], moved.flatten(3))[..., :-1]
        if g.sound:
            # Shares add up to 1 but for their roundings: as much of the windows' largest magnitude is given away.
            wide = out.scatter_add(3, at % out.shape[3], moved.abs().flatten(3))[..., :-1]
            size = x.size()
            share = g.own_error(2 * math.prod(self.kernel) + 4)
            sums.allow(share * (dot_size(wide, size.flatten(2), g) + dot_size(plus, self.pool(size).flatten(2), g)))
            sums.allow(g.underflow(2 * math.prod(self.kernel)) * total(size[:, None]))
        moved_back: Tensor = found.unflatten(3, self.sample[1:])
        return moved_back


class Product(Layer):
    """x y of two activations; lines by McCormick (Mathematical Programming, 1976)."""

    def interval(self, inputs: Boxes, tensors: Tensors, g: Guarantee) -> Interval:
        x, y = inputs
        ends = torch.stack([a * b for a in (x.lower, x.upper) for b in (y.lower, y.upper)])
        # Rounding is monotone, so one operation's ends enclose all evaluations.
        return Interval(*finite(g.down(ends.amin(0)), g.up(ends.amax(0))))

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        g = sums.g
        # (x - l_x)(y - l_y) >= 0 and (u_x - x)(y - l_y) >= 0.
        x, y = inputs
        plus, minus = weight.clamp(min=0), weight.clamp(max=0)
        low, high = -x.lower * y.lower, -x.upper * y.lower
        sums.add(dot(plus, low))
        sums.add(dot(minus, high))
        if g.sound:
            size = dot_size(plus - minus, x.size() * y.size() * SAFE, g)
            share = g.own_error(12) + g.net_error(1) + sum_error(plus)
            sums.allow(share * size + g.underflow(4 * weight.shape[2:].numel()))
            sums.allow(g.underflow(4) * (total(weight) + total(x.size()[:, None]) + total(y.size()[:, None])))
        to_x = weight * y.lower[:, None]
        to_y = plus * x.lower[:, None] + minus * x.upper[:, None]
        return [to_x, to_y]

    def window(self, out: Window) -> tuple[Layer, Window] | None:
        return self, out


class Softmax(Layer):
    """Probabilities over a dimension: boxes only, so that lines are flat."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def interval(self, inputs: Boxes, tensors: Tensors, g: Guarantee) -> Interval:
        """p_i >= 1 / (1 + sum_{j != i} exp(u_j - l_i)), and with l_j - u_i from above."""
        (x,) = inputs
        low, high = x.lower.double(), x.upper.double()
        ends = []
        for own, others in ((low, high), (high, low)):
            a, b = own.movedim(self.dim, -1), others.movedim(self.dim, -1)
            apart = torch.exp(b[..., None, :] - a[..., :, None])
            apart = apart.masked_fill(torch.eye(a.shape[-1], dtype=torch.bool, device=a.device), 0)
            ends.append((1 / (1 + apart.sum(-1))).movedim(-1, self.dim))
        dtype = x.lower.dtype
        if g.sound:
            share = (ends[0].shape[self.dim] + 64) * 2.0**-46 + g.net_error(2 * ends[0].shape[self.dim] + 32)
            # exp's argument was rounded: |x| ulps of it are a relative error of the result.
            reach = (x.size().double() * 4).amax(self.dim, keepdim=True) * (2.0**-50 + 2 * g.net)
            ends[0] = (ends[0] * (1 - share) * torch.exp(-reach) - g.small).nan_to_num(nan=0.0).clamp(min=0)
            ends[1] = (ends[1] * (1 + share) * torch.exp(reach) + g.small).nan_to_num(nan=2.0).clamp(max=1 + share)
        return Interval(g.down(ends[0].to(dtype)), g.up(ends[1].to(dtype)))

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        assert lines is not None
        apply_lines(weight.clamp(min=0), weight.clamp(max=0), lines, sums)
        return [torch.zeros_like(weight)]

    def relax(self, inputs: Boxes, output: Interval, tensors: Tensors, g: Guarantee) -> Lines:
        flat = torch.zeros_like(output.lower)
        return Lines(flat, output.lower, flat, output.upper)
