"""Branch and bound on the signs of ReLUs: the complete last stage, for small networks.

Either a ReLU's input is >= 0 or it is <= 0; in each half the ReLU is a line. A half whose bound is positive is closed,
the others are halved again, those with the least bound first (Bunel et al., JMLR 2020; Wang et al., NeurIPS 2021). All
bounds are the sound ones of `below`, so what is closed is proven.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastrobust.bounds.interval import Interval, Region
from fastrobust.bounds.layers import Lines
from fastrobust.bounds.nonlinear import Relu
from fastrobust.bounds.optimise import optimised
from fastrobust.bounds.program import below
from fastrobust.bounds.relaxation import Relaxation

__all__ = ["Limits", "Outcome", "branch"]

BATCH = 128  # halves bounded at a time
STEPS, RATE = 15, 0.2


@dataclass(frozen=True)
class Limits:
    """What a point may cost.

    Attributes:
        seconds: of time.
        halves: that wait at the same time; each keeps a byte a ReLU.
        relus: of a network for which this is tried.
    """

    seconds: float = 30.0
    halves: int = 100_000
    relus: int = 10_000


@dataclass(frozen=True)
class Outcome:
    """What came of one point: a bound that holds for all classes, a counterexample, or the reason for neither."""

    margin: float
    point: Tensor | None
    reason: str


@dataclass(order=True)
class _Half:
    bound: float
    number: int
    row: int  # of the functions
    signs: Tensor  # int8, a number a ReLU: 1, -1, or 0 where it is not split


def branch(relaxed: Relaxation, weight: Tensor, falsifies: Callable[[Tensor], Tensor], limits: Limits) -> Outcome:
    """Whether all of <weight[row], outputs> are positive on the set of one point.

    Args:
        relaxed: of that point alone.
        weight: (rows, outputs).
        falsifies: which points (n, ...) are counterexamples, (n,) bool.
    """
    began, ids = time.perf_counter(), itertools.count()
    search = _Search(relaxed, weight)
    if search.relus > limits.relus:
        return Outcome(-torch.inf, None, f"the network has {search.relus} ReLUs, more than {limits.relus}")
    none = torch.zeros(search.relus, dtype=torch.int8)
    waiting = [_Half(-torch.inf, next(ids), row, none) for row in range(len(weight))]
    closed = torch.inf
    while waiting:
        batch = [heapq.heappop(waiting) for _ in range(min(BATCH, len(waiting)))]
        found, corners, choice = search.bound([h.row for h in batch], torch.stack([h.signs for h in batch]))
        wrong = falsifies(corners)
        if bool(wrong.any()):
            return Outcome(-torch.inf, corners[wrong][0], "")
        for half, value, split in zip(batch, found.tolist(), choice.tolist(), strict=True):
            value = max(value, half.bound)
            if value > 0:
                closed = min(closed, value)
                continue
            if split < 0:
                return Outcome(value, None, f"a half without free ReLUs has a bound of {value:.3g}")
            for sign in (1, -1):
                signs = half.signs.clone()
                signs[split] = sign
                heapq.heappush(waiting, _Half(value, next(ids), half.row, signs))
        worst = waiting[0].bound if waiting else closed
        if time.perf_counter() - began > limits.seconds and waiting:
            return Outcome(worst, None, f"{limits.seconds:g} s were not enough: {len(waiting)} halves are open")
        if len(waiting) > limits.halves:
            return Outcome(worst, None, f"{len(waiting)} halves are open, more than {limits.halves}")
    return Outcome(closed, None, "")


class _Search:
    """Bounds of halves: the boxes of the whole set, cut by the signs."""

    def __init__(self, relaxed: Relaxation, weight: Tensor) -> None:
        self.relaxed, self.weight = relaxed, weight
        steps = relaxed.program.steps
        self.layers = [k for k, step in enumerate(steps) if isinstance(step.layer, Relu)]
        self.inputs = [steps[k].inputs[0] for k in self.layers]
        self.sizes = [relaxed.program.shape(v).numel() for v in self.inputs]
        self.relus = sum(self.sizes)

    def bound(self, rows: Sequence[int], signs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each half the bound (n,), the corner of the set where its linear function is least, and the ReLU to split
        next, -1 where all are lines."""
        r, count = self.relaxed, len(rows)
        program = r.program
        boxes = [_repeat(box, count) for box in r.boxes]
        splits = {}
        for value, part in zip(self.inputs, signs.to(boxes[0].lower.device).split(self.sizes, 1), strict=True):
            shaped, box = part.view(count, *program.shape(value)), boxes[value]
            lower = torch.where(shaped > 0, box.lower.clamp(min=0), box.lower)
            boxes[value] = Interval(lower, torch.where(shaped < 0, box.upper.clamp(max=0), box.upper))
            if bool(part.any()):
                splits[value] = shaped.to(box.lower.dtype)
        lines: list[Lines | None] = [None if line is None else _repeat_lines(line, count) for line in r.lines]
        for k, value in zip(self.layers, self.inputs, strict=True):
            lines[k] = program.steps[k].layer.relax([boxes[value]], boxes[k + 1], r.tensors, r.g)
        region = Region(_repeat(r.region.box, count))
        weight = self.weight[list(rows)][:, None]
        target, seen = program.outputs, dict[int, Tensor]()
        found = optimised(program, region, target, weight, boxes, lines, r.tensors, r.g, STEPS, RATE, splits)[:, 0]
        below(program.steps, region, target, weight, boxes, lines, r.tensors, r.g, seen=seen)
        box = region.box
        slope = seen.get(0, torch.zeros_like(box.lower)[:, None])[:, 0]
        corners = torch.where(slope > 0, box.lower, torch.where(slope < 0, box.upper, box.lower / 2 + box.upper / 2))
        return found, corners, self._choice(boxes, lines, seen)

    def _choice(self, boxes: Sequence[Interval], lines: Sequence[Lines | None], seen: dict[int, Tensor]) -> Tensor:
        """The ReLU whose upper line costs the bound most, of those whose inputs have both signs."""
        scores = []
        for k, value in zip(self.layers, self.inputs, strict=True):
            box, line = boxes[value], lines[k]
            assert line is not None
            open_ = (box.lower < 0) & (box.upper > 0)
            weight = seen[k + 1][:, 0] if k + 1 in seen else torch.zeros_like(box.lower)
            cost = weight.clamp(max=0).abs() * line.high + 1e-6 * torch.minimum(box.upper, -box.lower)
            scores.append(torch.where(open_, cost.nan_to_num(), -1.0).flatten(1))
        if not scores:
            return torch.full((len(boxes[0].lower),), -1, dtype=torch.int64)
        best = torch.cat(scores, 1).max(1)
        return torch.where(best.values >= 0, best.indices, -1)


def _repeat(box: Interval, count: int) -> Interval:
    ball = box.ball
    if ball is not None:
        lower, upper, eps = (_expanded(value, count) for value in (ball.lower, ball.upper, ball.eps))
        ball = replace(ball, lower=lower, upper=upper, eps=eps)
    return Interval(_expanded(box.lower, count), _expanded(box.upper, count), ball)


def _repeat_lines(line: Lines, count: int) -> Lines:
    slopes = (_expanded(line.low_slope, count), _expanded(line.low, count))
    above = (_expanded(line.high_slope, count), _expanded(line.high, count))
    return Lines(*slopes, *above, None if line.source is None else _expanded(line.source, count))


def _expanded(value: Tensor, count: int) -> Tensor:
    return value.expand(count, *value.shape[1:])
