"""Auto-PGD (Croce and Hein, ICML 2020) and its L1 version (Croce and Hein, ICML 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrobust import _backend, _checks, ops
from fastrobust.attacks._attack import Attack
from fastrobust.attacks._points import AttackResult, Points
from fastrobust.attacks._rows import assign, column, distance, native
from fastrobust.attacks._victim import Model
from fastrobust.ops import _rounding as rounding
from fastrobust.threat import NORMS, Threat

__all__ = ["APGD", "APGDT"]

MOMENTUM = 0.75
# L1: share of coordinates in the first steps, how a step shrinks and how far, what a fall of the sparsity is.
SPARSE, SHRINK, SMALLEST, FALL = 0.2, 1.5, 10.0, 0.95


class APGD(Attack):
    """Auto-PGD: steps with momentum whose length halves where they stop paying, from the best point so far.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        norm: "Linf", "L2" or "L1".
        eps: radius of the ball, in x's units.
        steps: gradient steps of a run.
        restarts: random starts; a point that is fooled needs no other.
        loss: "ce", "dlr" (Linf, L2, L1), "margin", "kl" or a callable.
        rho: share of the steps between two checks that must raise the loss.
        large_radii: begin with radii 3 eps and 2 eps (for 30% of the steps each), as AutoAttack does for L1.
        threat: `fastrobust.Linf(eps)` and the like, in place of norm, eps and box.
        keywords: those of `Attack`: targeted, box, compile, seed, batch_size, eot, autocast.
    """

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        steps: int = 100,
        restarts: int = 1,
        loss: Any = "ce",
        rho: float = 0.75,
        large_radii: bool = False,
        *,
        threat: Threat | None = None,
        **keywords: Any,
    ) -> None:
        if threat is not None:
            norm, eps, keywords["box"] = threat.norm, threat.eps, threat.box
        super().__init__(model, restarts=restarts, loss=loss, **keywords)
        name = type(self).__name__
        _checks.check_norm(name, norm)
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"{name}: eps must be finite and >= 0, got {eps!r}")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"{name}: steps must be an integer >= 1, got {steps!r}")
        if not 0 < rho < 1:
            raise ValueError(f"{name}: rho must be in (0, 1), got {rho!r}")
        self.norm, self.eps, self.steps, self.rho, self.large_radii = norm, float(eps), steps, rho, large_radii

    def passes(self) -> int:
        return self.runs() * (self.steps + 1)

    def _stages(self) -> list[tuple[int, float]]:
        """Steps and radius of each part of a run."""
        if not self.large_radii:
            return [(self.steps, self.eps)]
        first = math.ceil(0.3 * self.steps)
        return [(first, 3 * self.eps), (first, 2 * self.eps), (self.steps - 2 * first, self.eps)]

    def prepare(self, work: Points) -> None:
        self._box = _checks.box_ends(type(self).__name__, self.box, work.centre)

    def begin(self, points: Points, draw: int) -> None:
        start, rows = self._start(points, draw), torch.arange(len(points), device=points.y.device)
        for key in ("stage", "k", "counter", "window", "rises"):
            setattr(points, key, torch.zeros_like(points.y))
        for key in ("best_value", "previous", "value_at_check", "share", "spread", "radius", "length", "budget"):
            setattr(points, key, torch.zeros_like(rows, dtype=start.dtype))
        points.halved = torch.ones_like(points.done)
        points.x_adv, points.x_old, points.x_best, points.slope = start, start.clone(), start.clone(), start.clone()
        self._enter(points, rows, 0)

    def _start(self, points: Points, draw: int) -> Tensor:
        """Uniform in the ball; for L1, as in the reference code, a normal vector brought onto ball and box.

        Few of its coordinates stay off the centre, and attacks from there get farther than from uniform points.
        """
        centre, radius, seed, index = points.centre, self._stages()[0][1], self.seed, points.index
        if self.norm != "L1":
            return ops.random_start(centre, radius, self.norm, self.box, seed=seed, index=index, draw=draw)
        long = math.sqrt(centre[0].numel())  # that of a normal vector, nearly
        way = ops.random_start(torch.zeros_like(centre), long, "L2", (-long, long), seed=seed, index=index, draw=draw)
        return ops.project(centre + way, centre, radius, self.norm, self.box)

    def _enter(self, points: Points, rows: Tensor, stage: int) -> None:
        """These rows begin a stage: the first where they are, others at their best point so far."""
        if len(rows) == 0:
            return
        (steps, radius), dim = self._stages()[stage], points.x_adv[0].numel()
        if stage:
            best = ops.project(points.x_best[rows], points.centre[rows], radius, self.norm, self.box)
            points.x_adv[rows], points.x_old[rows] = best, best
        for key in ("k", "counter", "rises", "previous"):  # the reference code's first window compares with a loss of 0
            getattr(points, key)[rows] = 0
        points.stage[rows], points.budget[rows] = stage, float(steps)
        points.radius[rows] = rounding.cast_down(torch.tensor(radius, dtype=torch.float64), points.radius.dtype).item()
        points.length[rows] = (1.0 if self.norm == "L1" else 2.0) * radius
        points.window[rows] = max(int((0.04 if self.norm == "L1" else 0.22) * steps), 1)
        points.halved[rows] = True
        if self.norm == "L1":
            moved = (points.x_adv[rows] != points.centre[rows]).flatten(1).sum(1).to(points.spread.dtype)
            points.share[rows] = moved / dim / 1.5 if stage or self.large_radii else SPARSE
            points.spread[rows] = moved if stage or self.large_radii else float(dim)

    def step(self, points: Points) -> Tensor:
        value, prediction, slope = self._objective.gradient(points.x_adv, points)
        value = value.to(points.best_value.dtype).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        stages = self._stages()
        final, first, over = points.stage == len(stages) - 1, points.k == 0, points.k >= points.budget
        fooled = self._objective.fooled(prediction, points.y) & final & ~points.done
        better = ((value > points.best_value) | first) & ~points.done
        assign(points.x_best, better, points.x_adv)
        assign(points.slope, better, slope)
        points.best_value = torch.where(better, value, points.best_value)
        points.value_at_check = torch.where(first, value, points.value_at_check)
        # Random draws that fool once say little: such points go on, to the highest mean loss.
        leaves = fooled & (self.eot == 1)
        # Of a point that stands the highest loss within the radius, of a fooled one what fools.
        show = (better | leaves) & final
        assign(points.kept, show, points.x_adv)
        points.value = torch.where(show, value.to(points.value.dtype), points.value)
        points.fooled = torch.where(show, fooled, points.fooled)
        points.rises += (value > points.previous) & ~first
        points.counter += ~first
        points.previous = torch.where(first, points.previous, value)
        decided, moves = leaves | (over & final), ~(leaves | over | points.done)
        points.bad += self._move(points, slope, self._check(points)) & moves
        points.steps += moves
        points.k += moves
        for stage in range(1, len(stages)):
            self._enter(points, torch.nonzero(over & (points.stage == stage - 1) & ~points.done)[:, 0], stage)
        return decided

    def _check(self, points: Points) -> Tensor:
        """At the end of a window: shorten the step where it does not pay; says who goes on from the best point."""
        due = points.counter == points.window
        if self.norm == "L1":
            spread = (points.x_best != points.centre).flatten(1).sum(1).to(points.spread.dtype)
            fell = spread / points.spread < FALL
            points.share = torch.where(due, spread / points.x_adv[0].numel() / 1.5, points.share)
            shorter = (points.length / SHRINK).clamp(min=points.radius / SMALLEST)
            points.length = torch.where(due, torch.where(fell, points.radius, shorter), points.length)
            points.spread = torch.where(due, spread, points.spread)
            back = due & fell
        else:
            few = points.rises <= points.window * self.rho
            still = ~points.halved & (points.value_at_check >= points.best_value)
            back = due & (few | still)
            points.halved = torch.where(due, back, points.halved)
            points.value_at_check = torch.where(due, points.best_value, points.value_at_check)
            points.length = torch.where(back, points.length / 2, points.length)
            shrink, least = (
                torch.clamp((part * points.budget).floor(), min=1).to(points.window.dtype) for part in (0.03, 0.06)
            )
            points.window = torch.where(due, torch.maximum(points.window - shrink, least), points.window)
        points.counter.masked_fill_(due, 0)
        points.rises.masked_fill_(due, 0)
        return back

    def _move(self, points: Points, slope: Tensor, back: Tensor) -> Tensor:
        """The step, for some from the best point so far; says whose `slope` is zero or not finite, (n,) bool.

        x_old stays with those that go back: the momentum then points from where the iterate was.
        """
        x, centre, old, length, radius = points.x_adv, points.centre, points.x_old, points.length, points.radius
        share = torch.where(points.k > 0, MOMENTUM, 1.0).to(x.dtype)
        arrays = (x, old, centre, slope, points.x_best, points.slope, length, radius, share)
        module = None if self.norm == "L1" else native(*arrays)
        if module is not None:
            bad, (lo, hi, lo_each, hi_each) = torch.empty_like(back), self._box
            module.apgd_step(
                *(t.data_ptr() for t in (*arrays[:6], back, length, radius, share, bad)), len(x), x[0].numel(),
                NORMS.index(self.norm), lo, hi, *(0 if t is None else t.data_ptr() for t in (lo_each, hi_each)),
                self.norm == "Linf", _backend.threads(),
            )  # fmt: skip
            points.x_old, points.x_adv = x, old
            return bad
        largest = distance(slope, None, "Linf")
        x, slope = torch.where(column(back, x), points.x_best, x), torch.where(column(back, x), points.slope, slope)
        if self.norm == "L1":
            moved = ops.project(self._sparse_step(x, slope, length, points.share), centre, radius, self.norm, self.box)
        else:
            way = "exact" if self.norm == "Linf" else "sequential"
            moved = ops.pgd_step(x, centre, slope, length, radius, self.norm, self.box, projection=way)
            part = column(share, x)
            mixed = x + (moved - x) * part + (x - old) * (1 - part)
            moved = ops.project(mixed, centre, radius, self.norm, self.box, projection=way)
        points.x_old, points.x_adv = x, moved
        return (largest == 0) | ~torch.isfinite(largest)

    def _sparse_step(self, x: Tensor, g: Tensor, length: Tensor, share: Tensor) -> Tensor:
        """Along the signs of the largest derivatives, equally long in each, of those that the box lets move."""
        (lo, hi) = self.box
        g = torch.where((g > 0) & (x >= hi) | (g < 0) & (x <= lo), 0, g)
        flat = g.flatten(1)
        dim = flat.shape[1]
        # Rounded down, the reference code rounds up: with few features that would never come to a single coordinate.
        rank = dim - (share * dim).floor().clamp(1, dim).long()
        threshold = flat.abs().sort(1).values.gather(1, rank[:, None])
        signs = torch.where(flat.abs() >= threshold, flat.sign(), 0)
        signs = signs * (length / (signs.abs().sum(1) + 1e-10))[:, None]
        return x + signs.view_as(x)


class APGDT(APGD):
    """Auto-PGD towards one wrong class after another, the likeliest first, on the targeted DLR loss.

    Args:
        targets: how many classes to try; at most classes - 1.
        Others as those of `APGD`.
    """

    def __init__(self, model: Model, norm: str = "Linf", eps: float = 8 / 255, steps: int = 100, restarts: int = 1,
                 targets: int = 9, **keywords: Any) -> None:  # fmt: skip
        if keywords.get("targeted"):
            raise ValueError(f"{type(self).__name__}: targeted must be False: it tries the targets itself")
        super().__init__(model, norm, eps, steps, restarts, **{"loss": "dlr", **keywords})
        if not isinstance(targets, int) or targets < 1:
            raise ValueError(f"{type(self).__name__}: targets must be an integer >= 1, got {targets!r}")
        self.targets = targets

    def runs(self) -> int:
        return self.restarts * self.targets

    def prepare(self, work: Points) -> None:
        super().prepare(work)
        logits = self._logits(work.x)
        work.order = logits.scatter(1, work.y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)

    def _attack(self, work: Points, result: AttackResult) -> None:
        self._count = min(self.targets, work.order.shape[1] - 1)
        super()._attack(work, result)

    def begin(self, points: Points, draw: int) -> None:
        points.target = points.order[:, draw // self.restarts % self._count].contiguous()
        super().begin(points, draw)
