"""Directions to look along from a point, a row a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrobust.attacks._objective import Objective
from fastrobust.attacks._points import Points
from fastrobust.attacks._victim import Victim
from fastrobust.ops._rounding import philox
from fastrobust.threat import Box

__all__ = ["across", "clip", "gradient", "rademacher", "steepest", "unit"]

SIGNS = 48  # Philox stream
TRIES = 16
ORDERS = {"Linf": float("inf"), "L2": 2.0, "L1": 1.0}


def rademacher(x: Tensor, seed: int, index: Tensor, draw: int = 0) -> Tensor:
    """Signs like x (batch, ...), each -1 or 1 with even chances: functions of (seed, sample id, draw) alone."""
    dim = x[0].numel()
    block = torch.arange(-(-dim // 128), device=x.device)
    words = torch.stack(philox(seed, block, draw, index[:, None], SIGNS), -1)
    bits = (words[..., None] >> torch.arange(32, device=x.device) & 1).flatten(1)[:, :dim]
    return (2 * bits - 1).to(x.dtype).view_as(x)


def unit(direction: Tensor, norm: str) -> Tensor:
    """Directions (batch, ...) brought to norm 1; those that are zero, or not finite, become zero."""
    rows = direction.flatten(1)
    rows = torch.where(torch.isfinite(rows).all(1, keepdim=True), rows, 0)
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1)  # first, lest squares overflow or vanish
    size = torch.linalg.vector_norm(rows, ORDERS[norm], dim=1, keepdim=True)
    return (rows / torch.where(size > 0, size, 1)).view_as(direction)


def steepest(slope: Tensor, norm: str) -> Tensor:
    """Where the loss rises fastest for a step of norm 1: the gradient's signs for Linf, else the gradient's way.

    The steepest L1 step moves one coordinate, which the box soon stops, so that L1 keeps the gradient's way too.
    """
    return unit(unit(slope, "Linf").sign() if norm == "Linf" else slope, norm)


def across(first: Tensor, norm: str, seed: int, index: Tensor) -> Tensor:
    """A random direction at right angles to `first` (batch, ...), of norm 1: a vector of signs, less its part along it.

    Zero in one dimension, where there is none. In few dimensions signs may well be those of `first`: then others are
    drawn.
    """
    along = unit(first, "L2").flatten(1).double()
    found = torch.zeros_like(along)
    for draw in range(TRIES):
        signs = rademacher(first, seed, index, draw).flatten(1).double()
        rest = signs - (signs * along).sum(1, keepdim=True) * along
        fresh = (found == 0).all(1) & (rest.norm(dim=1) > 1e-3 * signs.norm(dim=1))
        found = torch.where(fresh[:, None], rest, found)
        if not bool((found == 0).all(1).any()):
            break
    return unit(found.to(first.dtype).view_as(first), norm)


def gradient(victim: Victim, x: Tensor, y: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """The losses (batch,) and their gradients (batch, ...) by the model's own passes, within `victim.borrowed`."""
    value, _, slope = Objective(victim.name, victim, loss, False).gradient(x, Points(x, y, None, 0.0, 0.0))
    return value, slope


def clip(x: Tensor, box: Box) -> Tensor:
    """Points (batch, ...) brought into the box."""
    lo, hi = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in box)
    return x.maximum(lo).minimum(hi)
