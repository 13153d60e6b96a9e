"""What an attack did to a model, in the field's measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastrobust.attacks._rows import size
from fastrobust.threat import Threat

from .metrics import Attack, check_points, perturb, predict

__all__ = ["Measures", "measure", "threats"]


@dataclass(frozen=True)
class Measures:
    """Shares in [0, 1] of n points, on which the model's answers were taken anew.

    Attributes:
        points: n.
        accuracy: right on the clean point.
        robust_accuracy: right on the clean point and on the adversarial one.
        success_rate: wrong on either: 1 - robust_accuracy, so clean errors count as successes.
        success_rate_of_correct: the share broken of the points that the model gets right; NaN if there are none.
        mean_perturbation: mean norm of x_adv - x over the points that were right and are broken; NaN if there are none.
        median_perturbation: their median norm.
    """

    points: int
    accuracy: float
    robust_accuracy: float
    success_rate: float
    success_rate_of_correct: float
    mean_perturbation: float
    median_perturbation: float


def measure(
    model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, norm: str = "Linf", batch_size: int = 250
) -> Measures:
    """The measures of adversarial points x_adv, like x (n, ...), with labels y (n,) int64.

    Perturbations are measured in ``norm`` ("Linf", "L2", "L1", "L0"), in float64. Raises ValueError for other shapes
    or no point.
    """
    check_points("measure", x, y)
    if x_adv.shape != x.shape:
        raise ValueError(f"measure: x_adv must have the shape of x {tuple(x.shape)}, got {tuple(x_adv.shape)}")
    right = predict(model, x, batch_size) == y
    broken = right & (predict(model, x_adv, batch_size) != y)
    reached = size(x_adv[broken].double() - x[broken].double(), norm)
    robust = _share(right & ~broken)
    return Measures(
        points=len(x),
        accuracy=_share(right),
        robust_accuracy=robust,
        success_rate=1 - robust,
        success_rate_of_correct=_share(broken[right]),
        mean_perturbation=reached.mean().item() if len(reached) else math.nan,
        median_perturbation=reached.quantile(0.5).item() if len(reached) else math.nan,
    )


def threats(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    against: Mapping[str, Threat],
    make: Callable[[Threat], Attack],
    batch_size: int = 250,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Measures]:
    """One row a threat: how a model trained for one of them fares under the others.

    Args:
        model, x, y: as in `measure`.
        against: a row's name -> threat, such as ``{"trained for": Linf(0.2), "larger": Linf(0.3), "L2": L2(2.0)}``.
        make: gives the attack for a threat.
        batch_size: points at a time.
        progress: ``progress(name, points done, points in all)``, called per batch.

    Returns:
        name -> `Measures`, perturbations in the threat's own norm.
    """
    check_points("threats", x, y)
    rows = torch.arange(len(x), device=x.device).split(batch_size)
    result = {}
    for name, threat in against.items():
        attack, x_adv = make(threat), x.clone()
        for part in rows:
            x_adv[part] = perturb(attack, x[part], y[part], part)
            if progress is not None:
                progress(name, int(part[-1]) + 1, len(x))
        result[name] = measure(model, x, y, x_adv, threat.norm, batch_size)
    return result


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()
