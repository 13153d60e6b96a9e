"""Attacks that look for the nearest point that fools the model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrobust import _checks
from fastrobust.attacks._attack import Attack
from fastrobust.attacks._points import AttackResult, Points
from fastrobust.attacks._rows import assign, column, distance, size
from fastrobust.attacks._victim import Model, to_model_dtype
from fastrobust.ops import _geometry as geometry
from fastrobust.ops import _rounding as rounding

__all__ = ["MINIMUM_NORMS", "MinimumNorm"]

MINIMUM_NORMS = ("Linf", "L2", "L1", "L0")


class MinimumNorm(Attack):
    """What attacks without a radius share; `AttackResult.loss` is the norm of what they found, inf where nothing fools.

    A subclass keeps in `points.kept` the nearest point that fools so far (see `keep`), with `points.fooled` and
    `points.value` = -norm.

    Args:
        norm: one of `MINIMUM_NORMS`.
        steps: steps of a run.
        eps: where given, a point whose norm is at most this is good enough, and leaves.
        keywords: those of `Attack`.
    """

    def __init__(self, model: Model, norm: str, steps: int, *, eps: float | None = None, **keywords: Any) -> None:
        super().__init__(model, **keywords)
        name = type(self).__name__
        if norm not in MINIMUM_NORMS:
            raise ValueError(f"{name}: norm must be one of {', '.join(MINIMUM_NORMS)}, got {norm!r}")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"{name}: steps must be an integer >= 1, got {steps!r}")
        if eps is not None and not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"{name}: eps must be None or finite and >= 0, got {eps!r}")
        self.norm, self.steps, self.eps = norm, steps, eps

    def passes(self) -> int:
        return self.runs() * self.steps

    def run(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> AttackResult:
        found = super().run(x, y, index)
        found.loss.neg_()
        return found

    def prepare(self, work: Points) -> None:
        """The box, rounded inwards to the dtype of the iterates: `self.low` and `self.high`, tensors."""
        x = work.centre
        self.low, self.high = geometry.ends(x, *_checks.box_ends(type(self).__name__, self.box, x))

    def keep(self, points: Points, x: Tensor, fooled: Tensor) -> Tensor:
        """Put down which of these points (batch, ...) fool and are nearer than the nearest; returns their norms."""
        x = to_model_dtype(x, points.x).to(points.kept.dtype)  # what the model saw
        norms = self.measure(x, points).to(points.value.dtype)
        nearer = fooled & ~points.done & ~(-norms <= points.value)
        assign(points.kept, nearer, x)
        points.value = torch.where(nearer, -norms, points.value)
        points.fooled = points.fooled | nearer
        return norms

    def look(self, points: Points) -> tuple[Tensor, Tensor, Tensor]:
        """One pass at `points.x_adv`: the losses, what fools, the gradients, 0 where one holds a NaN or Inf."""
        value, prediction, slope = self._objective.gradient(points.x_adv, points)
        largest = distance(slope, None, "Linf")
        finite = torch.isfinite(largest)
        points.steps = points.steps + ~points.done
        points.bad = points.bad + (((largest == 0) | ~finite) & ~points.done)
        fooled = self._objective.fooled(prediction, points.y)
        if slope.is_cuda or not bool(finite.all()):
            slope = torch.where(column(finite, slope), slope, 0)
        return value, fooled, slope

    def over(self, points: Points) -> Tensor:
        """Which points have made all steps, or are near enough, (n,) bool."""
        return (points.steps >= self.steps) | self.near_enough(points)

    def clip(self, x: Tensor) -> Tensor:
        """Into the box."""
        return torch.minimum(torch.maximum(x, self.low), self.high)

    def farthest(self, points: Points) -> Tensor:
        """The norm of the farthest corner of the box, (n,)."""
        return size(torch.maximum(points.centre - self.low, self.high - points.centre), self.norm)

    def near_enough(self, points: Points) -> Tensor:
        """Which points have been found within `eps`, (n,) bool."""
        if self.eps is None:
            return torch.zeros_like(points.done)
        return points.fooled & (-points.value.double() <= self.eps)

    def measure(self, x: Tensor, points: Points) -> Tensor:
        """The norms (batch,) from the clean points, in float64 and rounded up: what is within `eps` is so exactly."""
        dtype = torch.promote_types(points.x.dtype, torch.float32)
        return rounding.cast_up(distance(x, points.centre, self.norm), dtype)

    def _judge(self, result: AttackResult, work: Points) -> None:
        fooled = self._verdict(result.x_adv, work)[1]
        result.judge(torch.where(fooled, -self.measure(result.x_adv, work), -torch.inf), fooled)

    def _standing(self, result: AttackResult) -> Tensor:
        return ~(result.success & (-result.loss.double() <= (0.0 if self.eps is None else self.eps)))
