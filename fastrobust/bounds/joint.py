"""Alpha-CROWN's slopes for the boxes in between: each refined box has its own, all tuned for the outputs together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrobust.bounds.guarantee import Guarantee
from fastrobust.bounds.optimise import ascend, free_slopes, rate, repeated, tunable, with_slopes
from fastrobust.bounds.program import Program, below
from fastrobust.bounds.relaxation import Relaxation, Tuned

__all__ = ["most_tightened", "tightened"]

MOST_SLOPES, MOST_WEIGHTS = 2**22, 2**22  # of them all; of the largest weight that goes backward, whose graph is kept


def most_tightened(program: Program) -> int:
    """Elements of the widest value, of all samples, for which `tightened` has room however many boxes are refined."""
    rows = [2 * program.shape(i).numel() for step in program.steps for i in step.inputs if not program.exact[i]]
    return MOST_WEIGHTS // max(rows, default=1)


def tightened(relaxed: Relaxation, weight: Tensor, steps: int, lr: float) -> Relaxation:
    """The relaxation with boxes by slopes that raise the sum of the least <weight, outputs> (Xu et al., ICLR 2021).

    On networks too large for that, `relaxed` itself. Boxes are met with those of intervals, but may be wider than
    CROWN's for some elements: what follows is to be compared with what follows from `relaxed`.
    """
    program, region, target = relaxed.program, relaxed.region, relaxed.program.outputs
    chosen = {t: rows for t, rows in relaxed.tuned.chosen.items() if rows.shape[1]}
    layers = tunable(program.steps, relaxed.lines)
    rows = {t: 2 * c.shape[1] for t, c in chosen.items()} | {target: weight.shape[1]}
    widest = max(program.shape(v).numel() for v in range(target + 1)) * max(rows.values()) * len(region)
    pairs = [(t, k) for t in rows for k in layers if k + 1 < t]
    if not chosen or not pairs or steps < 1 or widest > MOST_WEIGHTS:
        return relaxed
    free = {k: free_slopes(program, relaxed.boxes, relaxed.lines, k) for k in layers}
    total = sum(rows[t] * free[k].numel() for t, k in pairs)
    start = [repeated(free[k], rows[t] if total <= MOST_SLOPES else 1) for t, k in pairs]

    def with_(slopes: Sequence[Tensor], tensors: Sequence[Tensor], g: Guarantee) -> Relaxation:
        tuned = Tuned(relaxed.tuned.chosen, dict(zip(pairs, slopes, strict=True)))
        return Relaxation(program, region, tensors, g, True, tuned)

    def value(slopes: Sequence[Tensor]) -> Tensor:
        tried = with_(slopes, held, plain)
        own = {k: slope for (t, k), slope in zip(pairs, slopes, strict=True) if t == target}
        lines = with_slopes(program, tried.boxes, tried.lines, own, plain)
        return below(program.steps, region, target, weight, tried.boxes, lines, held, plain).sum(1)

    plain, held = Guarantee("none"), [t.detach() for t in relaxed.tensors]
    none = weight.new_full((len(region),), -torch.inf, dtype=torch.float64)
    kept = ascend(value, start, [1.0] * len(start), none, steps, [rate(program, k, lr) for _, k in pairs])
    return with_(kept, relaxed.tensors, relaxed.g)
