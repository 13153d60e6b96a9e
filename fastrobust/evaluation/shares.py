"""Measured shares: how they are written, and how far chance can carry them."""

from __future__ import annotations

import math


def percent(share: float) -> str:
    """A share in [0, 1] as "95.2%"."""
    return f"{100 * share:.1f}%"


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% Wilson score interval of a share measured on n points (Wilson 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
