"""Layers that go backward as one: an affine layer, a scale behind it, and the lines of an activation behind that.

Of y between a x + c and x = s (L z + b) + t, the lines in L z are a s and a (s b + t) + c: made once for each element,
not for each function that goes back. What rounding may do to an element, in an evaluation or here, is part of the
intercepts or a number for each element, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastrobust import ops
from fastrobust.bounds.affine import Affine, Convolution, Linear
from fastrobust.bounds.elements import Scale
from fastrobust.bounds.guarantee import SAFE, Guarantee
from fastrobust.bounds.interval import Interval
from fastrobust.bounds.layers import Boxes, Layer, Lines, Sums, Tensors, Window, dot_size, sum_error
from fastrobust.bounds.nonlinear import Elementwise
from fastrobust.bounds.program import Step
from fastrobust.ops import _rounding as rounding

__all__ = ["chain", "fused_activation", "fused_target"]

TINY = 2.0**-44  # relative error of a handful of float64 operations


class Fused(Layer):
    """Elements between lines in what `base` makes of the input, or in the input itself; backward only."""

    def __init__(self, base: Affine | None) -> None:
        self.base = base

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        assert lines is not None
        moved, constant = ops.crown_lines(weight, lines.low_slope, lines.low, lines.high_slope, lines.high)
        sums.add(constant)
        if lines.error is not None and lines.floor is not None:
            sums.allow(dot_size(weight, lines.error, sums.g) + lines.floor)
        if self.base is None:
            return [moved]
        return [self.base.transposed(moved.flatten(0, 1), tensors).unflatten(0, weight.shape[:2])]

    def window(self, out: Window) -> tuple[Layer, Window] | None:
        if self.base is None:
            return self, out
        found = self.base.window(out)
        if found is None:
            return None
        part, reads = found
        assert isinstance(part, Affine)
        return Fused(part), reads


class Chain(NamedTuple):
    """What gives a value: a scale, or none, of what an affine layer, or none, makes of the value `source`."""

    base: Affine | None
    scale: Scale | None
    source: int


def chain(steps: Sequence[Step], value: int) -> Chain:
    """That in front of a value; its source is the value itself where there is none."""
    base: Affine | None = None
    scale: Scale | None = None
    if value and isinstance(layer := steps[value - 1].layer, Scale):
        scale, value = layer, steps[value - 1].inputs[0]
    if value and isinstance(layer := steps[value - 1].layer, (Linear, Convolution)):
        base, value = layer, steps[value - 1].inputs[0]
    return Chain(base, scale, value)


def fused_activation(
    steps: Sequence[Step], number: int, line: Lines | None, boxes: Boxes, tensors: Tensors, g: Guarantee
) -> tuple[Step, Lines | None]:
    """An activation's step and lines with what is in front of it; other steps as they are."""
    step = steps[number]
    if line is None or not isinstance(step.layer, Elementwise):
        return step, line
    return _fused(step, chain(steps, step.inputs[0]), line, boxes, tensors, g)


def fused_target(
    steps: Sequence[Step], target: int, boxes: Boxes, tensors: Tensors, g: Guarantee
) -> tuple[Step, Lines] | None:
    """The step that gives a value, with what is in front of it; None if it is no product and no scale."""
    before = chain(steps, target)
    if before.source == target:
        return None
    one = boxes[before.source].lower
    one = one.new_ones(len(one), *steps[target - 1].shape)
    return _fused(steps[target - 1], before, Lines(one, 0 * one, one, 0 * one), boxes, tensors, g)


def _fused(
    last: Step, before: Chain, line: Lines, boxes: Boxes, tensors: Tensors, g: Guarantee
) -> tuple[Step, Lines]:  # fmt: skip
    """The step `last` with what is in front of its lines."""
    base, scale, source = before
    factor, shift, offset = (None, None, None) if scale is None else scale.factors(tensors)
    bias = None if base is None else base.bias(tensors)
    unit = line.low.new_ones((), dtype=torch.float64)
    s, t, b = (
        (fill if part is None else part.double())
        for part, fill in ((factor, unit), (shift, 0 * unit), (bias, 0 * unit))
    )
    found = last._replace(layer=Fused(base), inputs=(source,))
    if g.sound:
        numbers = s, t, b, 0 * unit if offset is None else offset.double()
        return found, _sound(base, scale, line, boxes[source], numbers, tensors, g)
    dtype = line.low.dtype
    s, t = s.to(dtype), (s * b + t).to(dtype)
    low, high = line.low + line.low_slope * t, line.high + line.high_slope * t
    return found, Lines(line.low_slope * s, low, line.high_slope * s, high)


def _sound(
    base: Affine | None, scale: Scale | None, line: Lines, x: Interval, numbers: tuple[Tensor, ...], tensors: Tensors,
    g: Guarantee,
) -> Lines:  # fmt: skip
    """The lines in L z, moved by what evaluations of y and rounding of the lines may do (docs/bounds/soundness.md)."""
    (s, t, b, offset), dtype = numbers, x.lower.dtype
    # At most |L z| and |b|, and how far off evaluations of L z + b are; then the same behind the scale.
    size, off, least, fan_back = x.size(), 0 * s, 0.0, 0
    floor = g.underflow(4) * size.flatten(1).sum(1, keepdim=True, dtype=torch.float64)
    if base is not None:
        fan_back, least = base.fan_back, g.underflow(base.fan + 2)
        floor = floor * fan_back
        size = base.linear(size, tensors, absolute=True)
        size = size * (1 + 2 * g.own_error(base.fan + 2)) + g.underflow(2 * base.fan + 2)
        bias_size = base.bias_size(tensors)
        size = SAFE * (size if bias_size is None else size + bias_size)
        off = g.net_error(base.fan + 1) * size.double()
    size = size.double()
    most, off = SAFE * (s.abs() * (size + off + least) + offset), s.abs() * off
    tiny = s.abs() * least
    if scale is not None:
        off, tiny = off + g.net_error(scale.fan + 1) * most, tiny + g.underflow(scale.fan + 2)
    slopes, ends = [], []
    for slope, end, sign in ((line.low_slope, line.low, 1), (line.high_slope, line.high, -1)):
        a, c = slope.double(), end.double()
        exact, intercept = a * s, sign * (a * (s * b + t) + c)
        slopes.append(exact.to(dtype))
        slack = a.abs() * (off + TINY * most) + TINY * (c.abs() + exact.abs() * size)
        slack = SAFE * (slack + (exact - slopes[-1]).abs() * size)
        ends.append(sign * rounding.cast_down(intercept - slack, dtype))
    # What a weight's own rounding may do: that of its product with a slope, of the transpose, of the intercepts' sum.
    largest, steepest = (
        torch.maximum(p.abs(), q.abs()).double() for p, q in (slopes, (line.low_slope, line.high_slope))
    )
    reach = torch.maximum(ends[0].abs(), ends[1].abs()).double()
    error = g.own_error(fan_back + 4) * largest * size + steepest * tiny
    error = error + (g.own_error(ops.CROWN_TERMS) + sum_error(reach[:, None])) * reach
    if dtype == torch.float64:  # products of float32 numbers do not underflow in float64, those of float64 may
        error = error + g.underflow(8) * (size + steepest + 2)
    floor = SAFE * (floor + g.underflow(4) * (size.flatten(1).sum(1, keepdim=True) + reach.shape[1:].numel()))
    return Lines(slopes[0], ends[0], slopes[1], ends[1], error=rounding.cast_up(SAFE * error, dtype), floor=floor)
