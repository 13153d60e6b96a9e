"""For people who come from elsewhere: foolbox's and RobustBench's calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrobust.attacks._minimum import MinimumNorm
from fastrobust.attacks._points import AttackResult
from fastrobust.attacks._rows import size
from fastrobust.attacks._victim import Model
from fastrobust.attacks.autoattack import AutoAttack
from fastrobust.threat import Threat

__all__ = ["benchmark", "foolbox_call"]


def foolbox_call(
    attack: Callable[..., Any], model: Model, x: Tensor, y: Tensor,
    epsilons: Sequence[float] | np.ndarray | Tensor | float | None, **settings: Any,
) -> tuple[Any, Any, Tensor]:  # fmt: skip
    """An attack called as foolbox's are: ``foolbox_call(PGD, model, x, y, epsilons=[...], steps=40)``.

    Args:
        attack: a class of this package.
        model: maps (batch, ...) to logits (batch, classes).
        x: (batch, ...) points in the box.
        y: (batch,) int64 labels.
        epsilons: radii, as a list, array or tensor; one number; or None, for attacks that minimise a norm.
        settings: further arguments of the attack.

    Returns:
        ``(raw, clipped, success)``: for a list of K radii lists of K tensors like x and (K, batch) bool; for one number
        or None single ones and (batch,) bool. A minimum-norm attack runs once: a radius is a success if what was found
        lies within it, and `clipped` is `raw` there and the clean point elsewhere.

    Raises:
        ValueError: if the attack needs a radius and epsilons is None.
    """
    if isinstance(epsilons, (np.ndarray, Tensor)):
        epsilons = epsilons.tolist()
    several = isinstance(epsilons, Sequence)
    radii: list[float | None] = list(epsilons) if isinstance(epsilons, Sequence) else [epsilons]
    make: Any = attack
    if isinstance(make, type) and issubclass(make, MinimumNorm):
        seeker = make(model, **settings)
        found: AttackResult = seeker.run(x, y)
        norms = size(found.x_adv.double() - x.double(), seeker.norm)
        hits = [found.success & (norms <= (torch.inf if e is None else e)) for e in radii]
        raw = [found.x_adv for _ in radii]
        clipped = [torch.where(hit.view(-1, *[1] * (x.dim() - 1)), found.x_adv, x) for hit in hits]
    else:
        if None in radii:
            name = getattr(make, "__name__", "attack")
            raise ValueError(f"foolbox_call: epsilons must be given for {name}, which has a radius, got None")
        results = [make(model, eps=float(e), **settings).run(x, y) for e in radii if e is not None]
        hits, raw = [r.success for r in results], [r.x_adv for r in results]
        clipped = raw
    if several:
        return raw, clipped, torch.stack(hits) if hits else torch.zeros(0, len(x), dtype=torch.bool, device=x.device)
    return raw[0], clipped[0], hits[0]


def benchmark(
    model: Model, x: Tensor, y: Tensor, threat: Threat, batch_size: int = 250, **settings: Any
) -> tuple[float, float]:
    """Clean and robust accuracy by standard AutoAttack, as RobustBench's ``benchmark`` returns them.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        x, y: (n, ...) points in the threat's box and (n,) int64 labels.
        threat: `fastrobust.Linf(8 / 255)` and the like.
        batch_size: points at a time.
        settings: further arguments of `AutoAttack`.
    """
    found = AutoAttack(model, threat=threat, **{"verbose": False, "seed": 0, **settings}).run(x, y, batch_size)
    return found.accuracy["clean"], float(found.robust.double().mean())
