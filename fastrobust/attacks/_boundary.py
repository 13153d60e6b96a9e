"""Steps onto a linearised decision boundary within the box: what FAB and DeepFool share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust import _checks
from fastrobust.attacks._minimum import MinimumNorm
from fastrobust.attacks._points import AttackResult, Points
from fastrobust.attacks._rows import column, distance
from fastrobust.attacks._victim import Model, to_model_dtype
from fastrobust.ops import _geometry as geometry
from fastrobust.threat import Box

__all__ = ["DUAL", "BoundaryAttack", "least_step"]

DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
MOST_ELEMENTS = 2**24  # of the gradients asked for at once


def least_step(x: Tensor, weight: Tensor, missing: Tensor, norm: str, box: Box) -> Tensor:
    """The d of least norm with <weight, d> = missing and x + d in the box, row by row; exact.

    Where the box does not allow as much, the d that comes nearest. What has no weight does not move. With
    c = |missing| and room r_i for coordinate i on the way, |d_i| is min(l, r_i) for Linf and min(l |w_i|, r_i) for L2,
    l solving sum_i |w_i d_i| = c, which is piecewise linear in l; for L1 the steepest coordinates are filled first
    (Croce and Hein, ICML 2020, section 3).

    Args:
        x: (batch, ...) points in the box, float32 or float64.
        weight: normals of the hyperplanes, like x, finite.
        missing: (batch,) what <weight, .> must gain, of either sign.
        norm: "Linf", "L2" or "L1".
        box: (lo, hi), numbers or tensors of a sample's shape; may be infinite.

    Returns:
        d like x; sums are made in float64.
    """
    low, high = _ends(box, x)
    way = weight.sign() * column(torch.where(missing < 0, -1, 1), x).to(x.dtype)
    room = torch.where(way > 0, high - x, x - low).clamp_min(0).masked_fill(way == 0, 0).flatten(1)
    gain, need = weight.abs().flatten(1), missing.abs().double()[:, None]
    if norm == "L1":
        key, order = torch.sort(gain, dim=1, descending=True, stable=True)
        most = room.gather(1, order).double()
        before = _sums_before(key * most)
        moved = ((need - before).clamp_min(0) / key.double()).nan_to_num(nan=0.0).minimum(most)
        length = torch.zeros_like(room).scatter(1, order, moved.to(x.dtype))
    else:
        slope = torch.ones_like(gain) if norm == "Linf" else gain
        level = (_level_by_sort if x.is_cuda else _level_by_tangents)(gain, slope, room, need)
        length = torch.where(gain > 0, (level * slope).to(x.dtype).minimum(room), 0)
    return way * length.view_as(x)


def _level_by_tangents(gain: Tensor, slope: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """l (n, 1) with sum_i gain_i min(l slope_i, room_i) = need, inf where there is none.

    The sum is concave in l and piecewise linear: Newton's method from l = 0 never passes the root, and ends at it,
    mostly after a few of its looks at all coordinates.
    """
    speed, pool = gain.double() * slope, gain.double() * room
    level, filled = need / speed.sum(1, keepdim=True), torch.zeros_like(need)
    for _ in range(gain.shape[1] + 1):
        full = (level * slope >= room) & (speed > 0)
        count = full.sum(1, keepdim=True).to(need.dtype)
        if torch.equal(count, filled):
            break
        filled, rest = count, torch.where(full, 0.0, speed).sum(1, keepdim=True)
        further = (need - torch.where(full, pool, 0.0).sum(1, keepdim=True)) / rest
        level = torch.where(rest > 0, torch.maximum(level, further), torch.inf)
    return level.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _level_by_sort(gain: Tensor, slope: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """The same, for a GPU, which would have to wait for a look at whether tangents have come to the end."""
    full_at = (room / slope).masked_fill(gain == 0, torch.inf)
    key, order = torch.sort(full_at, dim=1, stable=True)
    before = _sums_before((gain.double() * room).gather(1, order))
    rest = (gain.double() * slope).gather(1, order).flip(1).cumsum(1).flip(1)
    reach = torch.where(rest > 0, before + key * rest, before)
    full = (reach < need).sum(1, keepdim=True)
    last = full.clamp(max=gain.shape[1] - 1)
    left, speed = need - before.gather(1, last), rest.gather(1, last)
    return torch.where((full == last) & (speed > 0), left / speed, torch.inf)


def _ends(box: Box, x: Tensor) -> tuple[Tensor, Tensor]:
    """The box as tensors that broadcast against x, rounded inwards to its dtype."""
    lo, hi, lo_each, hi_each = _checks.box_ends("box", box, x)
    return geometry.ends(x, lo, hi, lo_each, hi_each)


def _sums_before(values: Tensor) -> Tensor:
    """Of each row, the sums of what is in front of each entry."""
    return F.pad(values[:, :-1].cumsum(1), (1, 0))


class BoundaryAttack(MinimumNorm):
    """An attack that steps onto the hyperplane that the boundary to another class is taken for.

    Args:
        final_search: forward passes, at the end, that look for the boundary on the way from each point to what was
            found for it, by secants of the margin (the FAB paper, section 3) and bisections in turn.
        Others as those of `MinimumNorm`.
    """

    def __init__(self, model: Model, norm: str, steps: int, *, final_search: int = 0, **keywords: Any) -> None:
        name = type(self).__name__
        _checks.check_norm(name, norm)
        if not isinstance(final_search, int) or final_search < 0:
            raise ValueError(f"{name}: final_search must be an integer >= 0, got {final_search!r}")
        super().__init__(model, norm, steps, loss="margin", **keywords)
        self.final_search = final_search

    def prepare(self, work: Points) -> None:
        super().prepare(work)
        logits = self._logits(work.x)
        work.order = logits.scatter(1, work.y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)

    def nearest(self, points: Points, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the boundaries between the label and these classes (n, k), the nearest by the linearisation.

        Returns how much the other class leads (n,), its gradient like x, and the prediction (n,). With targets as
        labels the one boundary is that between the target and the likeliest of the others. Where no gradient is
        usable, the gradient is 0.
        """
        x = points.x_adv
        if self.targeted:
            lead, prediction, slope = self._objective.gradient(x, points)
            return lead, _usable(lead, slope), prediction
        classes, rows = points.order.shape[1], torch.arange(len(points), device=x.device)
        slope, prediction = torch.zeros_like(x), points.y
        lead, best = (torch.full((len(points),), start, dtype=x.dtype, device=x.device) for start in (0.0, torch.inf))
        most = max(1, MOST_ELEMENTS // (len(points) * max(classes, x[0].numel())))
        for group in others.split(most, 1):
            difference = F.one_hot(group, classes) - F.one_hot(points.y, classes)[:, None]
            logits, slopes = self._objective.combination(x, points, difference)
            prediction = self._objective.predicted(logits)
            ahead = (logits.gather(1, group) - logits.gather(1, points.y[:, None])).to(x.dtype)
            usable = _usable(ahead.flatten(), slopes.flatten(0, 1)).view_as(slopes)
            if others.shape[1] == 1:
                return ahead[:, 0].nan_to_num(0, 0, 0), usable[:, 0], prediction
            steepness = distance(usable.flatten(0, 1), None, DUAL[self.norm]).to(x.dtype).view_as(ahead)
            far = torch.where(steepness > 0, ahead.abs() / steepness, torch.inf)
            at = far.argmin(1)
            nearer = far[rows, at] < best
            best, lead = (torch.where(nearer, new[rows, at], old) for new, old in ((far, best), (ahead, lead)))
            slope = torch.where(column(nearer, x), usable[rows, at], slope)
        return lead, slope, prediction

    def _attack(self, work: Points, result: AttackResult) -> None:
        super()._attack(work, result)
        if self.final_search == 0:
            return
        found, far = result.success, result.x_adv.to(work.centre.dtype) - work.centre
        low, high = torch.zeros_like(result.loss), torch.ones_like(result.loss)
        under, over = self._verdict(work.x, work)[0], self._verdict(result.x_adv, work)[0]
        for turn in range(self.final_search):
            secant, middle = (over * low - under * high) / (over - under), (low + high) / 2
            share = torch.where((secant > low) & (secant < high) & (turn % 2 == 0), secant, middle)
            shown = to_model_dtype(self.clip(work.centre + far * column(share.to(far.dtype), far)), work.x)
            margin, fooled = self._verdict(shown, work)
            low, under = torch.where(fooled, low, share), torch.where(fooled, under, margin)
            high, over = torch.where(fooled, share, high), torch.where(fooled, margin, over)
            result.x_adv.copy_(torch.where(column(fooled & found, far), shown, result.x_adv))
        result.loss.copy_(torch.where(found, -self.measure(result.x_adv, work), result.loss))


def _usable(lead: Tensor, slope: Tensor) -> Tensor:
    """Gradients (n, ...), 0 where they or what they belong to are not finite."""
    fine = torch.isfinite(lead) & torch.isfinite(distance(slope, None, "Linf"))
    if not slope.is_cuda and bool(fine.all()):
        return slope
    return torch.where(column(fine, slope), slope, 0)
