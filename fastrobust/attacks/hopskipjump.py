"""HopSkipJump (Chen, Jordan and Wainwright, IEEE S&P 2020): the boundary found from labels alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrobust import _checks, ops
from fastrobust.attacks._minimum import MinimumNorm
from fastrobust.attacks._points import Points
from fastrobust.attacks._rows import assign, column, size
from fastrobust.attacks._victim import Model, to_model_dtype
from fastrobust.ops import _geometry as geometry

__all__ = ["HopSkipJump"]

SEEK, SEARCH, ESTIMATE, JUMP = range(4)  # what a point's next query is for
FIRST_DELTA = 0.1  # of the box's width: how far the first estimate looks
FLOAT32 = 2.0**-22  # no search halves finer than this, relative to what it began with
CLEAR = 1e-5  # share of the largest logit by which a class must win on a compiled copy, to win on the model too
SPREAD, DRAW = 0x9E3779B1, 2**31  # a query's number in the stream of random starts, where no restart of others comes


class HopSkipJump(MinimumNorm):
    """Along the boundary by the model's decisions alone: no gradients, no scores.

    A point first seeks anything that fools: `starts`, one after another, then uniform noise. A binary search towards x
    brings it to the boundary; there the normal is estimated from which of many random neighbours fool; a jump along it
    (L2), or its sign (Linf), halved until it fools, and a search again. The result is the nearest point of all queries
    that fools. A point that finds nothing to begin with is returned as it is, without success.

    `AttackResult.steps` counts queries: forward passes of the point; not the look at the clean point before, nor the
    model's last word on what a compiled copy found.

    Args:
        model: maps (batch, ...) to logits (batch, classes), of which only the largest one's place is used.
        norm: "L2" or "Linf".
        n_queries: queries of a run.
        starts: (m, ...) points of the box to try first, such as images of other classes; those that fool each are
            where it begins. Needed in practice for targets, and where noise is of the label's class.
        first_estimate: queries of the first estimate of the normal (B_0 in the paper); number t takes sqrt(t) as many.
        most_estimate: at most so many.
        gamma: the tolerance of a search is gamma / d^(3/2) of its length for L2, gamma / d^2 for Linf, for d features.
        keywords: those of `MinimumNorm` but steps, loss and eot: eps, targeted, restarts, box (finite), compile, seed,
            batch_size.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        model: Model,
        norm: str = "L2",
        n_queries: int = 5000,
        starts: Tensor | None = None,
        first_estimate: int = 100,
        most_estimate: int = 10_000,
        gamma: float = 1.0,
        **keywords: Any,
    ) -> None:
        name = type(self).__name__
        if norm not in ("L2", "Linf"):
            raise ValueError(f"{name}: norm must be 'L2' or 'Linf', got {norm!r}")
        counts = {"n_queries": n_queries, "first_estimate": first_estimate, "most_estimate": most_estimate}
        for key, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}: {key} must be an integer >= 1, got {count!r}")
        if not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"{name}: gamma must be finite and > 0, got {gamma!r}")
        super().__init__(model, norm, n_queries, **keywords)
        if not all(bool(torch.isfinite(torch.as_tensor(end)).all()) for end in self.box):
            raise ValueError(f"{name}: box must be finite, since noise is drawn from it, got {self.box!r}")
        if self.eot != 1:
            raise ValueError(f"{name}: eot must be 1, since there are no gradients to average, got {self.eot!r}")
        if starts is not None:
            _checks.check_points(f"{name}: starts", starts, self.box, _checks.FLOATS)
        self.starts, self.n_queries, self.gamma = starts, n_queries, float(gamma)
        self.first_estimate, self.most_estimate = first_estimate, most_estimate

    def passes(self) -> int:
        return max(1, self.restarts * self.n_queries // 3)  # forwards only

    def prepare(self, work: Points) -> None:
        super().prepare(work)
        x = work.centre
        self._low, self._high = geometry.ends(x[:1], *_checks.box_ends(type(self).__name__, self.box, x))
        self._low, self._high = self._low.expand_as(x[:1]), self._high.expand_as(x[:1])
        self._width = float((self._high - self._low).mean())
        self._dim = max(x[0].numel(), 1)
        if self.starts is not None:
            if self.starts.shape[1:] != x.shape[1:]:
                raise ValueError(
                    f"{type(self).__name__}: starts must have shape (m, {', '.join(map(str, x.shape[1:]))}), "
                    f"got {tuple(self.starts.shape)}"
                )
            self._starts = self.starts.detach().to(x)

    def begin(self, points: Points, draw: int) -> None:
        self._draw, zero = draw, torch.zeros_like(points.value, dtype=points.centre.dtype)
        points.phase, points.round, points.asked, points.hits = (torch.zeros_like(points.y) for _ in range(4))
        # A query is anchor + clamp(scale * way, -bound, bound): see `_query`.
        points.near, points.far, points.scale, points.norms = zero, zero.clone(), zero.clone(), zero.clone()
        points.edge, points.way = points.centre.clone(), torch.zeros_like(points.centre)
        points.swing, points.drift = torch.zeros_like(points.centre), torch.zeros_like(points.centre)

    def step(self, points: Points) -> Tensor:
        shown = to_model_dtype(self._query(points), points.x)
        with torch.no_grad():
            logits = self._victim.logits(shown)
        prediction = logits.argmax(1).masked_fill(torch.isnan(logits).any(1), -1)
        fooled = self._objective.fooled(prediction, points.y)
        if self._victim.stands_in:  # a search ends so near the boundary that the copy's rounding could decide
            first, second = logits.topk(2, 1).values.unbind(1)
            fooled = fooled & (first - second > CLEAR * logits.abs().amax(1))
        trial, live, phase = shown.to(points.centre.dtype), ~points.done, points.phase
        self.keep(points, trial, fooled)
        points.steps = points.steps + live
        points.asked = points.asked + 1
        self._searched(points, (phase == SEARCH) & live, fooled, trial)
        self._estimated(points, (phase == ESTIMATE) & live, fooled, trial)
        self._landed(points, ((phase == SEEK) | (phase == JUMP)) & live, fooled, trial)
        return self.over(points)

    # --- the query ---

    def _query(self, points: Points) -> Tensor:
        phase = points.phase
        searching = phase == SEARCH
        base, way, scale = points.edge, points.way, points.scale
        if _some(searching):
            base = torch.where(column(searching, base), points.centre, base)
        if _some(phase == ESTIMATE):
            way = torch.where(column(phase == ESTIMATE, way), self._directions(points), way)
        move = column(scale, way) * way
        if self.norm == "Linf" and _some(searching):  # the far point, cut to a smaller ball
            bound = column(torch.where(searching, scale, torch.inf), way)
            move = torch.where(column(searching, way), way, move).clamp(-bound, bound)
        trial = base + move
        if _some(phase == SEEK):
            trial = torch.where(column(phase == SEEK, way), self._seek(points), trial)
        return torch.minimum(torch.maximum(trial, self._low), self._high)

    def _seek(self, points: Points) -> Tensor:
        noise = self._low + (self._high - self._low) * (self._draws(points, "Linf") + 1) / 2
        if self.starts is None or len(self.starts) == 0:
            return noise
        given = self._starts[points.asked.clamp(max=len(self._starts) - 1)]
        return torch.where(column(points.asked < len(self._starts), noise), given, noise)

    def _directions(self, points: Points) -> Tensor:
        """Of length 1: normal for L2, uniform in the cube for Linf (section IV-B)."""
        v = self._draws(points, self.norm)
        return v / column(size(v, "L2") + 1e-12, v)

    def _draws(self, points: Points, norm: str) -> Tensor:
        # The op takes one draw for all rows, queries differ from row to row: so they make samples of their own.
        assert points.index is not None
        number = (points.index * SPREAD + points.steps) & 0xFFFFFFFF
        zero = torch.zeros_like(points.centre)
        return ops.random_start(zero, 1.0, norm, (-2.0, 2.0), seed=self.seed, index=number, draw=DRAW + self._draw)

    # --- what its answer changes ---

    def _landed(self, points: Points, rows: Tensor, fooled: Tensor, trial: Tensor) -> None:
        """After a start or a jump: from what fools a search towards x begins; otherwise half the jump."""
        there = rows & fooled
        points.scale = torch.where(rows & ~fooled, points.scale / 2, points.scale)
        if not _some(there):
            return
        assign(points.edge, there, trial)
        assign(points.way, there, trial - points.centre)
        points.phase = torch.where(there, SEARCH, points.phase)
        points.near = torch.where(there, 0, points.near)
        length = size(trial - points.centre, "Linf") if self.norm == "Linf" else torch.ones_like(points.far)
        points.far = torch.where(there, length, points.far)
        points.norms = torch.where(there, length, points.norms)
        points.scale = torch.where(there, length / 2, points.scale)

    def _searched(self, points: Points, rows: Tensor, fooled: Tensor, trial: Tensor) -> None:
        """Half the interval; at its end the boundary, and a new estimate from there."""
        if not _some(rows):
            return
        assign(points.edge, rows & fooled, trial)
        points.far = torch.where(rows & fooled, points.scale, points.far)
        points.near = torch.where(rows & ~fooled, points.scale, points.near)
        fine = max(self.gamma * self._dim ** (-2.0 if self.norm == "Linf" else -1.5), FLOAT32)
        ends = rows & (points.far - points.near <= fine * points.norms)
        points.scale = torch.where(rows, (points.near + points.far) / 2, points.scale)
        # d * theta * distance for Linf, sqrt(d) * theta * distance for L2: both distance * gamma / d.
        norms = size(points.edge - points.centre, self.norm)
        delta = torch.where(points.round == 0, FIRST_DELTA * self._width, norms * (self.gamma / self._dim))
        points.norms = torch.where(ends, norms, points.norms)
        points.scale = torch.where(ends, delta, points.scale)
        points.phase = torch.where(ends, ESTIMATE, points.phase)
        points.round = points.round + ends
        points.asked = torch.where(ends, 0, points.asked)
        points.hits = torch.where(ends, 0, points.hits)
        for sums in (points.swing, points.drift):
            sums.mul_(column(~ends, sums))

    def _estimated(self, points: Points, rows: Tensor, fooled: Tensor, trial: Tensor) -> None:
        """Sums of the directions and of those that fool; at the end the normal (equation 16), and a jump along it."""
        if not _some(rows):
            return
        moved = (trial - points.edge) / column(points.scale + 1e-8, trial) * column(rows, trial)
        points.swing += moved * column(torch.where(fooled, 1.0, -1.0).to(moved.dtype), moved)
        points.drift += moved
        points.hits = points.hits + (fooled & rows)
        wanted = (self.first_estimate * points.round.to(torch.float64).sqrt()).long().clamp(1, self.most_estimate)
        ends = rows & (points.asked >= wanted)
        if not _some(ends):
            return
        # The mean of phi, from which the baseline is taken unless all agree.
        mean = 2 * points.hits.to(moved.dtype) / points.asked - 1
        normal = points.swing - column(torch.where(mean.abs() == 1, 0, mean), moved) * points.drift
        normal = normal.sign() if self.norm == "Linf" else normal / column(size(normal, "L2") + 1e-12, normal)
        assign(points.way, ends, normal)
        points.scale = torch.where(ends, points.norms / points.round.clamp(min=1).to(moved.dtype).sqrt(), points.scale)
        points.phase = torch.where(ends, JUMP, points.phase)


def _some(rows: Tensor) -> bool:
    """Whether there are such rows; on a GPU, where asking would wait, always."""
    return rows.is_cuda or bool(rows.any())
