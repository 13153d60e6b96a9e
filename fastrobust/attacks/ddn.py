"""Decoupled direction and norm (Rony et al., CVPR 2019)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrobust.attacks._minimum import MinimumNorm
from fastrobust.attacks._points import Points
from fastrobust.attacks._rows import unit_step
from fastrobust.attacks._victim import Model

__all__ = ["DDN"]

FIRST_STEP, LAST_STEP = 1.0, 0.01


class DDN(MinimumNorm):
    """Least L2 norm: steps along the gradient, on a sphere that shrinks where the model is fooled and grows elsewhere.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        steps: gradient steps.
        gamma: share by which the radius changes in a step.
        init_norm: radius of the first sphere, in x's units.
        levels: iterates are rounded to so many values evenly spaced over the box (256 for 8-bit images); None: not.
        keywords: those of `MinimumNorm`: eps, targeted, loss, box, compile, seed, batch_size, eot, autocast.
    """

    starts_at_x = True

    def __init__(
        self, model: Model, steps: int = 100, gamma: float = 0.05, init_norm: float = 1.0, levels: int | None = None,
        **keywords: Any,
    ) -> None:  # fmt: skip
        super().__init__(model, "L2", steps, **keywords)
        if not 0 < gamma < 1:
            raise ValueError(f"DDN: gamma must be in (0, 1), got {gamma!r}")
        if not (math.isfinite(init_norm) and init_norm > 0):
            raise ValueError(f"DDN: init_norm must be finite and > 0, got {init_norm!r}")
        if levels is not None and (not isinstance(levels, int) or levels < 2):
            raise ValueError(f"DDN: levels must be None or an integer >= 2, got {levels!r}")
        self.gamma, self.init_norm, self.levels = gamma, init_norm, levels

    def begin(self, points: Points, draw: int) -> None:
        points.x_adv, points.farthest = points.centre.clone(), self.farthest(points)
        points.radius = torch.full_like(points.farthest, self.init_norm)

    def step(self, points: Points) -> Tensor:
        done = points.steps.to(points.radius.dtype) / self.steps
        length = LAST_STEP + (FIRST_STEP - LAST_STEP) * (1 + torch.cos(math.pi * done)) / 2
        _, fooled, slope = self.look(points)
        self.keep(points, points.x_adv, fooled)
        radius = points.radius * torch.where(fooled, 1 - self.gamma, 1 + self.gamma)
        points.radius = torch.minimum(radius, points.farthest)
        box = self.low, self.high
        points.x_adv = unit_step(points.x_adv, points.centre, slope, length, "sphere", points.radius, box)
        if self.levels is not None:
            points.x_adv = self._rounded(points.x_adv, self.levels)
        return self.over(points)

    def _rounded(self, x: Tensor, levels: int) -> Tensor:
        spacing = (self.high - self.low) / (levels - 1)
        return self.clip(self.low + ((x - self.low) / torch.where(spacing > 0, spacing, 1)).round() * spacing)
