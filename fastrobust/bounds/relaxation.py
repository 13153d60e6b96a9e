"""A network between linear functions, on sets of inputs: boxes and lines of all layers, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrobust.bounds.fused import fused_activation, fused_target
from fastrobust.bounds.guarantee import Guarantee
from fastrobust.bounds.interval import Interval, Region
from fastrobust.bounds.layers import Lines
from fastrobust.bounds.nonlinear import Relu
from fastrobust.bounds.optimise import optimised, with_slopes
from fastrobust.bounds.program import AFFINE, Program, Step, below
from fastrobust.bounds.windows import View, whole
from fastrobust.ops import _rounding as rounding

__all__ = ["Relaxation", "Tuned", "boxes_of", "last_boxes", "most_elements", "rounded_down"]

# Elements of the largest weight that goes backward at once. On a CPU 4 MiB of float32 were the fastest, 6 times as
# fast as 256 MiB, which the allocator takes from the system and gives back for each layer.
ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
FEW = 8  # samples, of which the native engine serves 16 at a time


def boxes_of(program: Program, region: Region, tensors: Sequence[Tensor], g: Guarantee) -> list[Interval]:
    """The boxes of all values by interval arithmetic."""
    boxes = [region.box]
    for value in range(1, program.outputs + 1):
        boxes.append(program.interval(value, boxes, tensors, g))
    return boxes


def last_boxes(program: Program, region: Region, tensors: Sequence[Tensor], g: Guarantee) -> list[Interval]:
    """As `boxes_of`; what lies before the last layer that is not affine may be left out."""
    native = program.native
    if native is None or region.box.ball is not None or len(region) < FEW or torch.is_grad_enabled():
        return boxes_of(program, region, tensors, g)
    boxes = [region.box] * native.value + [native.box(region, tensors, g)]
    for value in range(native.value + 1, program.outputs + 1):
        boxes.append(program.interval(value, boxes, tensors, g))
    return boxes


@dataclass(frozen=True)
class Tuned:
    """Choices for the boxes that CROWN refines.

    Attributes:
        chosen: for each refined value, which of its elements, (batch, count).
        slopes: for a refined value and a ReLU's step the lower slopes (batch, 2 count or 1, ...): those of the lower
            ends first.
    """

    chosen: dict[int, Tensor]
    slopes: dict[tuple[int, int], Tensor]


class Relaxation:
    """Boxes of all values, and lines for the layers that are not affine.

    Args:
        tensors: `program.tensors()`.
        refine: find the boxes that lines are made for by CROWN; else by intervals alone (CROWN-IBP).
        tuned: how to refine them; otherwise as CROWN does.
    """

    def __init__(
        self, program: Program, region: Region, tensors: Sequence[Tensor], g: Guarantee, refine: bool,
        tuned: Tuned | None = None,
    ) -> None:  # fmt: skip
        self.program, self.region, self.tensors, self.g = program, region, tensors, g
        self.tuned = tuned or Tuned({}, {})
        self.boxes: list[Interval] = [region.box]
        self.lines: list[Lines | None] = []
        self._fused: list[tuple[Step, Lines | None]] = []
        for value, step in enumerate(program.steps, 1):
            if not isinstance(step.layer, AFFINE) and refine:
                for source in dict.fromkeys(step.inputs):
                    if not program.exact[source]:
                        self.boxes[source] = self._refined(source, isinstance(step.layer, Relu))
            out = program.interval(value, self.boxes, tensors, g)
            inputs = [self.boxes[i] for i in step.inputs]
            self.lines.append(step.layer.relax(inputs, out, tensors, g))
            self._fused.append(fused_activation(program.steps, value - 1, self.lines[-1], self.boxes, tensors, g))
            self.boxes.append(out)

    def least(self, target: int, weight: Tensor) -> Tensor:
        """At most the minimum of <weight, value> over the region; weight (batch, rows, ...), result float64."""
        seen = self._view(target)
        parts = [
            below(seen.steps, self.region, target, part, self.boxes, seen.lines, self.tensors, self.g)
            for part in weight.split(self._rows(seen), 1)
        ]
        return torch.cat(parts, 1)

    def _view(self, target: int) -> View:
        """Of a value, through layers that are fused."""
        fused = self._fused[:target]
        fused[-1] = fused_target(self.program.steps, target, self.boxes, self.tensors, self.g) or fused[-1]
        steps, lines = zip(*fused, strict=True)
        return whole(target, steps, self.region, self.boxes, lines)

    def _plain(self, target: int) -> View:
        """Of a value, layer by layer: lines can have slopes of their own."""
        return whole(target, self.program.steps, self.region, self.boxes, self.lines)

    def _rows(self, seen: View) -> int:
        """How many functions of a view may go backward at once."""
        return max(1, most_elements(self.region) // max(1, len(self.region) * seen.widest))

    def _refined(self, target: int, kinks: bool) -> Interval:
        """A value's box by CROWN, where that matters: for ReLUs, where it has both signs."""
        box = self.boxes[target]
        if target in self.tuned.chosen:
            slopes = {k: slope for (value, k), slope in self.tuned.slopes.items() if value == target}
            found = [self._ends(self._plain(target), self.tuned.chosen[target], slopes)]
        else:
            wanted = ((box.lower < 0) & (box.upper > 0) if kinks else box.upper > box.lower).flatten(1)
            self.tuned.chosen[target] = chosen = _first(wanted)
            seen = self._view(target)
            found = [
                self._ends(part, _first(wanted[:, part.places]), {})
                for part in (seen.tile(tile, self.tensors, self.g) for tile in seen.tiles(2 * chosen.numel()))
            ] or [self._ends(seen, chosen, {})]
        at, low, high = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        if not at.shape[1]:
            return box
        ends = [end.flatten(1).scatter(1, at, new).view_as(end) for end, new in ((box.lower, low), (box.upper, high))]
        met = box.meet(*ends)
        if any(slope.requires_grad for (value, _), slope in self.tuned.slopes.items() if value == target):
            # In a search, slopes that are worse than intervals so far are to get better, too.
            lower, upper = (
                torch.where(new.isfinite(), new + (end - new).detach(), end)
                for end, new in zip((met.lower, met.upper), ends, strict=True)
            )
            return Interval(lower, upper)
        return Interval(met.lower, met.upper)

    def _ends(self, seen: View, chosen: Tensor, slopes: Mapping[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Of the chosen elements (batch, count) of a view: which of the value's they are, lower and upper ends.

        Args:
            slopes: by step, (batch, 2 count or 1, ...), those of the lower ends first.
        """
        count, dtype = chosen.shape[1], self.region.box.lower.dtype
        parts = [seen.places.new_zeros(len(chosen), 0, dtype=torch.float64)]
        for rows in torch.arange(2 * count, device=chosen.device).split(self._rows(seen)) if count else ():
            sign = torch.where(rows < count, 1.0, -1.0).to(dtype).expand(len(chosen), -1)
            weight = sign.new_zeros(len(chosen), len(rows), len(seen.places))
            weight = weight.scatter(2, chosen[:, rows % count, None], sign[..., None]).unflatten(2, seen.shape)
            own = {k: slope if slope.shape[1] == 1 else slope[:, rows] for k, slope in slopes.items()}
            lines = with_slopes(self.program, self.boxes, seen.lines, own, self.g) if own else seen.lines
            parts.append(below(seen.steps, seen.region, seen.target, weight, seen.boxes, lines, self.tensors, self.g))
        low, high = rounded_down(torch.cat(parts, 1), dtype, self.g).chunk(2, 1)
        return seen.places[chosen], low, -high

    def optimised(self, target: int, weight: Tensor, steps: int, lr: float) -> Tensor:
        """As `least`, with slopes of activations found for each row by Adam."""
        state = self.program, self.region, target
        return torch.cat([
            optimised(*state, part, self.boxes, self.lines, self.tensors, self.g, steps, lr)
            for part in weight.split(self._rows(self._plain(target)), 1)
        ], 1)  # fmt: skip


def most_elements(region: Region) -> int:
    """Of a weight, on the region's device."""
    return ELEMENTS.get(region.box.lower.device.type, ELEMENTS["cuda"])


def _first(wanted: Tensor) -> Tensor:
    """Which are wanted (batch, elements), of each sample, filled up with others: (batch, the largest number)."""
    count = int(wanted.sum(1).max()) if len(wanted) else 0
    return wanted.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]


def rounded_down(value: Tensor, dtype: torch.dtype, g: Guarantee) -> Tensor:
    """float64 to dtype, below where bounds are sound."""
    return rounding.cast_down(value, dtype) if g.sound else value.to(dtype)
