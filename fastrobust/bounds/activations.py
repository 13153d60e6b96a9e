"""Elementwise functions: their boxes, and lines below and above them.

Everything here is computed in float64 and rounded outwards to the network's dtype once. Lines are sound because their
intercepts are: for a slope k the intercept is the least (greatest) value of f(x) - k x over the interval, which lies at
an end or where f'(x) = k. Where that equation has no closed form, a grid and a bound of |f''| stand in for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust.bounds.guarantee import ACTIVATION_ULPS, Guarantee, finite
from fastrobust.bounds.interval import Interval
from fastrobust.bounds.layers import Lines
from fastrobust.ops import ACTIVATIONS
from fastrobust.ops import _rounding as rounding

__all__ = ["Function", "elu", "gelu", "hardtanh", "leaky_relu", "lines_at", "range_of", "relu", "shares_of", "sigmoid",
           "silu", "softplus", "square", "tanh", "tight_lines"]  # fmt: skip

MARGIN = 2.0**-44  # relative error of float64 evaluations, with room
GRID, HALVINGS = 64, 12
Critical = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Function:
    """An elementwise function of float64 tensors.

    Attributes:
        name: as errors call it.
        value, slope: f and f' (at a kink, either side's).
        critical: for slopes k, all points at which f(x) - k x can have an extreme within an interval besides its ends,
            whatever is no number or outside being left out; None: use the grid.
        turns: points at which f itself changes from falling to rising or back.
        curvature: a bound of |f''|, for the grid.
        exact: whether evaluations make no error.
        noise: what errors of evaluations are relative to besides |f|: a number, and a share of |x|.
        argument: what x is multiplied by before an exponential: its rounding is a relative error of |argument x| there.
        tail: how many times the smallest normal number an evaluation may be off where it underflows.
        jump: how far evaluations may lie below `value`, above `jump_from`.
        op: its name and parameters in `fastrobust.ops.ACTIVATIONS`, if it is there.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    critical: Critical | None
    turns: tuple[float, ...] = ()
    curvature: float = 0.0
    exact: bool = False
    noise: tuple[float, float] = (0.0, 0.0)
    argument: float = 0.0
    tail: float = 1.0
    jump: float = 0.0
    jump_from: float = math.inf
    op: tuple[str, float, float] | None = None


# --- boxes ------------------------------------------------------------------------------------------------------


def range_of(f: Function, x: Interval, g: Guarantee) -> Interval:
    """The values of f on an interval."""
    if not g.sound:
        return Interval(*_range(f, x.lower, x.upper))
    low, high = _range(f, x.lower.double(), x.upper.double())
    if not f.exact:
        slack = _error(f, torch.maximum(low.abs(), high.abs()), x.size().double(), g)
        low, high = finite(low - slack, high + slack)
    return Interval(rounding.cast_down(low, x.lower.dtype), rounding.cast_up(high, x.lower.dtype))


def _range(f: Function, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    ends = f.value(lower), f.value(upper)
    low, high = (ends[0], ends[1]) if not f.turns else (torch.minimum(*ends), torch.maximum(*ends))
    for point in f.turns:
        inside = (lower <= point) & (point <= upper)
        at = f.value(torch.full_like(lower, point))
        low = torch.where(inside, torch.minimum(low, at), low)
        high = torch.where(inside, torch.maximum(high, at), high)
    if f.jump:
        low = torch.where(upper > f.jump_from, low - f.jump, low)
    return low, high


def _error(f: Function, size: Tensor, reach: Tensor, g: Guarantee) -> Tensor:
    """Of float64 and of evaluations, for |f| up to `size` and |x| up to `reach`."""
    share = MARGIN + (0.0 if f.exact else ACTIVATION_ULPS * g.net)
    relative = size if not f.argument else size * (1 + f.argument * reach)
    return share * (relative + f.noise[0] + f.noise[1] * reach) + (g.least if f.exact else f.tail * g.small)


# --- lines ------------------------------------------------------------------------------------------------------


def tight_lines(f: Function, x: Interval, out: Interval, g: Guarantee) -> Lines:
    """Lines below and above f on an interval: of the chord and tangents, those nearest to f in its middle."""
    dtype = x.lower.dtype
    lower, upper = x.lower.detach().double(), x.upper.detach().double()
    wild = ~(torch.isfinite(lower) & torch.isfinite(upper))
    lower, upper = lower.masked_fill(wild, 0), upper.masked_fill(wild, 0)
    middle, width = (lower + upper) / 2, upper - lower
    chord = torch.where(width > 1e-6, (f.value(upper) - f.value(lower)) / width.clamp(min=1e-6), f.slope(middle))
    slopes = torch.stack([chord, f.slope(middle), *_tangents(f, lower, upper)]).to(dtype)
    # A slope rounded to the network's dtype is the slope: its intercept is made for it.
    low, high = (_intercept(f, slopes.double(), lower, upper, g, above) for above in (False, True))
    best = (low + slopes * middle).argmax(0, keepdim=True), (high + slopes * middle).argmin(0, keepdim=True)
    low_slope, high_slope = (slopes.gather(0, at)[0] for at in best)
    low, high = low.gather(0, best[0])[0], high.gather(0, best[1])[0]
    if g.sound:
        low, high = rounding.cast_down(low, dtype), rounding.cast_up(high, dtype)
    low, high = (torch.where(wild, flat, line.to(dtype)) for flat, line in ((out.lower, low), (out.upper, high)))
    return Lines(low_slope.masked_fill(wild, 0), low, high_slope.masked_fill(wild, 0), high)


def shares_of(f: Function, x: Interval, lines: Lines) -> Tensor:
    """Where the slopes of lines lie among all that are worth trying: (batch, 2, ...) in [0, 1], low and high."""
    least, most = _slopes(f, x, lines)
    slopes = torch.stack([lines.low_slope, lines.high_slope], 1).double()
    shares = (slopes - least[:, None]) / (most - least).clamp(min=1e-12)[:, None]
    return shares.clamp(0, 1).nan_to_num(nan=0.0).to(lines.low.dtype)


def lines_at(f: Function, x: Interval, lines: Lines, shares: Tensor, g: Guarantee) -> Lines:
    """Lines with other slopes, the best there are with these: shares (batch, rows, 2, ...) as `shares_of` has them.

    The result's parts are (batch, rows, ...). Where an interval is not finite, the lines stay as they are.
    """
    dtype = lines.low.dtype
    wide = torch.float64 if g.sound else dtype
    wild = ~(torch.isfinite(x.lower) & torch.isfinite(x.upper))
    least, most = (end.to(wide)[:, None] for end in _slopes(f, x, lines))
    lower, upper = (end.to(wide).masked_fill(wild, 0)[:, None] for end in (x.lower, x.upper))
    slopes = [(least + share.to(wide) * (most - least)).to(dtype) for share in shares.unbind(2)]
    low, high = (
        _intercept(f, slope.to(wide), lower, upper, g, above)
        for slope, above in zip(slopes, (False, True), strict=True)
    )
    if g.sound:
        low, high = rounding.cast_down(low, dtype), rounding.cast_up(high, dtype)
    new = slopes[0], low, slopes[1], high
    old = lines.low_slope, lines.low, lines.high_slope, lines.high
    return Lines(*(torch.where(wild[:, None], b[:, None], a) for a, b in zip(new, old, strict=True)))


def _slopes(f: Function, x: Interval, lines: Lines) -> tuple[Tensor, Tensor]:
    """The least and the largest of the derivatives at the ends and nearest to 0, and of the lines' slopes; float64."""
    lower, upper = x.lower.double(), x.upper.double()
    near = torch.zeros_like(lower).clamp(lower, upper)
    slopes = [f.slope(lower), f.slope(upper), f.slope(near), lines.low_slope.double(), lines.high_slope.double()]
    every = torch.stack(slopes).nan_to_num(nan=0.0)
    return every.amin(0), every.amax(0)


def _intercept(f: Function, k: Tensor, lower: Tensor, upper: Tensor, g: Guarantee, above: bool) -> Tensor:
    """The greatest (least) value of f(x) - k x over the intervals, for all slopes k (slopes or batch, ...), from above
    (below)."""
    point = _extreme(f, k, lower, upper, above)
    best, sign = f.value(point) - k * point, 1.0 if above else -1.0
    if f.critical is None:
        best = best + sign * f.curvature / 8 * ((upper - lower) / GRID) ** 2
    if f.jump and not above:
        best = torch.where(upper > f.jump_from, best - f.jump, best)
    if g.sound:
        size = torch.maximum(f.value(lower).abs(), f.value(upper).abs())
        for turn in f.turns:
            size = size.clamp(min=abs(float(f.value(torch.tensor(turn, dtype=torch.float64)))))
        reach = torch.maximum(lower.abs(), upper.abs())
        best = best + sign * (_error(f, size, reach, g) + MARGIN * k.abs() * reach)
    return best


def _extreme(f: Function, k: Tensor, lower: Tensor, upper: Tensor, above: bool) -> Tensor:
    """Where f(x) - k x is greatest (least), of all points that count; an end moves with the interval."""
    moves = lower.requires_grad or upper.requires_grad
    with torch.no_grad():
        point, share = lower.expand_as(k), torch.zeros_like(k)  # of the interval, from its lower end
        best = f.value(point) - k * point
        for other, at in _candidates(f, k, lower, upper):
            each = f.value(other) - k * other
            better = each > best if above else each < best
            best, point = torch.where(better, each, best), torch.where(better, other, point)
            if moves:
                share = torch.where(better, at, share)
    return torch.where(share.isnan(), point, lower + (upper - lower) * share) if moves else point


def _candidates(f: Function, k: Tensor, lower: Tensor, upper: Tensor) -> Iterator[tuple[Tensor, float]]:
    """Points besides the lower end, and which share of the interval lies before them; NaN: they do not move with it."""
    if f.critical is None:
        for i in range(1, GRID + 1):
            yield lower + (upper - lower) * (i / GRID), i / GRID
        return
    yield upper, 1.0
    for point in f.critical(k):  # those outside become ends, what is no number is never better
        yield point.clamp(lower, upper), math.nan


def _tangents(f: Function, lower: Tensor, upper: Tensor) -> list[Tensor]:
    """Slopes of the lines through an end that touch f on the other side of 0; near enough, as intercepts are not."""
    if f.curvature == 0:
        return []
    end, far = torch.stack([lower, upper]), torch.stack([upper, lower])
    # f'(d) (d - end) - (f(d) - f(end)) changes its sign where the line through both touches.
    near, start = torch.zeros_like(end).clamp(lower, upper), f.value(end)
    sign = torch.sign(f.slope(far) * (far - end) - (f.value(far) - start))
    for _ in range(HALVINGS):
        d = (near + far) / 2
        same = torch.sign(f.slope(d) * (d - end) - (f.value(d) - start)) == sign
        near, far = torch.where(same, near, d), torch.where(same, d, far)
    return list(f.slope((near + far) / 2))


# --- the functions ----------------------------------------------------------------------------------------------


def relu() -> Function:
    return Function("relu", F.relu, lambda x: (x > 0).to(x.dtype), lambda k: [torch.zeros_like(k)], exact=True)


def leaky_relu(slope: float) -> Function:
    return Function(
        "leaky_relu", lambda x: F.leaky_relu(x, slope), lambda x: torch.where(x > 0, 1.0, slope),
        lambda k: [torch.zeros_like(k)], op=("leaky_relu", slope, 0.0),
    )  # fmt: skip


def hardtanh(low: float, high: float) -> Function:
    return Function(
        "hardtanh", lambda x: x.clamp(low, high), lambda x: ((x > low) & (x < high)).to(x.dtype),
        lambda k: [torch.full_like(k, low), torch.full_like(k, high)], op=("hardtanh", low, high),
    )  # fmt: skip


def sigmoid() -> Function:
    def critical(k: Tensor) -> list[Tensor]:
        far = torch.logit(2 * k / (1 + (1 - 4 * k).sqrt()))
        return [far, -far]

    def slope(x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x)

    return Function("sigmoid", torch.sigmoid, slope, critical, curvature=0.1,
                    op=("sigmoid", 0.0, 0.0))  # fmt: skip


def tanh() -> Function:
    def critical(k: Tensor) -> list[Tensor]:
        far = torch.log((1 + (1 - k).sqrt()) / k.sqrt())
        return [far, -far]

    return Function("tanh", torch.tanh, lambda x: 1 / torch.cosh(x) ** 2, critical, curvature=0.8,
                    op=("tanh", 0.0, 0.0))  # fmt: skip


def softplus(beta: float, threshold: float) -> Function:
    """log(1 + exp(beta x)) / beta; PyTorch's is x above threshold / beta, which lies below."""

    def value(x: Tensor) -> Tensor:
        return torch.logaddexp(beta * x, torch.zeros_like(x)) / beta

    # Where evaluations change over is rounded, too.
    near = 1e-5 * abs(threshold)
    return Function(
        "softplus", value, lambda x: torch.sigmoid(beta * x), lambda k: [torch.logit(k) / beta],
        argument=0.0 if beta == 1 else beta, jump=1.001 * math.exp(near - threshold) / beta,
        jump_from=(threshold - near) / beta, op=("softplus", beta, threshold),
    )  # fmt: skip


def elu(alpha: float) -> Function:
    return Function(
        "elu", lambda x: F.elu(x, alpha), lambda x: torch.where(x > 0, 1.0, alpha * x.clamp(max=0).exp()),
        lambda k: [(k / alpha).log() if alpha else torch.zeros_like(k), torch.zeros_like(k)], noise=(alpha, 0.0),
        op=("elu", alpha, 0.0),
    )  # fmt: skip


def square() -> Function:
    return Function("square", lambda x: x * x, lambda x: 2 * x, lambda k: [k / 2], turns=(0.0,))


def silu() -> Function:
    return _falling("silu", "silu", curvature=0.5, tail=100.0)


def gelu(approximate: str) -> Function:
    """With the error function, or its tanh form."""
    op, curvature = ("gelu", 0.8) if approximate == "none" else ("gelu_tanh", 0.81)
    return _falling("gelu", op, curvature, noise=(0.0, 1.0))


def _falling(
    name: str, op: str, curvature: float, noise: tuple[float, float] = (0.0, 0.0), tail: float = 1.0
) -> Function:
    """An activation of `fastrobust.ops.ACTIVATIONS` that falls and then rises."""
    f = ACTIVATIONS[op]
    assert f.turn is not None
    return Function(name, lambda x: f.value(x, 0.0, 0.0), lambda x: f.slope(x, 0.0, 0.0), None, turns=(f.turn,),
                    curvature=curvature, noise=noise, tail=tail, op=(op, 0.0, 0.0))  # fmt: skip
