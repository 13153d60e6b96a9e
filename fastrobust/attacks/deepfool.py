"""DeepFool (Moosavi-Dezfooli, Fawzi and Frossard, CVPR 2016)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrobust.attacks._boundary import DUAL, BoundaryAttack
from fastrobust.attacks._points import Points
from fastrobust.attacks._rows import column, size
from fastrobust.attacks._victim import Model

__all__ = ["DeepFool"]

MARGIN = 1e-4  # that the authors' code adds to the length of each step
TINY = 1e-30


class DeepFool(BoundaryAttack):
    """DeepFool: least steps onto the nearest linearised boundary until the model errs; fast, and an upper bound only.

    The steps add up to r, and the model is asked at x_0 + (1 + overshoot) r, clipped to the box.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        norm: "L2" or "Linf": which norm to minimise.
        steps: the most steps; a point stops at the first that fools.
        overshoot: by what share of r to go past it, >= 0.
        candidates: how many classes to look at, the label and those likeliest at the clean point; >= 2, None: all.
        keywords: those of `Attack` (targeted, box, compile, seed, batch_size, eot, autocast), and `final_search`:
            forward passes of a search on the way to what was found (0).

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    starts_at_x = True

    def __init__(self, model: Model, norm: str = "L2", steps: int = 50, overshoot: float = 0.02,
                 candidates: int | None = 10, **keywords: Any) -> None:  # fmt: skip
        name = type(self).__name__
        if norm == "L1":
            raise ValueError(f"{name}: norm must be L2 or Linf, got {norm!r}")
        super().__init__(model, norm, steps, **keywords)
        if not (math.isfinite(overshoot) and overshoot >= 0):
            raise ValueError(f"{name}: overshoot must be finite and >= 0, got {overshoot!r}")
        if candidates is not None and (not isinstance(candidates, int) or candidates < 2):
            raise ValueError(f"{name}: candidates must be None or an integer >= 2, got {candidates!r}")
        self.overshoot, self.candidates = overshoot, candidates

    def begin(self, points: Points, draw: int) -> None:
        points.x_adv, points.total = points.centre.clone(), torch.zeros_like(points.centre)

    def step(self, points: Points) -> Tensor:
        count = points.order.shape[1] if self.candidates is None else min(self.candidates, points.order.shape[1])
        lead, slope, prediction = self.nearest(points, points.order[:, : count - 1])
        fooled = self._objective.fooled(prediction, points.y) & ~points.done
        self.keep(points, points.x_adv, fooled)
        steepness, over = size(slope, DUAL[self.norm]), points.steps >= self.steps
        moves = ~(fooled | over | points.done)
        distance = torch.where(steepness > 0, lead.abs() / steepness + MARGIN, 0) * moves
        way = slope.sign() if self.norm == "Linf" else slope / column(steepness.clamp_min(TINY), slope)
        points.total = points.total + column(distance, way) * way
        moved = self.clip(points.centre + (1 + self.overshoot) * points.total)
        points.x_adv = torch.where(column(moves, moved), moved, points.x_adv)
        points.bad += (steepness == 0) & moves
        points.steps += moves
        return fooled | over
