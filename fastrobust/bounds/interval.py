"""Boxes of activations, and the sets of inputs that bounds start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastrobust import _checks, ops
from fastrobust.bounds.guarantee import Guarantee
from fastrobust.ops import _rounding as rounding
from fastrobust.threat import Threat

__all__ = ["Ball", "Bounds", "Interval", "Region", "region"]


@dataclass(frozen=True)
class Bounds:
    """What a network's outputs cannot leave.

    Attributes:
        lower, upper: (batch, outputs).
        guarantee: "exact", "float32" or "none": what the bounds allow for (docs/bounds/soundness.md).
    """

    lower: Tensor
    upper: Tensor
    guarantee: str


@dataclass(frozen=True)
class Ball:
    """The points c + scale * d with c between `lower` and `upper`, and ||d|| <= eps in a norm, "L2" or "L1".

    Attributes:
        lower, upper: (batch, ...); they differ by what rounding may have done.
        scale: (1, ...), >= 0.
        eps: (batch,) float64.
    """

    lower: Tensor
    upper: Tensor
    scale: Tensor
    eps: Tensor
    norm: str


@dataclass(frozen=True)
class Interval:
    """Values between `lower` and `upper` (batch, ...), elementwise; and, where there is a `ball`, in it too."""

    lower: Tensor
    upper: Tensor
    ball: Ball | None = None

    def centre(self) -> Tensor:
        return self.lower / 2 + self.upper / 2

    def radius(self, centre: Tensor, g: Guarantee) -> Tensor:
        """How far the ends are from what `centre()` returned."""
        return g.up(torch.maximum(self.upper - centre, centre - self.lower))

    def size(self) -> Tensor:
        """The largest magnitude."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def meet(self, lower: Tensor, upper: Tensor) -> Interval:
        """What lies in both; bounds of the same values, so it is not empty but for rounding."""
        return Interval(torch.maximum(self.lower, lower), torch.minimum(self.upper, upper), self.ball)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Interval:
        """With elements in other places or left out: `move` does that to a tensor, and takes none twice."""
        ball = self.ball
        if ball is not None:
            ball = replace(ball, lower=move(ball.lower), upper=move(ball.upper), scale=move(ball.scale))
        return Interval(move(self.lower), move(self.upper), ball)


@dataclass(frozen=True)
class Region:
    """A set of inputs for each sample: a box, cut with a ball (of scale 1, around a point) where one is given."""

    box: Interval

    def __len__(self) -> int:
        return len(self.box.lower)

    def select(self, rows: Tensor) -> Region:
        box = self.box
        ball = None
        if box.ball is not None:
            ball = replace(box.ball, lower=box.ball.lower[rows], upper=box.ball.upper[rows], eps=box.ball.eps[rows])
        return Region(Interval(box.lower[rows], box.upper[rows], ball))

    def least(self, weight: Tensor, g: Guarantee) -> Tensor:
        """At most the minimum of <weight, x> over the set; weight (batch, rows, n) gives (batch, rows), float64.

        Over the box: sum_i min(w_i l_i, w_i u_i). Over a ball of radius eps: <w, c> - eps ||w||_q, q the dual norm.
        """
        value, count = _ends(weight, self.box.lower, self.box.upper), weight.shape[2]
        if g.sound:
            size = self.box.size()
            share = g.own_error(ops.CROWN_TERMS) + _slack(count)
            reach = -_ends(weight, -size, size) * (1 + 2 * share) + count * g.underflow(4)
            value = value - (share * reach + count * g.underflow(4))
        ball = self.box.ball
        if ball is None:
            return value
        w = weight.double()
        centre = w * ball.lower.double().flatten(1)[:, None]
        far = ball.eps[:, None] * torch.linalg.vector_norm(w, 2 if ball.norm == "L2" else torch.inf, dim=2)
        other = centre.sum(2) - far
        if g.sound:
            other = other - _slack(w.shape[2]) * (centre.abs().sum(2) + far)
        return torch.maximum(value, other)


def _ends(weight: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Sums of w_i lower_i where w_i > 0, of w_i upper_i elsewhere: `ops.crown_lines` of constants, float64."""
    low, high = (end.flatten(1).expand(len(weight), -1) for end in (lower, upper))
    none = torch.zeros_like(low)
    return ops.crown_lines(weight, none, low, none, high)[1]


def _slack(count: int) -> float:
    """Relative error of sums of so many terms in float64, generously."""
    return (count + 16) * 2.0**-51


def region(
    where: str, x: Tensor, threat: Threat | tuple[Tensor, Tensor], g: Guarantee, eps: Tensor | None = None
) -> Region:
    """The set of a threat model around x (batch, ...), or that between a pair (lower, upper) of tensors like x.

    `eps` (batch,), float64, takes the place of the threat's.
    """
    if not isinstance(threat, Threat):
        return _between(where, x, threat)
    _checks.box_ends(where, threat.box, x)
    _checks.check_points(where, x, threat.box, _checks.ITERATES)
    eps = _radii(x, threat.eps) if eps is None else eps
    each = (rounding.cast_up(eps, x.dtype) if g.sound else eps.to(x.dtype)).view(-1, *[1] * (x.dim() - 1))
    lower, upper = x - each, x + each
    if g.sound and bool(each.any()):  # a sum is rounded by half a unit of its last place, at most
        infinity = torch.tensor(torch.inf, dtype=x.dtype, device=x.device)
        lower, upper = torch.nextafter(lower, -infinity), torch.nextafter(upper, infinity)
    low, high = (torch.as_tensor(end, dtype=torch.float64, device=x.device) for end in threat.box)
    lower = torch.maximum(lower, rounding.cast_down(low, x.dtype))
    upper = torch.minimum(upper, rounding.cast_up(high, x.dtype))
    ball = None
    if threat.norm != "Linf":
        ball = Ball(x, x, x.new_ones(1, *x.shape[1:]), eps, threat.norm)
    return Region(Interval(lower, upper, ball))


def _radii(x: Tensor, eps: float) -> Tensor:
    return torch.full((len(x),), eps, dtype=torch.float64, device=x.device)


def _between(where: str, x: Tensor, ends: tuple[Tensor, Tensor]) -> Region:
    if not (isinstance(ends, tuple) and len(ends) == 2 and all(isinstance(end, Tensor) for end in ends)):
        raise TypeError(f"{where}: threat must be a threat model or a pair of tensors (lower, upper), got {ends!r}")
    for name, end in zip(("lower", "upper"), ends, strict=True):
        _checks.check_tensor(where, name, end, (x.dtype,))
        _checks.check_same(where, name, end, "x", x)
        if not _checks.is_finite(end):
            raise ValueError(f"{where}: {name} must be finite")
    if not bool((ends[0] <= ends[1]).all()):
        raise ValueError(f"{where}: lower must be at most upper, everywhere")
    return Region(Interval(*ends))
