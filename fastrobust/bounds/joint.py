"""Alpha-CROWN's slopes for the boxes in between: each refined box has its own, all tuned for the outputs together."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrobust.bounds.guarantee import Guarantee
from fastrobust.bounds.nonlinear import Relu
from fastrobust.bounds.optimise import DECAY, with_slopes
from fastrobust.bounds.program import below
from fastrobust.bounds.relaxation import Relaxation, Tuned

__all__ = ["tightened"]

MOST_SLOPES, MOST_WEIGHTS = 2**22, 2**22  # of them all; of the largest weight that goes backward, whose graph is kept


def tightened(relaxed: Relaxation, weight: Tensor, steps: int, lr: float) -> Relaxation:
    """The relaxation with boxes by slopes that raise the sum of the least <weight, outputs> (Xu et al., ICLR 2021).

    On networks too large for that, `relaxed` itself. Boxes are met with those of intervals, but may be wider than
    CROWN's for some elements: what follows is to be compared with what follows from `relaxed`.
    """
    program, region, target = relaxed.program, relaxed.region, relaxed.program.outputs
    chosen = {t: rows for t, rows in relaxed.tuned.chosen.items() if rows.shape[1]}
    relus = [k for k, step in enumerate(program.steps) if isinstance(step.layer, Relu)]
    rows = {t: 2 * c.shape[1] for t, c in chosen.items()} | {target: weight.shape[1]}
    widest = max(program.shape(v).numel() for v in range(target + 1)) * max(rows.values()) * len(region)
    pairs = [(t, k) for t in rows for k in relus if k + 1 < t]
    if not chosen or not pairs or steps < 1 or widest > MOST_WEIGHTS:
        return relaxed
    total = sum(rows[t] * program.shape(k + 1).numel() for t, k in pairs) * len(region)
    slopes = {}
    for t, k in pairs:
        line = relaxed.lines[k]
        assert line is not None
        each = rows[t] if total <= MOST_SLOPES else 1
        slopes[t, k] = line.low_slope[:, None].repeat(1, each, *[1] * (line.low.dim() - 1)).requires_grad_()
    best = weight.new_full((len(region),), -torch.inf, dtype=torch.float64)
    kept = {pair: slope.detach().clone() for pair, slope in slopes.items()}
    adam = torch.optim.Adam(slopes.values(), lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, DECAY)
    plain = Guarantee("none")
    for turn in range(steps + 1):
        with torch.enable_grad():
            tried = Relaxation(program, region, relaxed.tensors, plain, True, Tuned(dict(relaxed.tuned.chosen), slopes))
            own = {k: slope for (t, k), slope in slopes.items() if t == target}
            lines = with_slopes(program, tried.boxes, tried.lines, own)
            value = below(program, region, target, weight, tried.boxes, lines, relaxed.tensors, plain).sum(1)
            better = value.detach() > best
            best = torch.where(better, value.detach(), best)
            kept = {
                pair: torch.where(better.view(-1, *[1] * (slope.dim() - 1)), slope.detach(), kept[pair])
                for pair, slope in slopes.items()
            }
            if turn == steps or not value.requires_grad:
                break
            gradients = torch.autograd.grad(-value.sum(), list(slopes.values()), allow_unused=True)
        for slope, gradient in zip(slopes.values(), gradients, strict=True):
            slope.grad = gradient
        adam.step()
        schedule.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
    return Relaxation(program, region, relaxed.tensors, relaxed.g, True, Tuned(dict(relaxed.tuned.chosen), kept))
