"""Directions to look along from a point, a row a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrobust.attacks._objective import Objective
from fastrobust.attacks._points import Points
from fastrobust.attacks._victim import Victim
from fastrobust.ops._rounding import philox
from fastrobust.threat import Box

__all__ = ["clip", "gradient", "orthogonal", "rademacher", "steepest", "unit"]

SIGNS = 48  # Philox stream
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


def orthogonal(direction: Tensor, to: Tensor, norm: str) -> Tensor:
    """The part of a direction that is at right angles to another, brought to norm 1."""
    a, b = direction.flatten(1).double(), unit(to, "L2").flatten(1).double()
    return unit((a - (a * b).sum(1, keepdim=True) * b).to(direction.dtype).view_as(direction), norm)


def gradient(victim: Victim, x: Tensor, y: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """The losses (batch,) and their gradients (batch, ...) by the model's own passes, within `victim.borrowed`."""
    value, _, slope = Objective(victim.name, victim, loss, False).gradient(x, Points(x, y, None, 0.0, 0.0))
    return value, slope


def clip(x: Tensor, box: Box) -> Tensor:
    """Points (batch, ...) brought into the box."""
    lo, hi = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in box)
    return x.maximum(lo).minimum(hi)
