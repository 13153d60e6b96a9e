"""What `fastrobust certify --method smoothing` says: its table of points, its curve, its picture."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import results
from .results import Results
from .shares import percent, wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
"""The version of results.json; it rises when a key changes its meaning or goes."""

HEAD = ("radius", "certified accuracy of g", "95% interval")
COLUMNS = ("idx", "label", "predict", "radius", "correct", "time", "samples")
"""The first six are those of Cohen's certify.py (locuslab/smoothing), whose analysis reads this table."""

Point = dict[str, Any]


def table(points: Sequence[Point]) -> str:
    """A line for each point, tab-separated. `predict` is -1 and `radius` 0 where nothing is certified."""
    lines = [
        (*(p[key] for key in COLUMNS[:4]), int(p["correct"]), timedelta(seconds=p["seconds"]), p["samples"])
        for p in points
    ]
    return "".join("\t".join(map(str, line)) + "\n" for line in (COLUMNS, *lines))


def curve(points: Sequence[Point], radii: Sequence[float]) -> list[dict[str, Any]]:
    """The share of points on which g is right, and certified to be within each radius."""
    rows = []
    for eps in radii:
        share = sum(point["correct"] and point["radius"] >= eps for point in points) / len(points)
        rows.append({"eps": eps, "certified": share, "interval": wilson(share, len(points))})
    return rows


def title(found: Results) -> str:
    """One line that says what was done."""
    return f"{results.about(found)}, smoothed by {found['noise']}, {found['settings']['norm']}"


def rows(found: Results) -> list[tuple[str, ...]]:
    """The table's cells."""
    return [
        (f"{row['eps']:.5g}", percent(row["certified"]), " to ".join(map(percent, row["interval"])))
        for row in found["curve"]
    ]


def meaning(found: Results) -> str:
    """What a certificate is about."""
    return (
        "Certified: the smoothed classifier g, which says what the network f says most often under this noise, says "
        "the true class on the whole ball. It is never said of f, which may be fooled within it. For each point the "
        f"statement is wrong with a probability of at most {found['settings']['alpha']:g}."
    )


def remarks(found: Results) -> list[str]:
    """What else there is to say."""
    votes, seed = found["votes"], found["seed"]
    lines = [f"f itself: {percent(found['clean'])} clean, not certified."]
    lines.append(
        f"{votes['mean']:,.0f} noisy copies a point, {votes['total']:,} in all, {votes['drawn']:,} in this run."
    )
    if found["acr"] is not None:
        lines.append(f"Average certified radius {found['acr']['value']:.4f}, with n = {found['acr']['n']:,}.")
    lines.append(
        f"Seed {seed}, drawn for this certification after the network was fixed."
        if found["fresh"]
        else f"A replay of seed {seed}: it holds for points and networks chosen without regard to that noise alone."
    )
    return lines


def text(found: Results) -> str:
    """The table for a terminal."""
    lines = [title(found)]
    for eps, sure, interval in (HEAD, *rows(found)):
        lines.append(f"  {eps:<9} {sure:>23}  {interval:>16}")
    return "\n".join([*lines, *(f"  {line}" for line in (*remarks(found), meaning(found)))])


def write(found: Results, out: Path) -> list[str]:
    """Write the files into the folder ``out``; returns what could not be made, and why."""

    def draw() -> Figure:
        from . import plots

        return plots.smoothed(found)

    shown = results.Shown(
        "Certified accuracy under noise", title(found), HEAD, rows(found), meaning(found), remarks(found), draw
    )
    return results.write(found, shown, out)
