"""What `fastrobust certify` says: its curve, its table, its picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import results
from .results import Results
from .sandwich import Sandwich
from .shares import percent, wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
"""The version of results.json; it rises when a key changes its meaning or goes."""

HEAD = ("eps", "certified", "95% interval", "no counterexample", "unknown")
MEANS = {
    "float32": "Certified: every float32 evaluation of the network, layer by layer with direct sums, is right on the "
    "whole set.",
    "exact": "Certified: the network in real arithmetic, with its stored weights, is right on the whole set.",
}


def curve(found: Sandwich) -> list[dict[str, Any]]:
    """One entry a radius: shares of all points, and how many each method proved."""
    rows = []
    for k, eps in enumerate(found.eps):
        proven = [how for how, sure in zip(found.method[k], found.certified[k].tolist(), strict=True) if sure]
        share, standing = (which[k].double().mean().item() for which in (found.certified, found.standing))
        rows.append({
            "eps": eps, "certified": share, "interval": wilson(share, found.certified.shape[1]), "standing": standing,
            "proven_by": {how: proven.count(how) for how in dict.fromkeys(proven)},
        })  # fmt: skip
    return rows


def points(found: Sandwich) -> list[dict[str, Any]]:
    """For each point the largest eps at which it is certified and the smallest that falsifies it; None for neither."""
    each = []
    for sure, standing in zip(found.certified.T.tolist(), found.standing.T.tolist(), strict=True):
        held = [eps for eps, ok in zip(found.eps, sure, strict=True) if ok]
        fell = [eps for eps, ok in zip(found.eps, standing, strict=True) if not ok]
        each.append({"certified": max(held, default=None), "falsified": min(fell, default=None)})
    return each


def title(found: Results) -> str:
    """One line that says what was done."""
    return f"{results.about(found)}, {found['settings']['norm']}, {found['clean']:.1%} clean"


def rows(found: Results) -> list[tuple[str, ...]]:
    """The table's cells."""
    return [
        (f"{row['eps']:.5g}", percent(row["certified"]), " to ".join(map(percent, row["interval"])),
         percent(row["standing"]), percent(row["standing"] - row["certified"]))
        for row in found["curve"]
    ]  # fmt: skip


def text(found: Results) -> str:
    """The table for a terminal."""
    lines = [title(found)]
    for eps, sure, interval, standing, unknown in (HEAD, *rows(found)):
        lines.append(f"  {eps:<9} {sure:>9}  {interval:>16}  {standing:>17}  {unknown:>8}")
    return "\n".join([*lines, f"  {MEANS[found['guarantee']]}"])


def write(found: Results, out: Path) -> list[str]:
    """Write the files into the folder ``out``; returns what could not be made, and why."""

    def draw() -> Figure:
        from . import plots

        return plots.sandwich(found)

    meaning = MEANS[found["guarantee"]]
    shown = results.Shown("Certified accuracy", title(found), HEAD, rows(found), meaning, (), draw)
    return results.write(found, shown, out)
