"""What some pixels of a value see: windows of the values before, and the layers between these windows.

A function of a few pixels of a convolution's result, brought back, is 0 outside a window of each value before. So it
goes back through windows, by the rules that whole values have, on layers whose edges are those of the windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust.bounds.guarantee import Guarantee
from fastrobust.bounds.interval import Interval, Region
from fastrobust.bounds.layers import Boxes, Layer, Lines, Sums, Tensors, Window, cropped
from fastrobust.bounds.program import Program, Step

__all__ = ["View", "tiles", "view", "whole"]

OVERHEAD = 2**15  # elements that a weight could have more for what a layer costs besides them
SIZES = (2, 4, 8, 16, 32)


@dataclass(frozen=True)
class View:
    """What a tile of a value depends on, as `below` takes it.

    Attributes:
        steps: a program's; those that the tile depends on are between windows.
        places: (elements,) the tile's elements of the value, flattened.
        shape: of the tile.
        widest: elements of the largest window.
    """

    steps: Sequence[Step]
    region: Region
    boxes: Sequence[Interval]
    lines: Sequence[Lines | None]
    places: Tensor
    shape: torch.Size
    widest: int


def whole(program: Program, target: int, region: Region, boxes: Boxes, lines: Sequence[Lines | None]) -> View:
    """All of the value and of what comes before."""
    shape = program.shape(target)
    places = torch.arange(shape.numel(), device=region.box.lower.device)
    widest = max(program.shape(value).numel() for value in range(target + 1))
    return View(program.steps, region, boxes, lines, places, shape, widest)


def tiles(program: Program, target: int, rows: int) -> list[Window]:
    """A value cut into tiles for which the least work is to be expected; [] where that is the whole.

    Args:
        rows: functions that go back, of all samples together.
    """
    size = program.shape(target)
    spans = size[1:]
    least = OVERHEAD * target + rows * sum(program.shape(value).numel() for value in range(target))
    best: list[Window] = []
    for side in SIZES:
        cuts = [[slice(at, min(at + side, n)) for at in range(0, n, side)] for n in spans]
        count = math.prod(map(len, cuts))
        if not spans or count < 2:
            break
        found = _cone(program, target, tuple(cut[len(cut) // 2] for cut in cuts))
        if found is None:
            break
        windows = found[0]
        seen = sum(program.shape(v)[0] * _numel(window) for v, window in windows.items() if v != target)
        cost = count * OVERHEAD * len(windows) + rows * seen
        if cost < least:
            least, best = cost, list(product(*cuts))
    return best


def view(
    program: Program, target: int, tile: Window, region: Region, boxes: Boxes, lines: Sequence[Lines | None],
    tensors: Tensors, g: Guarantee,
) -> View:  # fmt: skip
    """A tile's; boxes and lines are the program's, of all before the target."""
    cone = _cone(program, target, tile)
    assert cone is not None
    windows, parts = cone
    seen = [_cropped(box, windows[v]) if v in windows else box for v, box in enumerate(boxes[:target])]
    steps, own = list(program.steps), list(lines[:target])
    for value, (layer, reads) in parts.items():
        step, line = steps[value - 1], lines[value - 1]
        inputs = [_cropped(boxes[source], reads) for source in step.inputs]
        if line is not None and line.source is not None:
            own[value - 1] = layer.relax(inputs, _cropped(boxes[value], windows[value]), tensors, g)
        elif line is not None:
            ends = (cropped(end, windows[value]) for end in (line.low_slope, line.low, line.high_slope, line.high))
            own[value - 1] = Lines(*ends)
        if any(windows[source] != reads for source in step.inputs):
            layer = _Within(layer, reads, [windows[source] for source in step.inputs])
        steps[value - 1] = step._replace(layer=layer)
    size = program.shape(target)
    places = torch.arange(size.numel(), device=region.box.lower.device).view(size)
    places = cropped(places, tile)
    widest = max(program.shape(v)[0] * _numel(window) for v, window in windows.items())
    return View(steps, Region(_cropped(region.box, windows[0])), seen, own, places.flatten(), places.shape, widest)


class _Within(Layer):
    """A layer that reads a part of what is known of its inputs."""

    def __init__(self, layer: Layer, reads: Window, known: Sequence[Window]) -> None:
        self.layer = layer
        self.reads = [
            tuple(slice(r.start - k.start, r.stop - k.start) for r, k in zip(reads, window, strict=True))
            for window in known
        ]
        self.pads = [
            [n for r, k in zip(reads[::-1], window[::-1], strict=True) for n in (r.start - k.start, k.stop - r.stop)]
            for window in known
        ]

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        read = [_cropped(box, window) for box, window in zip(inputs, self.reads, strict=True)]
        moved = self.layer.back(weight, read, lines, tensors, sums)
        return [F.pad(part, pads) for part, pads in zip(moved, self.pads, strict=True)]


def _cone(
    program: Program, target: int, tile: Window
) -> tuple[dict[int, Window], dict[int, tuple[Layer, Window]]] | None:
    """For the values that a tile depends on their windows; for those that layers make the layers, and what they read.

    None where a layer's windows are not known.
    """
    windows, parts = {target: tile}, dict[int, tuple[Layer, Window]]()
    for value in range(target, 0, -1):
        if value not in windows:
            continue
        step = program.steps[value - 1]
        found = step.layer.window(windows[value])
        if found is None or any(len(program.shape(source)) != len(tile) + 1 for source in step.inputs):
            return None
        parts[value] = found
        for source in step.inputs:
            windows[source] = _hull(windows.get(source, found[1]), found[1])
    return windows, parts


def _hull(a: Window, b: Window) -> Window:
    return tuple(slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True))


def _numel(window: Window) -> int:
    return math.prod(part.stop - part.start for part in window)


def _cropped(box: Interval, window: Window) -> Interval:
    ball = box.ball
    if ball is not None:
        lower, upper, scale = (cropped(end, window) for end in (ball.lower, ball.upper, ball.scale))
        ball = replace(ball, lower=lower, upper=upper, scale=scale)
    return Interval(cropped(box.lower, window), cropped(box.upper, window), ball)
