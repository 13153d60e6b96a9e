"""Inputs that are whole numbers of steps: what exact certificates are about."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrobust import _checks

__all__ = ["check_levels", "grid_points", "grid_values"]

MOST = 2**52  # steps from 0: they and their noise are whole numbers of float64
MOST_LEVELS = 2**16 - 1  # for which float32 tells k / levels from its neighbours with much to spare


def check_levels(where: str, levels: Any) -> None:
    if not isinstance(levels, int) or not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"{where}: levels must be an integer in 1 .. {MOST_LEVELS}, got {levels!r}")


def grid_points(where: str, x: Tensor, levels: int) -> Tensor:
    """k with x = k / levels, int64 in the shape of x, float32 or float64.

    x may be off by the rounding of a float32 (several ways lead from bytes to floats), not by more: what is between two
    grid points has no certificate.
    """
    _checks.check_tensor(where, "x", x, _checks.ITERATES)
    if not _checks.is_finite(x):
        raise ValueError(f"{where}: x must be finite")
    scaled = x.detach().double() * levels
    k = scaled.round()
    if x.numel():
        if float(k.abs().max()) > MOST:
            raise ValueError(f"{where}: x must lie within {MOST / levels:.3g} of 0, got {float(x.abs().max()):.3g}")
        off = float((scaled - k).abs().max())
        if off > levels * 2.0**-22:
            raise ValueError(f"{where}: x must hold multiples of 1/{levels}, got a value off by {off / levels:.3g}")
    return k.long()


def grid_values(k: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """k / levels, rounded to float64 and then to dtype: a fixed function of whole numbers, the same on any device."""
    return (k.double() / levels).to(dtype)
