"""What should make one doubt an evaluation: each finding says what was seen and what to try."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["of_model", "of_result"]

DRAWS, SAME = 3, 1e-4


def of_model(logits: Callable[[Tensor], Tensor], x: Tensor, random: bool) -> list[str]:
    """Doubts that a few forward passes raise.

    Args:
        logits: the model.
        x: a batch of points.
        random: whether the model is known to be random.
    """
    found = []
    with torch.no_grad():
        first = logits(x)
        others = [] if random else [logits(x) for _ in range(DRAWS - 1)]
    unit = first / (first.norm(dim=1, keepdim=True) + 1e-10)
    if any(float((unit - z / (z.norm(dim=1, keepdim=True) + 1e-10)).norm(dim=1).max()) > SAME for z in others):
        found.append('the model is random: its logits differ from call to call; use version="rand", or EOT')
    if bool((first >= 0).all()) and bool(((first.sum(1) - 1).abs() < 1e-5).all()):
        found.append("the model returns probabilities: saturated ones have no gradient; attack the logits")
    if not bool(torch.isfinite(first).all()):
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
                "gradients had failed: they may be masked; try more queries and restarts, and an adaptive attack"
            )
    if zero_gradients:
        found.append(
            f"{zero_gradients} of {points} points met gradients that were zero throughout or not finite: saturated or "
            "masked; try the margin loss, BPDA, a black-box attack"
        )
    return found
