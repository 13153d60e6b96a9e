"""What should make one doubt an evaluation: each finding says what was seen and what to try."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ADVICE", "DRAWS", "SAME", "Look", "look", "of_model", "of_result"]

DRAWS, SAME = 3, 1e-4
ADVICE = {
    "random": 'use version="rand", or EOT',
    "probabilities": "saturated ones have no gradient; attack the logits",
    "masked": "they may be masked; try more queries and restarts, and an adaptive attack",
    "zero": "saturated or masked; try the margin loss, BPDA, a black-box attack",
}


class Look(NamedTuple):
    """What a few forward passes show.

    Attributes:
        difference: the largest distance between a point's unit vectors of logits in two passes.
        probabilities: whether all logits are >= 0 and those of a point sum to 1.
        finite: whether no logit is NaN or infinite.
    """

    difference: float
    probabilities: bool
    finite: bool


def look(logits: Callable[[Tensor], Tensor], x: Tensor, draws: int = DRAWS) -> Look:
    """`draws` passes of the model over x (batch, ...)."""
    with torch.no_grad():
        first = logits(x)
        others = [logits(x) for _ in range(draws - 1)]
    unit = first / (first.norm(dim=1, keepdim=True) + 1e-10)
    apart = [float((unit - z / (z.norm(dim=1, keepdim=True) + 1e-10)).norm(dim=1).max()) for z in others]
    probabilities = bool((first >= 0).all()) and bool(((first.sum(1) - 1).abs() < 1e-5).all())
    return Look(max((d for d in apart if d == d), default=0.0), probabilities, bool(torch.isfinite(first).all()))


def of_model(logits: Callable[[Tensor], Tensor], x: Tensor, random: bool) -> list[str]:
    """Doubts that a few forward passes raise.

    Args:
        logits: the model.
        x: a batch of points.
        random: whether the model is known to be random.
    """
    found, seen = [], look(logits, x, 1 if random else DRAWS)
    if seen.difference > SAME:
        found.append(f"the model is random: its logits differ from call to call; {ADVICE['random']}")
    if seen.probabilities:
        found.append(f"the model returns probabilities: {ADVICE['probabilities']}")
    if not seen.finite:
        found.append("the model returns NaN or infinite logits: such points count as robust; look into the model")
    return found


def of_result(accuracy: dict[str, float], zero_gradients: int, points: int) -> list[str]:
    """Doubts that an evaluation raises, from the robust accuracy after each attack, in order."""
    found = []
    names = list(accuracy)
    if "square" in names and names.index("square") > 1:
        before = accuracy[names[names.index("square") - 1]]
        if accuracy["square"] < before - 0.002:
            found.append(
                f"Square, which sees no gradients, fooled {before - accuracy['square']:.2%} of all points where "
                f"gradients had failed: {ADVICE['masked']}"
            )
    if zero_gradients:
        found.append(
            f"{zero_gradients} of {points} points met gradients that were zero throughout or not finite: "
            f"{ADVICE['zero']}"
        )
    return found
