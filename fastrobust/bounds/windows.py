"""What some pixels of a value see: windows of the values before, and the layers between these windows.

A function of a few pixels of a convolution's result, brought back, is 0 outside a window of each value before. So it
goes back through windows, by the rules that whole values have, on layers whose edges are those of the windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust.bounds.guarantee import Guarantee
from fastrobust.bounds.interval import Interval, Region
from fastrobust.bounds.layers import Boxes, Layer, Lines, Sums, Tensors, Window, cropped
from fastrobust.bounds.program import Step

__all__ = ["View", "whole"]

OVERHEAD = 2**15  # elements that a weight could have more for what a layer costs besides them
SIZES = (2, 4, 8, 16, 32)


@dataclass(frozen=True)
class View:
    """What a value, or a tile of it, depends on, as `below` takes it.

    Attributes:
        target: the number of the value.
        steps: a program's; of a tile those that it depends on are between windows.
        places: (elements,) those of the value, flattened, that functions may be of.
        shape: of these elements.
        seen: elements of all values on the way.
        widest: the most of one of them.
    """

    target: int
    steps: Sequence[Step]
    region: Region
    boxes: Boxes
    lines: Sequence[Lines | None]
    places: Tensor
    shape: torch.Size
    seen: int
    widest: int

    def tiles(self, rows: int) -> list[Window]:
        """A whole value cut into tiles for which the least work is to be expected; [] where it is better left whole.

        Args:
            rows: functions that go back, of all samples together.
        """
        spans, best = self.shape[1:], list[Window]()
        least = OVERHEAD * self.target + rows * self.seen
        for side in SIZES:
            cuts = [[slice(at, min(at + side, n)) for at in range(0, n, side)] for n in spans]
            count = math.prod(map(len, cuts))
            if not spans or count < 2:
                break
            # What a tile reads along a dimension depends on its place there alone: if those at both ends read more than
            # padding, all do.
            some = [tuple(cut[at] for cut in cuts) for at in (0, -1)]
            cone = _cone(self.steps, self.target, tuple(cut[len(cut) // 2] for cut in cuts))
            if cone is None or any(_cone(self.steps, self.target, tile) is None for tile in some):
                continue
            windows = cone[0]
            cost = count * OVERHEAD * len(windows) + rows * sum(self._sizes(windows))
            if cost < least:
                least, best = cost, list(product(*cuts))
        return best

    def tile(self, tile: Window, tensors: Tensors, g: Guarantee) -> View:
        """What a tile of a whole value depends on."""
        cone = _cone(self.steps, self.target, tile)
        assert cone is not None
        windows, parts = cone
        boxes = [_cropped(box, windows[v]) if v in windows else box for v, box in enumerate(self.boxes[: self.target])]
        steps, lines = list(self.steps), list(self.lines)
        for value, (layer, reads) in parts.items():
            step, line = steps[value - 1], lines[value - 1]
            if line is not None and line.source is not None:
                inputs = [_cropped(self.boxes[source], reads) for source in step.inputs]
                out = inputs[0] if value == self.target else boxes[value]
                lines[value - 1] = layer.relax(inputs, out, tensors, g)
            elif line is not None:
                lines[value - 1] = line.window(windows[value])
            if any(windows[source] != reads for source in step.inputs):
                layer = _Within(layer, reads, [windows[source] for source in step.inputs])
            steps[value - 1] = step._replace(layer=layer)
        places = cropped(self.places.view(self.shape), tile)
        sizes = self._sizes(windows)
        region = Region(_cropped(self.region.box, windows[0]))
        return View(
            self.target, steps, region, boxes, lines, places.flatten(), places.shape, sum(sizes), max(sizes)
        )  # fmt: skip

    def _sizes(self, windows: Mapping[int, Window]) -> list[int]:
        """Elements of windows, but for the target's."""
        channels = {v: self.steps[v - 1].shape[0] if v else self.region.box.lower.shape[1] for v in windows}
        return [channels[v] * math.prod(part.stop - part.start for part in windows[v]) for v in windows
                if v != self.target]  # fmt: skip


def whole(target: int, steps: Sequence[Step], region: Region, boxes: Boxes, lines: Sequence[Lines | None]) -> View:
    """All of a value."""
    reached, shape = {target}, steps[target - 1].shape
    for value in range(target, 0, -1):
        reached |= set(steps[value - 1].inputs) if value in reached else set()
    sizes = [steps[value - 1].shape.numel() if value else region.box.lower.shape[1:].numel() for value in reached]
    places = torch.arange(shape.numel(), device=region.box.lower.device)
    return View(target, steps, region, boxes, lines, places, shape, sum(sizes) - shape.numel(), max(sizes))


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
    steps: Sequence[Step], target: int, tile: Window
) -> tuple[dict[int, Window], dict[int, tuple[Layer, Window]]] | None:
    """For the values that a tile depends on their windows; for those that layers make the layers, and what they read.

    None where a layer's windows are not known.
    """
    windows, parts = {target: tile}, dict[int, tuple[Layer, Window]]()
    for value in range(target, 0, -1):
        if value not in windows:
            continue
        step = steps[value - 1]
        found = step.layer.window(windows[value]) if len(step.shape) == len(tile) + 1 else None
        if found is None:
            return None
        parts[value] = found
        for source in step.inputs:
            windows[source] = _hull(windows.get(source, found[1]), found[1])
    return windows, parts


def _hull(a: Window, b: Window) -> Window:
    return tuple(slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True))


def _cropped(box: Interval, window: Window) -> Interval:
    return box.moved(lambda end: cropped(end, window))
