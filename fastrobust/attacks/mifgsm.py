"""MI-FGSM, the momentum iterative fast gradient sign method (Dong et al., CVPR 2018)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrobust import ops
from fastrobust.attacks._attack import Attack
from fastrobust.attacks._points import AttackResult, Points
from fastrobust.attacks._rows import assign
from fastrobust.attacks._victim import Model
from fastrobust.threat import Threat

__all__ = ["MIFGSM"]

NORMS = ("Linf", "L2")


class MIFGSM(Attack):
    """Steps along gathered gradients: g <- decay g + grad / ||grad||_1, then x + alpha sign(g), from x itself.

    In L2 the step is alpha g / ||g||_2. The momentum makes examples that carry over to other models. Drop-in for
    ``torchattacks.MIFGSM``; a gradient that is zero throughout, or not finite, moves nothing and is not gathered.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        eps: radius of the ball, in x's units.
        alpha: step length, in x's units (the paper: eps / steps).
        steps: number of gradient steps.
        decay: of the gathered gradient, >= 0 (mu in the paper).
        norm: "Linf" or "L2".
        early_stop: False: every point makes all steps and returns its last iterate, which carries over best. True: a
            point that fools the model, or was wrong already, stays as it is.
        threat: `fastrobust.Linf(eps)` or `fastrobust.L2(eps)`, in place of norm, eps and box.
        keywords: those of `Attack` but restarts: targeted, loss, box, compile, seed, batch_size, eot, autocast.
    """

    starts_at_x = True

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        norm: str = "Linf",
        early_stop: bool = False,
        *,
        threat: Threat | None = None,
        **keywords: Any,
    ) -> None:
        if threat is not None:
            norm, eps, keywords["box"] = threat.norm, threat.eps, threat.box
        super().__init__(model, **keywords)
        name = type(self).__name__
        for key, number in (("eps", eps), ("alpha", alpha), ("decay", decay)):
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name}: {key} must be finite and >= 0, got {number!r}")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"{name}: steps must be an integer >= 1, got {steps!r}")
        if norm not in NORMS:
            raise ValueError(f"{name}: norm must be one of {', '.join(NORMS)}, got {norm!r}")
        self.eps, self.alpha, self.steps, self.decay = float(eps), float(alpha), steps, float(decay)
        self.norm, self.early_stop = norm, early_stop

    def passes(self) -> int:
        return self.steps + 1

    def begin(self, points: Points, draw: int) -> None:
        points.x_adv, points.momentum = points.centre.clone(), torch.zeros_like(points.centre)
        points.k = torch.zeros_like(points.y)

    def step(self, points: Points) -> Tensor:
        value, prediction, slope = self._objective.gradient(points.x_adv, points)
        over, fooled = points.k >= self.steps, self._objective.fooled(prediction, points.y)
        decided = over | fooled if self.early_stop else over
        show = decided & ~points.done
        assign(points.kept, show, points.x_adv)
        points.value = torch.where(show, value.to(points.value.dtype), points.value)
        points.fooled = torch.where(show, fooled, points.fooled)
        moves = ~(decided | points.done)
        largest = slope.flatten(1).abs().amax(1)
        good = torch.isfinite(largest) & (largest > 0)
        points.bad += moves & ~good
        column = [-1] + [1] * (slope.dim() - 1)
        slope = slope / largest.view(column)  # its L1 norm may underflow
        gathered = points.momentum * self.decay + slope / _l1(slope).view(column)
        points.momentum = torch.where((moves & good).view(column), gathered, points.momentum)
        moved = ops.pgd_step(points.x_adv, points.centre, points.momentum, self.alpha, self.eps, self.norm, self.box)
        points.x_adv = torch.where((moves & good).view(column), moved, points.x_adv)
        points.steps += moves
        points.k += moves
        return decided

    def _attack(self, work: Points, result: AttackResult) -> None:
        if self.early_stop:
            super()._attack(work, result)
            return
        for mine, new in zip(result, self._serve(work, 0), strict=True):  # also where x itself was better
            mine.copy_(new)


def _l1(slope: Tensor) -> Tensor:
    """The L1 norm of each row; pairs are added in a fixed order, whatever the number of rows."""
    rows = slope.flatten(1).abs()
    while rows.shape[1] > 1:
        half = (rows.shape[1] + 1) // 2
        rest = rows[:, half:]
        rows = torch.cat([rows[:, : rest.shape[1]] + rest, rows[:, rest.shape[1] : half]], 1)
    return rows[:, 0]
