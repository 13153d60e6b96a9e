"""What a network makes of samples and boxes in training: values that are kept or made again, margins, losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastrobust import ops
from fastrobust.bounds.fused import chain, fused_activation, fused_target
from fastrobust.bounds.guarantee import Guarantee
from fastrobust.bounds.interval import Interval, Region
from fastrobust.bounds.layers import Boxes, Layer, Lines, Sums, Tensors
from fastrobust.bounds.nonlinear import Elementwise, MaxPool, Product, Relu
from fastrobust.bounds.program import AFFINE, Program, Step, below

__all__ = ["IDENTITY", "PLAIN", "Act", "Propagated", "Wide", "between"]

PLAIN = Guarantee("none")
Act = tuple[str, float, float]
IDENTITY: Act = ("identity", 0.0, 0.0)
Remake = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Wide:
    """A value of the network for samples and boxes: scale * (points, radius) + shift, where these are given.

    Attributes:
        points: (rows + boxes, ...); the last ones are the boxes' centres.
        radius: (boxes, ...).
        scale, shift: (channels,), not applied yet: what comes next does it in passing.
        remake, source: `remake(*source)` gives points and radius again, so that no backward pass needs to keep them.
    """

    points: Tensor
    radius: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    remake: Remake | None = None
    source: tuple[Any, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.points) - len(self.radius)

    def settled(self) -> Wide:
        """With scale and shift applied."""
        return self if self.scale is None and self.shift is None else self.through(IDENTITY)

    def through(self, act: Act) -> Wide:
        """With an activation applied, too."""
        source = (self.points, self.radius, self.scale, self.shift, *act)
        return Wide(*ops.interval_act(*source), remake=ops.interval_act, source=source)

    def reshaped(self, shape: tuple[int, ...]) -> Wide:
        """Elements as they are, in another shape of a sample."""
        points, radius = _reshaped((self.points, self.radius), shape)
        if self.remake is None:
            return Wide(points, radius)
        remake = partial(_remade, self.remake, shape)
        return Wide(points, radius, remake=remake, source=self.source)

    def ends(self) -> tuple[Tensor, Tensor]:
        """(rows + boxes, ...) lower and upper ends, those of a sample equal; nothing may be left to apply."""
        rows, boxes = self.points[: self.rows], self.points[self.rows :]
        return torch.cat([rows, boxes - self.radius]), torch.cat([rows, boxes + self.radius])

    def box(self) -> Interval:
        """Of the boxes alone, with scale and shift applied, in at least float32."""
        value = self.settled()
        kind = torch.promote_types(value.radius.dtype, torch.float32)
        centre, radius = value.points[self.rows :].to(kind), value.radius.to(kind)
        return Interval(centre - radius, centre + radius)


def _reshaped(parts: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return parts[0].reshape(-1, *shape), parts[1].reshape(-1, *shape)


def _remade(remake: Remake, shape: tuple[int, ...], *source: Any) -> tuple[Tensor, Tensor]:
    return _reshaped(remake(*source), shape)


def between(lower: Tensor, upper: Tensor, rows: int) -> Wide:
    """Of ends (rows + boxes, ...), for samples and boxes."""
    boxes = lower[rows:] / 2 + upper[rows:] / 2
    return Wide(torch.cat([lower[:rows], boxes]), (upper[rows:] - lower[rows:]) / 2)


@dataclass(frozen=True)
class Propagated:
    """What a network makes of samples and boxes.

    Attributes:
        logits: (rows, classes) of the samples.
        values: the program's values, for what needs more than the outputs; () unless asked for.
        program: the network's layers.
        tensors: what their numbers point to, with the batch's statistics in the place of running ones.
    """

    logits: Tensor
    values: Sequence[Wide]
    program: Program
    tensors: Sequence[Tensor]
    _before: Wide
    _head: tuple[Tensor, Tensor | None] | None

    def margins(self, y: Tensor) -> Tensor:
        """(boxes, classes) lower bounds of z_y - z_j, 0 at y: `ops.interval_margins` where a linear layer is last."""
        if self._head is None:
            box = self._before.box()
            return (box.lower.gather(1, y[:, None]) - box.upper).scatter(1, y[:, None], 0.0)
        value = self._before
        weight, bias = (None if part is None else part.to(value.radius.dtype) for part in self._head)
        assert weight is not None
        return ops.interval_margins(value.points[value.rows :], value.radius, weight, bias, y)

    def crown_margins(self, y: Tensor) -> Tensor:
        """(boxes, classes) those of CROWN-IBP (Zhang et al., ICLR 2020), float64; the values must have been kept."""
        classes = self.logits.shape[1]
        others = torch.arange(classes - 1, device=y.device)
        others = others + (others >= y[:, None])
        eye = torch.eye(classes, dtype=self.logits.dtype, device=y.device)
        found = self._crown(eye[y][:, None] - eye[others])
        return found.new_zeros(len(y), classes).scatter(1, others, found)

    def fused_cross_entropy(self, y: Tensor, share: float = 0.0) -> Tensor:
        """(boxes,) upper bounds by loss fusion (Xu et al., NeurIPS 2020), float64; the values must have been kept.

        exp(cross-entropy) = sum_j exp(z_j - z_y). Each term lies below its chord on the interval that `margins` gives,
        so one linear function a box goes back through the network, not one a class.

        Args:
            share: in [0, 1], weight of the sum that `margins` give by themselves in its place.
        """
        high = -self.margins(y).double()  # z_j - z_y <= high
        centre = self._centre().double()
        low = 2 * (centre - centre.gather(1, y[:, None])) - high
        top = high.amax(1, keepdim=True).detach()
        width = (high - low).clamp(min=1e-9)
        most = (high - top).exp()
        chord = most * -torch.expm1(-width) / width
        own = F.one_hot(y, chord.shape[1])
        rise = -self._crown((own * chord.sum(1, keepdim=True) - chord)[:, None])[:, 0]
        fused = rise + (most - chord * high).sum(1)
        return ((1 - share) * fused + share * most.sum(1)).log() + top[:, 0]

    def _crown(self, weight: Tensor) -> Tensor:
        """(boxes, rows) at most the minima of <weight, logits>, weight (boxes, rows, classes)."""
        steps: list[Step] = []
        for k, step in enumerate(self.program.steps):
            end = step.inputs[0] if isinstance(step.layer, Elementwise) else k + 1
            source = chain(self.program.steps, end).source
            fused = end <= k or (k + 1 == self.program.outputs and source < end)
            inputs = (source,) if fused else step.inputs
            steps.append(step._replace(layer=_Remade(self, k), inputs=inputs))
        none, box = [None] * len(steps), self.values[0].box()
        weight, boxes = weight.to(box.lower.dtype), [box] * len(steps)  # these layers find boxes and lines themselves
        return below(steps, Region(box), len(steps), weight, boxes, none, self.tensors, PLAIN)

    def _centre(self) -> Tensor:
        """(boxes, classes) logits at the boxes' centres, or the centres of the logits' boxes."""
        centre = self._before.points[self._before.rows :]
        return centre if self._head is None else F.linear(centre, *self._head)

    def cross_entropy(self, y: Tensor) -> Tensor:
        """(boxes,) that of the worst logits, whose margins are `margins`."""
        return F.cross_entropy(-self.margins(y), y, reduction="none")


class _Remade(Layer):
    """A step back, for which the backward pass keeps the weight that came and makes boxes and lines again."""

    def __init__(self, found: Propagated, number: int) -> None:
        self.found, self.number = found, number

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        if torch.is_grad_enabled():
            found = checkpoint(self._back, weight, use_reentrant=False, preserve_rng_state=False)
        else:
            found = self._back(weight)
        sums.add(found[-1])
        return list(found[:-1])

    def _back(self, weight: Tensor) -> tuple[Tensor, ...]:
        k, steps, tensors = self.number, self.found.program.steps, self.found.tensors
        step, boxes = steps[k], _Boxes(self.found.values)
        line = None
        if not isinstance(step.layer, AFFINE):
            read = [boxes[i] for i in step.inputs]
            out = read[0] if isinstance(step.layer, (Relu, MaxPool)) else boxes[k + 1]  # these do not ask for it
            line = step.layer.relax(read, out, tensors, PLAIN)
        last = fused_target(steps, k + 1, boxes, tensors, PLAIN) if k + 1 == len(steps) else None
        fused, line = last or fused_activation(steps, k, line, boxes, tensors, PLAIN)
        own = Sums(torch.zeros((), dtype=torch.float64, device=weight.device), weight, PLAIN)
        product = [boxes[i] for i in fused.inputs] if isinstance(fused.layer, Product) else []
        found = fused.layer.back(weight, product, line, tensors, own)
        return (*(part.to(weight.dtype) for part in found), own.value.expand(weight.shape[:2]))


class _Boxes(Sequence[Interval]):
    """Those of values, when they are asked for."""

    def __init__(self, values: Sequence[Wide]) -> None:
        self.values = values

    def __getitem__(self, i: Any) -> Any:
        return self.values[i].box()

    def __len__(self) -> int:
        return len(self.values)
