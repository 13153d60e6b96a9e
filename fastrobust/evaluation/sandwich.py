"""Certified, attacked and clean accuracy against eps: what is proven, what an attack leaves, and the gap between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastrobust import bounds
from fastrobust.threat import Box, threat_of

__all__ = ["Sandwich", "sandwich"]

Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sandwich:
    """Accuracy against eps from below and above: certified <= robust <= standing.

    Attributes:
        eps: radii, ascending.
        certified: (radii, n) bool: proven to be right on the whole set.
        standing: (radii, n) bool: right, and no counterexample was found.
        method: for each radius and point what decided, or was tried last; "" where a smaller radius had said enough.
        guarantee: "float32" or "exact".
    """

    eps: tuple[float, ...]
    certified: Tensor
    standing: Tensor
    method: list[list[str]]
    guarantee: str

    def shares(self, which: str) -> list[float]:
        """The share of points in [0, 1] for each eps; "certified" or "standing"."""
        rows: Tensor = getattr(self, which)
        return [row.double().mean().item() for row in rows]


def sandwich(
    model: nn.Module, x: Tensor, y: Tensor, radii: Sequence[float], norm: str = "Linf", box: Box = (0.0, 1.0), *,
    cascade: Sequence[str] = bounds.CASCADE, attack_at: Callable[[float], Attack] | None = None,
    sound: bool | str = True, batch_size: int = 64, progress: Callable[[float, int, int, int], Any] | None = None,
) -> Sandwich:  # fmt: skip
    """Bounds and attacks at all radii.

    A point that is not certified at one radius is not tried at larger ones, where its set is larger, and one that is
    falsified stays so: both curves never rise.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        x, y: (n, ...) points in the box, (n,) int64 labels.
        radii: in x's units, >= 0.
        cascade, sound: as in `bounds.certify`.
        attack_at: makes the attack for a radius, (x, y) -> points; None: only clean errors are counterexamples.
        batch_size: points at a time.
        progress: called with eps, points done, points in all, and how many of them are certified at this radius.

    Raises:
        ValueError: for radii that are no finite numbers >= 0; and as `bounds.certify`.
    """
    ends = tuple(sorted(set(map(float, radii))))
    if not ends or not all(0 <= eps < float("inf") for eps in ends):
        raise ValueError(f"sandwich: radii must be finite numbers >= 0, at least one, got {list(radii)!r}")
    certified = torch.zeros(len(ends), len(x), dtype=torch.bool)
    standing, methods, guarantee = certified.clone(), [], ""
    hopeful, alive = torch.ones(len(x), dtype=torch.bool), torch.ones(len(x), dtype=torch.bool)
    for k, eps in enumerate(ends):
        threat, attack = threat_of(norm, eps, box), attack_at(eps) if attack_at is not None and eps > 0 else None
        method = [""] * len(x)
        # Those that may still be proven first; of the others a counterexample is all there can be.
        for rows, ways in ((hopeful & alive, cascade), (alive & ~hopeful, ())):
            for part in torch.nonzero(rows)[:, 0].split(batch_size):
                if not len(part):
                    continue
                at = part.to(x.device)
                found = bounds.certify(model, x[at], y[at], threat, ways, attack, sound)
                guarantee = found.guarantee
                for i, verdict, how in zip(part.tolist(), found.verdict, found.method, strict=True):
                    certified[k, i], standing[k, i] = verdict == "robust", verdict != "falsified"
                    method[i] = how
                if progress is not None:
                    progress(eps, int(part[-1]) + 1, len(x), int(certified[k].sum()))
        hopeful, alive = certified[k], standing[k]
        methods.append(method)
    return Sandwich(ends, certified, standing, methods, guarantee)
