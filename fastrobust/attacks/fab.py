"""The Fast Adaptive Boundary attack (Croce and Hein, ICML 2020) and its version towards single classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrobust import _backend, ops
from fastrobust.attacks._boundary import BoundaryAttack, least_step
from fastrobust.attacks._points import AttackResult, Points
from fastrobust.attacks._rows import assign, column, distance, draw_back, ends, native, size
from fastrobust.attacks._victim import Model
from fastrobust.threat import NORMS

__all__ = ["FAB", "FABT"]

RADIUS = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}  # of random starts where no eps is given


class FAB(BoundaryAttack):
    """FAB: steps onto the linearised boundary that stay near the clean point, for the nearest point that fools.

    A step goes from the iterate x to (1 - alpha) (x + eta d) + alpha (x_0 + eta d_0): d and d_0 are the least steps
    (exact, within the box) of x and of the clean point x_0 onto the boundary linearised at x, alpha their share
    ||d|| / (||d|| + ||d_0||), at most `alpha_max`. What fools is kept if it is the nearest, and drawn back towards x_0.
    Each step costs a forward pass, and a backward pass for each other class; `FABT` needs only one.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        norm: "Linf", "L2" or "L1": which norm to minimise.
        steps: steps of a run.
        restarts: runs, the first from the point itself, others from a distance of eps / 2 (0.15, 0.5, 2.5 for Linf, L2,
            L1 if eps is None) in a random direction. A point found within eps needs no other.
        eps: where given, a point whose norm is at most this is good enough, and leaves.
        alpha_max: largest weight of the clean point.
        eta: overshoot, >= 1.
        beta: share of the way back from the clean point that an iterate keeps once it fools, in (0, 1).
        keywords: those of `Attack` (targeted, box, compile, seed, batch_size, eot, autocast), and `final_search`:
            forward passes of a search on the way to what was found (0 as in AutoAttack; 3 in the paper).

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        steps: int = 100,
        restarts: int = 1,
        eps: float | None = None,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        **keywords: Any,
    ) -> None:
        super().__init__(model, norm, steps, restarts=restarts, eps=eps, **keywords)
        name = type(self).__name__
        if not 0 <= alpha_max <= 1:
            raise ValueError(f"{name}: alpha_max must be in [0, 1], got {alpha_max!r}")
        if not 1 <= eta < torch.inf:
            raise ValueError(f"{name}: eta must be finite and >= 1, got {eta!r}")
        if not 0 < beta < 1:
            raise ValueError(f"{name}: beta must be in (0, 1), got {beta!r}")
        self.alpha_max, self.eta, self.beta = alpha_max, eta, beta

    def passes(self) -> int:
        return 2 * super().passes()

    def begin(self, points: Points, draw: int) -> None:
        points.x_adv = points.centre.clone()
        if draw % self.restarts == 0:
            return
        cube = "Linf" if self.norm == "Linf" else "L2"
        way = ops.random_start(
            torch.zeros_like(points.centre), 1.0, cube, (-1.0, 1.0), seed=self.seed, index=points.index, draw=draw
        )
        radius = RADIUS[self.norm] if self.eps is None else self.eps
        points.x_adv = self.clip(points.centre + way * column(radius / 2 / size(way, self.norm), way))

    def boundary(self, points: Points) -> tuple[Tensor, Tensor]:
        """How much the class on the other side leads, (n,), and its gradient; 0 where there is none to use."""
        lead, slope, _ = self.nearest(points, points.order[:, :-1])
        return lead, slope

    def step(self, points: Points) -> Tensor:
        lead, slope = self.boundary(points)
        x, centre = points.x_adv, points.centre
        moved = self._moved(x, centre, slope, lead)
        blocked = (distance(slope, None, "Linf") == 0) & ~points.done
        assign(moved, blocked | points.done, x)
        fooled = self._objective.fooled(self._objective.predict(moved, points), points.y) & ~points.done
        self.keep(points, moved, fooled)
        draw_back(moved, fooled, centre, self.beta, (self.low, self.high))
        points.x_adv = moved
        points.bad += blocked
        points.steps += ~points.done
        return self.over(points)

    def _moved(self, x: Tensor, centre: Tensor, slope: Tensor, lead: Tensor) -> Tensor:
        """A mean of the steps onto the boundary from x and from the centre, in the box; like x (batch, ...)."""
        arrays = (x, centre, slope, lead)
        module = None if self.norm == "L1" else native(*arrays)
        if module is not None:
            out, (low, high) = torch.empty_like(x), ends((self.low, self.high), x)
            module.fab_step(
                *(t.data_ptr() for t in (out, *arrays, low, high)), len(x), x[0].numel(), NORMS.index(self.norm),
                self.eta, self.alpha_max, _backend.threads(),
            )  # fmt: skip
            return out
        here = least_step(x, slope, -lead, self.norm, self.box)
        back = (slope * (x - centre)).flatten(1).sum(1)
        there = least_step(centre, slope, back - lead, self.norm, self.box)
        near, far = (size(d, self.norm).clamp(min=1e-8) for d in (here, there))
        alpha = column((near / (near + far)).clamp(max=self.alpha_max), x)
        return self.clip((x + self.eta * here) * (1 - alpha) + (centre + self.eta * there) * alpha)


class FABT(FAB):
    """FAB towards one wrong class after another, the likeliest first: one backward pass a step whatever the classes.

    Args:
        targets: how many classes to try; at most classes - 1.
        Others as those of `FAB`, without `targeted`. `restarts` are runs for each of the classes.
    """

    def __init__(self, model: Model, norm: str = "Linf", steps: int = 100, restarts: int = 1,
                 eps: float | None = None, targets: int = 9, **keywords: Any) -> None:  # fmt: skip
        if keywords.get("targeted"):
            raise ValueError(f"{type(self).__name__}: targeted must be False: it tries the targets itself")
        super().__init__(model, norm, steps, restarts, eps, **keywords)
        if not isinstance(targets, int) or targets < 1:
            raise ValueError(f"{type(self).__name__}: targets must be an integer >= 1, got {targets!r}")
        self.targets = self._count = targets

    def runs(self) -> int:
        return self.restarts * self._count

    def _attack(self, work: Points, result: AttackResult) -> None:
        self._count = min(self.targets, work.order.shape[1] - 1)
        super()._attack(work, result)

    def begin(self, points: Points, draw: int) -> None:
        points.target = points.order[:, draw // self.restarts].contiguous()
        super().begin(points, draw)

    def boundary(self, points: Points) -> tuple[Tensor, Tensor]:
        assert points.target is not None
        lead, slope, _ = self.nearest(points, points.target[:, None])
        return lead, slope
