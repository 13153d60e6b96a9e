"""Accuracy against eps: one attack over many radii, or several attacks over several norms.

A point broken at a small eps is broken at every larger one, because the small ball lies inside the large one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fastrobust.attacks import MinimumNorm
from fastrobust.attacks._rows import size
from fastrobust.threat import Box, Threat, threat_of

from .metrics import Attack, Found, Progress, check_points, predict, survive

__all__ = ["ENVELOPE", "Curve", "Sweep", "curves", "sweep"]

ENVELOPE = "envelope"
"""The name of the curve of all attacks together."""


@dataclass(frozen=True)
class Sweep:
    """Accuracy against eps: ``eps`` ascending, ``correct`` (len(eps), n) bool: what is still right."""

    eps: tuple[float, ...]
    correct: Tensor

    @property
    def accuracy(self) -> tuple[float, ...]:
        """The share of right answers in [0, 1] for each eps; it never rises."""
        return tuple(row.double().mean().item() for row in self.correct)


@dataclass(frozen=True)
class Curve:
    """Accuracy against eps, from the nearest point that was found to fool the model.

    Attributes:
        norm: "Linf", "L2" or "L1".
        eps: the radii asked for, ascending.
        distance: (n,) float64: how far the nearest point found is; 0 for a clean error, inf where none was found.
    """

    norm: str
    eps: tuple[float, ...]
    distance: Tensor

    def at(self, eps: float) -> float:
        """The share of points in [0, 1] that nothing found within this radius breaks; it never rises with eps."""
        return (self.distance > eps).double().mean().item()

    @property
    def accuracy(self) -> tuple[float, ...]:
        """`at` each of the radii."""
        return tuple(self.at(e) for e in self.eps)

    @property
    def median(self) -> float:
        """The radius at which half of all points are broken; inf if no attack broke as many."""
        return self.distance.median().item()


def sweep(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack_at: Callable[[float], Attack],
    eps: Sequence[float],
    batch_size: int = 250,
    progress: Callable[[float, int, int], None] | None = None,
    method: str = "ascend",
) -> Sweep:
    """Accuracy under ``attack_at(e)`` for every e of ``eps``; at e = 0 it is the clean accuracy.

    Shapes as in `robust_accuracy`. The curve cannot rise: a point broken at one radius is broken at all larger ones.
    With method "ascend" each radius attacks the points that withstood the smaller ones. "bisect" looks for the radius
    at which a point breaks by halving, so that k radii cost a point at most log2(k + 1) attacks, rounded up; it takes
    a point that withstands a radius to withstand the smaller ones, where "ascend" tries them all.
    ``progress(e, points done, points in all)`` is called per batch. Raises ValueError if ``eps`` is empty, negative or
    not strictly ascending, or the method another.
    """
    check_points("sweep", x, y)
    radii = _radii("sweep", eps)
    correct = predict(model, x, batch_size) == y

    def attacked(e: float, among: Tensor) -> Tensor:
        report = None if progress is None else _bind(progress, e)
        return survive(model, x, y, attack_at(e), among, batch_size, report)

    return Sweep(radii, _search("sweep", radii, correct, attacked, method))


def curves(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Mapping[str, Sequence[float]],
    attacks: Mapping[str, Callable[[Threat], Attack]],
    box: Box = (0.0, 1.0),
    batch_size: int = 250,
    progress: Callable[[str, int, int], None] | None = None,
    method: str = "bisect",
) -> dict[str, dict[str, Curve]]:
    """Accuracy against eps under several norms and attacks, and the envelope of all attacks of a norm.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        x, y: (n, ...) points in the box, and their labels (n,) int64.
        eps: for each norm its radii, as in `sweep`: ``{"Linf": [0.1, 0.2], "L2": [1.0, 2.0]}``.
        attacks: name -> ``make(threat)``, which gives an attack for that norm, radius and box. One that makes a
            `MinimumNorm` is called once a norm, for its largest radius: each point it finds counts at its own distance.
        box: the valid inputs.
        batch_size: points at a time.
        progress: ``progress("Linf 0.1 PGD", points done, points in all)``, called per batch.
        method: of `sweep`, for attacks that have a radius.

    Returns:
        norm -> name of an attack, and `ENVELOPE`, -> `Curve`. Distances are measured in float64 on the points that the
        attacks returned and the model gets wrong, so a point of an attack that overshoots its ball counts further out.

    Raises:
        ValueError: for a norm that is none of "Linf", "L2", "L1", bad radii, or no attack.
    """
    check_points("curves", x, y)
    if not attacks or ENVELOPE in attacks:
        raise ValueError(f"curves: attacks must hold at least one, and none named {ENVELOPE!r}, got {list(attacks)}")
    clean = predict(model, x, batch_size) == y
    result: dict[str, dict[str, Curve]] = {}
    for norm, wanted in eps.items():
        radii = _radii("curves", wanted)
        result[norm] = {}
        for name, make in attacks.items():
            distance = torch.where(clean, torch.inf, 0.0).double()

            def found(rows: Tensor, x_adv: Tensor, distance: Tensor = distance, norm: str = norm) -> None:
                reached = size(x_adv.double() - x[rows].double(), norm)
                distance[rows] = torch.minimum(distance[rows], reached)

            def attacked(
                e: float, among: Tensor, make: Callable[[Threat], Attack] = make, label: str = f"{norm} {{:g}} {name}",
                found: Found = found, norm: str = norm,
            ) -> Tensor:  # fmt: skip
                report = None if progress is None else _bind(progress, label.format(e))
                attack = make(threat_of(norm, e, box))
                return survive(model, x, y, attack, among, batch_size, report, found)

            if isinstance(make(threat_of(norm, radii[-1], box)), MinimumNorm):
                attacked(radii[-1], clean)
            else:
                _search("curves", radii, clean, attacked, method)
            result[norm][name] = Curve(norm, radii, distance)
        nearest = torch.stack([curve.distance for curve in result[norm].values()]).amin(0)
        result[norm][ENVELOPE] = Curve(norm, radii, nearest)
    return result


def _radii(name: str, eps: Sequence[float]) -> tuple[float, ...]:
    radii = tuple(float(e) for e in eps)
    if not radii or not radii[0] >= 0 or any(not b > a for a, b in pairwise(radii)):
        raise ValueError(f"{name}: eps must be ascending and at least 0, got {list(eps)}")
    return radii


def _search(
    name: str, radii: tuple[float, ...], correct: Tensor, attacked: Callable[[float, Tensor], Tensor], method: str
) -> Tensor:
    """(radii, n) bool: what is still right; ``attacked(e, among)`` says which of these points withstand e."""
    if method not in ("ascend", "bisect"):
        raise ValueError(f"{name}: method must be 'ascend' or 'bisect', got {method!r}")
    if method == "bisect":
        return _bisect(radii, correct, attacked)
    rows = []
    for e in radii:
        if e > 0:
            correct = attacked(e, correct)
        rows.append(correct)
    return torch.stack(rows)


def _bisect(radii: tuple[float, ...], correct: Tensor, attacked: Callable[[float, Tensor], Tensor]) -> Tensor:
    """Each point lies between a radius it withstands and one that breaks it."""
    stands = torch.where(correct, 0 if radii[0] == 0 else -1, -2)  # the largest radius known to be withstood
    breaks = torch.where(correct, len(radii), stands + 1)  # the smallest known to break it
    while bool((breaks - stands > 1).any()):
        middle = (stands + breaks) // 2
        for number, e in enumerate(radii):
            group = (middle == number) & (breaks - stands > 1)
            if bool(group.any()):
                alive = attacked(e, group)
                stands[alive], breaks[group & ~alive] = number, number
    return torch.arange(len(radii), device=breaks.device)[:, None] < breaks[None]


def _bind(progress: Callable[[Any, int, int], None], what: float | str) -> Progress:
    return lambda done, total: progress(what, done, total)
