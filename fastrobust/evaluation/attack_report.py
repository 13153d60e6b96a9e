"""What `fastrobust attack` leaves behind: results.json, table.md, and with matplotlib curve.png and report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastrobust._files import replacing
from fastrobust.data.optional import need

from .shares import percent, wilson

SCHEMA = 2
"""The version of results.json; it rises when a key changes its meaning or goes."""

HEAD = ("eps", "accuracy", "95% interval", "still right")
BOUND = "An attack gives an upper bound on robust accuracy; a stronger one can only lower it."
Results = Mapping[str, Any]


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


def title(results: Results) -> str:
    """One line that says what was done."""
    settings = results["settings"]
    shown = [f"{key} {settings[key]}" for key in ("steps", "restarts", "queries") if settings.get(key) is not None]
    part = "" if results["data"].startswith("npz:") else f" ({settings['split']})"
    return (
        f"{results['model']['path']} on {results['samples']} samples of {results['data']}{part}, "
        f"{settings['norm']} {settings['attack']}" + (f", {', '.join(shown)}" if shown else "")
    )


def rows(results: Results) -> list[tuple[str, ...]]:
    """The table's cells."""
    return [
        (f"{row['eps']:.5g}", percent(row["accuracy"]), " to ".join(map(percent, row["interval"])),
         f"{row['correct']} / {results['samples']}" + (", clean" if row["eps"] == 0 else ""))
        for row in results["curve"]
    ]  # fmt: skip


def text(results: Results) -> str:
    """The table for a terminal."""
    lines = [title(results)]
    for eps, share, interval, right in (HEAD, *rows(results)):
        lines.append(f"  {eps:<9} {share:>8}  {interval:>16}  {right}")
    return "\n".join([*lines, *(f"  {line}" for line in remarks(results))])


def remarks(results: Results) -> list[str]:
    """What belongs below the table."""
    found = [f"warning: {doubt}" for doubt in results.get("doubts", ())]
    if results.get("median_norm") is not None:
        found.insert(0, f"median {results['settings']['norm']} norm that breaks a point: {results['median_norm']:.5g}")
    return found


def write(results: Results, out: Path) -> list[str]:
    """Write the files into the folder ``out``, each replaced as a whole; returns what could not be made, and why."""
    _replace(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ("---:",) * len(HEAD), *rows(results))]
    below = "\n\n".join([*remarks(results), BOUND])
    _replace(out / "table.md", "\n".join([title(results), "", *lines, "", below, ""]))
    try:
        need("matplotlib", "matplotlib", "curve.png and report.html: drawing")
    except ImportError as error:
        return [str(error)]
    from . import page, plots

    figure = plots.attacked(results)
    with replacing(out / "curve.png") as file:
        figure.savefig(file, format="png", dpi=160)
    settings = [(key, str(value)) for key, value in results["settings"].items() if value is not None]
    body = (
        f"<h1>Accuracy under attack</h1><p>{escape(title(results))}.</p>",
        page.figure(plots.svg(figure, "curve"), "Share still classified correctly, with 95% intervals. " + BOUND),
        page.table(HEAD, rows(results)),
        *(f'<p class="soft">{escape(line)}</p>' for line in remarks(results)),
        "<h2>Settings</h2>",
        page.facts([*((key, str(value)) for key, value in results["model"].items()), *settings]),
        "<h2>Made on</h2>",
        page.facts([(key, str(value)) for key, value in results["environment"].items()]),
    )
    _replace(out / "report.html", page.page(f"fastrobust: {results['model']['path']} under attack", body))
    return []


def save_points(out: Path, x: Tensor, x_adv: Tensor, y: Tensor, broken_at: Tensor) -> None:
    """Write points.npz: clean and adversarial points (n, ...), labels (n,), the smallest eps that broke each (n,)."""
    clean, adversarial = (points.float().cpu().numpy() for points in (x, x_adv))
    with replacing(out / "points.npz") as file:
        np.savez_compressed(file, x=clean, x_adv=adversarial, y=y.cpu().numpy(), broken_at=broken_at.numpy())


def _replace(path: Path, content: str) -> None:
    with replacing(path) as file:
        file.write(content.encode())
