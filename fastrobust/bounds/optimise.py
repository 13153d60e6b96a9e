"""Slopes and multipliers that make a bound as tight as linear relaxation allows: alpha- and beta-CROWN.

What Adam finds needs no proof: every slope in [0, 1] is a line below a ReLU, every mean of a window is below its
maximum, a line of any slope is moved until it is one of its function, and every multiplier >= 0 keeps a bound of what
satisfies the constraint. So the search runs without regard to rounding, and its end is evaluated soundly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastrobust.bounds.activations import lines_at, shares_of
from fastrobust.bounds.guarantee import Guarantee
from fastrobust.bounds.interval import Interval, Region
from fastrobust.bounds.layers import Lines
from fastrobust.bounds.nonlinear import Activation, MaxPool, Relu
from fastrobust.bounds.program import Program, Step, below

__all__ = ["ascend", "free_slopes", "optimised", "rate", "repeated", "tunable", "with_slopes"]

DECAY = 0.98  # of the learning rate, a step
FINE = 0.1  # share of the learning rate for slopes of functions whose lines follow from them
SCALE = 2.0**20  # of gradients, whose squares may be too small for float32


def optimised(
    program: Program, region: Region, target: int, weight: Tensor, boxes: Sequence[Interval],
    lines: Sequence[Lines | None], tensors: Sequence[Tensor], g: Guarantee, steps: int, lr: float,
    splits: Mapping[int, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """As `below`, never less, with slopes of activations optimised for each row (Xu et al., ICLR 2021).

    Args:
        splits: for inputs of ReLUs, by number, where they are known to be >= 0 (1) or <= 0 (-1), (batch, ...); 0 where
            they are not known. Each is used with a multiplier (Wang et al., NeurIPS 2021).
    """
    splits = splits or {}

    def bound(
        slopes: Mapping[int, Tensor], multipliers: Mapping[int, Tensor], tensors: Sequence[Tensor], g: Guarantee
    ) -> Tensor:  # fmt: skip
        # sign * x >= 0, so that -multiplier * sign * x <= 0.
        extra = {v: -m * splits[v][:, None] for v, m in multipliers.items()}
        own = with_slopes(program, boxes, lines, slopes, g)
        return below(program.steps, region, target, weight, boxes, own, tensors, g, extra=extra)

    base = below(program.steps, region, target, weight, boxes, lines, tensors, g)
    rows = weight.shape[1]
    slopes = {k: repeated(free_slopes(program, boxes, lines, k), rows) for k in tunable(program.steps[:target], lines)}
    multipliers = {
        v: s.new_zeros(len(s), rows, *s.shape[1:], dtype=weight.dtype) for v, s in splits.items() if v < target
    }
    if steps < 1 or not (slopes or multipliers):
        return base
    count, free = len(slopes), [*slopes.values(), *multipliers.values()]

    def named(values: Sequence[Tensor]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        return dict(zip(slopes, values[:count], strict=True)), dict(zip(multipliers, values[count:], strict=True))

    tops = [1.0] * count + [torch.inf] * len(multipliers)
    rates = [rate(program, k, lr) for k in slopes] + [lr] * len(multipliers)
    held = [t.detach() for t in tensors]
    kept = ascend(lambda values: bound(*named(values), held, Guarantee("none")), free, tops, base, steps, rates)
    return torch.maximum(base, bound(*named(kept), tensors, g))


def ascend(
    value: Callable[[Sequence[Tensor]], Tensor], free: Sequence[Tensor], tops: Sequence[float], least: Tensor,
    steps: int, rates: Sequence[float],
) -> list[Tensor]:  # fmt: skip
    """Adam on tensors between 0 and their tops that raises the values; for each value the tensors' best entries.

    Args:
        value: of the tensors; its entries, of the shape of `least`, are independent.
        free: tensors whose first dimensions are those of `least`.
        least: what is to be exceeded.
        rates: learning rate of each tensor.
    """
    best, kept = least.clone(), [v.detach().clone() for v in free]
    free = [v.requires_grad_() for v in free]
    adam = torch.optim.Adam([{"params": [v], "lr": rate} for v, rate in zip(free, rates, strict=True)])
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, DECAY)
    for turn in range(steps + 1):
        with torch.enable_grad():
            now = value(free)
            better = now.detach() > best
            best = torch.where(better, now.detach(), best)
            kept = [
                torch.where(better.view(*better.shape, *[1] * (v.dim() - better.dim())), v.detach(), old)
                for v, old in zip(free, kept, strict=True)
            ]
            if turn == steps or not now.requires_grad:
                break
            gradients = torch.autograd.grad(-SCALE * now.sum(), free, allow_unused=True)
        for v, slope in zip(free, gradients, strict=True):
            v.grad = slope
        adam.step()
        schedule.step()
        with torch.no_grad():
            for v, top in zip(free, tops, strict=True):
                v.clamp_(0, top)
    return kept


def tunable(steps: Sequence[Step], lines: Sequence[Lines | None]) -> list[int]:
    """Steps whose lines have slopes to choose."""
    return [
        k for k, step in enumerate(steps)
        if lines[k] is not None and isinstance(step.layer, Relu | Activation | MaxPool)
    ]  # fmt: skip


def free_slopes(program: Program, boxes: Sequence[Interval], lines: Sequence[Lines | None], k: int) -> Tensor:
    """What stands for a step's slopes, each in [0, 1].

    Of a ReLU the lower one (batch, ...), of a max pool (batch, channels, elements of a window, windows), of another
    function (batch, 2, ...).
    """
    step, line = program.steps[k], lines[k]
    assert line is not None
    if isinstance(step.layer, Activation):
        return shares_of(step.layer.function, boxes[step.inputs[0]], line)
    return step.layer.choice(line) if isinstance(step.layer, MaxPool) else line.low_slope


def rate(program: Program, k: int, lr: float) -> float:
    """The learning rate of a step's slopes."""
    return lr * FINE if isinstance(program.steps[k].layer, Activation) else lr


def repeated(slopes: Tensor, rows: int) -> Tensor:
    """(batch, rows, ...)."""
    return slopes[:, None].repeat(1, rows, *[1] * (slopes.dim() - 1))


def with_slopes(
    program: Program, boxes: Sequence[Interval], lines: Sequence[Lines | None], slopes: Mapping[int, Tensor],
    g: Guarantee,
) -> list[Lines | None]:  # fmt: skip
    """The lines with other slopes, by step, `free_slopes` for each row: (batch, rows, ...)."""
    changed = list(lines)
    for k, slope in slopes.items():
        step, old = program.steps[k], lines[k]
        box = boxes[step.inputs[0]]
        assert old is not None
        if isinstance(step.layer, Activation):
            changed[k] = lines_at(step.layer.function, box, old, slope, g)
        elif isinstance(step.layer, MaxPool):
            changed[k] = step.layer.with_shares(old, slope)
        else:  # where inputs have both signs
            both = ((box.lower < 0) & (box.upper > 0))[:, None]
            changed[k] = replace(old, low_slope=torch.where(both, slope, old.low_slope[:, None]))
    return changed
