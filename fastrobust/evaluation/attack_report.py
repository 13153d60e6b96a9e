"""What `fastrobust attack` says: its curve, its table, its picture, its points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastrobust._files import replacing

from . import results
from .results import Results
from .shares import percent, wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 2
"""The version of results.json; it rises when a key changes its meaning or goes."""

HEAD = ("eps", "accuracy", "95% interval", "still right")
BOUND = (
    "Share still classified correctly, with 95% intervals. An attack gives an upper bound on robust accuracy; a "
    "stronger one can only lower it."
)


def curve(radii: Sequence[float], correct: Tensor) -> list[dict[str, Any]]:
    """One entry a radius, from (radii, n) bool: eps, how many of the n are right, their share and its interval."""
    rows = []
    for eps, row in zip(radii, correct, strict=True):
        share = row.double().mean().item()
        rows.append({"eps": eps, "correct": int(row.sum()), "accuracy": share, "interval": wilson(share, len(row))})
    return rows


def finite(values: Tensor) -> list[float | None]:
    """Numbers as JSON has them, with None for infinity."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def title(found: Results) -> str:
    """One line that says what was done."""
    settings = found["settings"]
    shown = [f"{key} {settings[key]}" for key in ("steps", "restarts", "queries") if settings.get(key) is not None]
    return ", ".join([results.about(found), f"{settings['norm']} {settings['attack']}", *shown])


def rows(found: Results) -> list[tuple[str, ...]]:
    """The table's cells."""
    return [
        (f"{row['eps']:.5g}", percent(row["accuracy"]), " to ".join(map(percent, row["interval"])),
         f"{row['correct']} / {found['samples']}" + (", clean" if row["eps"] == 0 else ""))
        for row in found["curve"]
    ]  # fmt: skip


def text(found: Results) -> str:
    """The table for a terminal."""
    lines = [title(found)]
    for eps, share, interval, right in (HEAD, *rows(found)):
        lines.append(f"  {eps:<9} {share:>8}  {interval:>16}  {right}")
    return "\n".join([*lines, *(f"  {line}" for line in remarks(found))])


def remarks(found: Results) -> list[str]:
    """What belongs below the table."""
    lines = [f"warning: {doubt}" for doubt in found.get("doubts", ())]
    if found.get("median_norm") is not None:
        lines.insert(0, f"median {found['settings']['norm']} norm that breaks a point: {found['median_norm']:.5g}")
    return lines


def write(found: Results, out: Path) -> list[str]:
    """Write the files into the folder ``out``; returns what could not be made, and why."""

    def draw() -> Figure:
        from . import plots

        return plots.attacked(found)

    shown = results.Shown("Accuracy under attack", title(found), HEAD, rows(found), BOUND, remarks(found), draw)
    return results.write(found, shown, out)


def save_points(out: Path, x: Tensor, x_adv: Tensor, y: Tensor, broken_at: Tensor) -> None:
    """Write points.npz: clean and adversarial points (n, ...), labels (n,), the smallest eps that broke each (n,)."""
    clean, adversarial = (points.float().cpu().numpy() for points in (x, x_adv))
    with replacing(out / "points.npz") as file:
        np.savez_compressed(file, x=clean, x_adv=adversarial, y=y.cpu().numpy(), broken_at=broken_at.numpy())
