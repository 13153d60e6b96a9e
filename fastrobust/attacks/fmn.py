"""Fast minimum norm (Pintor et al., NeurIPS 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrobust import _checks, ops
from fastrobust.attacks._minimum import MinimumNorm
from fastrobust.attacks._points import AttackResult, Points
from fastrobust.attacks._rows import column, distance, largest, size, unit_step
from fastrobust.attacks._victim import Model

__all__ = ["FMN"]

DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
SEARCHES = 10  # halvings of the way from x to a given start
FAR = 16.0  # how far past the sphere a point is pushed for the projection onto ball and box to cut


class FMN(MinimumNorm):
    """Least norm: steps along the gradient of the margin, in a ball that shrinks where the model is fooled.

    Elsewhere it grows; until a point first fools the model, at least to where the margin, were it linear, would be 0.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        norm: "Linf", "L2", "L1" or "L0".
        steps: gradient steps.
        alpha: length (L2) of the first step, in x's units; that of the last is `alpha_final`, alpha / 100 if None.
        gamma: share by which the radius changes in the first step; in the last `gamma_final`.
        keywords: those of `MinimumNorm`: eps, targeted, box, compile, seed, batch_size, eot, autocast.
    """

    starts_at_x = True

    def __init__(
        self, model: Model, norm: str = "L2", steps: int = 100, alpha: float = 1.0, alpha_final: float | None = None,
        gamma: float = 0.05, gamma_final: float = 0.001, **keywords: Any,
    ) -> None:  # fmt: skip
        super().__init__(model, norm, steps, **{"loss": "margin", **keywords})
        alpha_final = alpha / 100 if alpha_final is None else alpha_final
        for key, length in (("alpha", alpha), ("alpha_final", alpha_final)):
            if not (math.isfinite(length) and length > 0):
                raise ValueError(f"FMN: {key} must be finite and > 0, got {length!r}")
        for key, share in (("gamma", gamma), ("gamma_final", gamma_final)):
            if not 0 < share < 1:
                raise ValueError(f"FMN: {key} must be in (0, 1), got {share!r}")
        if self.loss != "margin":
            raise ValueError(f"FMN: loss must be 'margin', of which a radius is made, got {self.loss!r}")
        self.alpha, self.alpha_final, self.gamma, self.gamma_final = alpha, alpha_final, gamma, gamma_final
        self._start: Tensor | None = None

    def run(self, x: Tensor, y: Tensor, index: Tensor | None = None, start: Tensor | None = None) -> AttackResult:
        """As `Attack.run`; `start`, like x, are points in the box from which to search: on the way from x to them
        the boundary is found by bisection. Those that do not fool the model are not used."""
        if start is not None:
            _checks.check_points("FMN", start, self.box, (x.dtype,))
            _checks.check_same("FMN", "start", start, "x", x)
        self._start = start
        try:
            return super().run(x, y, index)
        finally:
            self._start = None

    def prepare(self, work: Points) -> None:
        super().prepare(work)
        work.first = work.centre if self._start is None else self._boundary(self._start.detach(), work)

    def _boundary(self, start: Tensor, work: Points) -> Tensor:
        delta, usable = start.to(work.centre.dtype) - work.centre, self._verdict(start, work)[1]
        low = torch.zeros(len(work), dtype=delta.dtype, device=delta.device)
        high, best = torch.ones_like(low), torch.where(column(usable, delta), work.centre + delta, work.centre)
        for _ in range(SEARCHES):
            middle = (low + high) / 2
            between = self.clip(work.centre + self._part(delta, middle))
            fooled = self._verdict(between.to(work.x.dtype), work)[1]
            best = torch.where(column(fooled & usable, best), between, best)
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
        return best

    def _part(self, delta: Tensor, share: Tensor) -> Tensor:
        """What is left of a perturbation that is made smaller in the attack's norm."""
        if self.norm == "L2":
            return delta * column(share, delta)
        if self.norm == "L0":
            return largest(delta, (share * delta[0].numel()).floor())
        most = size(delta, "Linf")
        if self.norm == "Linf":
            return torch.minimum(delta.abs(), column(share * most, delta)).copysign(delta)
        return (delta.abs() - column((1 - share) * most, delta)).clamp(min=0).copysign(delta)

    def begin(self, points: Points, draw: int) -> None:
        points.x_adv, points.farthest = points.first.clone(), self.farthest(points)
        points.radius = size(points.x_adv - points.centre, self.norm).clamp(min=1.0 if self.norm == "L0" else 0.0)

    def step(self, points: Points) -> Tensor:
        progress = (1 + torch.cos(math.pi * points.steps.to(points.radius.dtype) / self.steps)) / 2
        length = self.alpha_final + (self.alpha - self.alpha_final) * progress
        gamma = self.gamma_final + (self.gamma - self.gamma_final) * progress
        value, fooled, slope = self.look(points)
        norms = self.keep(points, points.x_adv, fooled)
        best = torch.where(points.fooled, -points.value, points.farthest)
        points.radius = torch.minimum(self._radius(points, fooled, value, slope, norms, best, gamma), points.farthest)
        # L2: onto the sphere, also from within: nearer by 5% than with the ball on a CNN.
        after = {"L0": "largest", "L2": "sphere"}.get(self.norm, "")
        reach = FAR * points.radius if self.norm == "L2" else points.radius
        box = (self.low, self.high) if self.norm == "L0" else None
        points.x_adv = unit_step(points.x_adv, points.centre, slope, length, after, reach, box)
        if self.norm != "L0":
            points.x_adv = ops.project(points.x_adv, points.centre, points.radius, self.norm, self.box)
        return self.over(points)

    def _radius(
        self, points: Points, fooled: Tensor, value: Tensor, slope: Tensor, norms: Tensor, best: Tensor, gamma: Tensor
    ) -> Tensor:
        radius = points.radius
        if self.norm == "L0":
            less = torch.minimum(torch.minimum(radius - 1, (radius * (1 - gamma)).floor()), best)
            return torch.where(fooled, less, torch.maximum(radius + 1, (radius * (1 + gamma)).floor())).clamp(min=1)
        steepness = distance(slope, None, DUAL[self.norm])
        missing = (value.abs() / steepness.clamp(min=1e-12)).to(radius.dtype).nan_to_num(nan=torch.inf)
        more = radius * (1 + gamma)
        more = torch.where(points.fooled, more, torch.maximum(norms + missing, more))
        return torch.where(fooled, torch.minimum(radius * (1 - gamma), best), more)
