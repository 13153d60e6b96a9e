"""How far a linear classifier's points are from a wrong answer, exactly: in a norm, with and without the box."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["distance", "least_norm", "linear"]


def linear(classes: int, dim: int = 12, seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear classifier, points well inside the box, and its own answers as labels."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(dim, classes)
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, dim, generator=generator))
        model.bias.copy_(torch.randn(classes, generator=generator) / 4)
    x = torch.rand(24, dim, generator=generator)
    return model.eval(), x, model(x).argmax(1)


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    """The norm of a - b, row by row, in float64."""
    rows = (a.double() - b.double()).flatten(1).abs()
    return {"L0": (rows > 0).sum(1).double(), "L1": rows.sum(1), "L2": (rows**2).sum(1).sqrt(), "Linf": rows.amax(1)}[
        norm
    ]


def least_norm(
    model: nn.Linear, x: Tensor, y: Tensor, norm: str, boxed: bool = True, target: Tensor | None = None
) -> Tensor:
    """The smallest norm of a perturbation with which the model errs, or says the target; inf where none does.

    With a target: one other class only, so that two classes tie (the boundary of a pair).
    """
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    found = []
    targets = [None] * len(y) if target is None else target.tolist()
    for row, label, wanted in zip(x.double().numpy(), y.tolist(), targets, strict=True):
        others = [j for j in range(len(weight)) if j != label] if wanted is None else [wanted]
        found.append(min(_pair(weight[j] - weight[label], bias[j] - bias[label], row, norm, boxed) for j in others))
    return torch.tensor(found, dtype=torch.float64)


def _pair(w: np.ndarray, b: float, x: np.ndarray, norm: str, boxed: bool) -> float:
    """The least norm of d with w (x + d) + b >= 0."""
    missing = -(float(w @ x) + b)
    if missing <= 0:
        return 0.0
    gain = np.abs(w)
    room = np.where(w > 0, 1 - x, x) if boxed else np.full_like(x, np.inf)
    if boxed and float(gain @ room) < missing:
        return np.inf
    if norm == "L0":
        if not boxed:
            return 1.0
        return float(np.searchsorted(np.cumsum(np.sort(gain * room)[::-1]), missing) + 1)
    if norm == "L1":  # a fractional knapsack: the steepest coordinates first
        total = 0.0
        for i in np.argsort(-gain):
            used = min(room[i], missing / gain[i])
            total, missing = total + used, missing - used * gain[i]
            if missing <= 1e-15:
                break
        return total

    def move(size: float) -> np.ndarray:
        moved: np.ndarray = np.minimum(size if norm == "Linf" else size * gain, room)
        return moved

    low, high = 0.0, 1.0
    while gain @ move(high) < missing and high < 1e12:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gain @ move(middle) < missing else (low, middle)
    moved = move(high)
    return float(moved.max() if norm == "Linf" else np.sqrt((moved**2).sum()))
