"""What `fastrobust certify` leaves behind: results.json, table.md, and with matplotlib curve.png and report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from fastrobust._files import replacing
from fastrobust.data.optional import need

from .sandwich import Sandwich
from .shares import percent, wilson

SCHEMA = 1
"""The version of results.json; it rises when a key changes its meaning or goes."""

HEAD = ("eps", "certified", "95% interval", "no counterexample", "unknown")
MEANS = {
    "float32": "Certified: every float32 evaluation of the network, layer by layer with direct sums, is right on the "
    "whole set.",
    "exact": "Certified: the network in real arithmetic, with its stored weights, is right on the whole set.",
}
Results = Mapping[str, Any]


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


def title(results: Results) -> str:
    """One line that says what was done."""
    part = "" if results["data"].startswith("npz:") else f" ({results['settings']['split']})"
    return f"{results['model']['path']} on {results['samples']} samples of {results['data']}{part}, " + (
        f"{results['settings']['norm']}, {results['clean']:.1%} clean"
    )


def rows(results: Results) -> list[tuple[str, ...]]:
    """The table's cells."""
    return [
        (f"{row['eps']:.5g}", percent(row["certified"]), " to ".join(map(percent, row["interval"])),
         percent(row["standing"]), percent(row["standing"] - row["certified"]))
        for row in results["curve"]
    ]  # fmt: skip


def text(results: Results) -> str:
    """The table for a terminal."""
    lines = [title(results)]
    for eps, sure, interval, standing, unknown in (HEAD, *rows(results)):
        lines.append(f"  {eps:<9} {sure:>9}  {interval:>16}  {standing:>17}  {unknown:>8}")
    return "\n".join([*lines, f"  {MEANS[results['guarantee']]}"])


def write(results: Results, out: Path) -> list[str]:
    """Write the files into the folder ``out``, each replaced as a whole; returns what could not be made, and why."""
    _replace(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ("---:",) * len(HEAD), *rows(results))]
    _replace(out / "table.md", "\n".join([title(results), "", *lines, "", MEANS[results["guarantee"]], ""]))
    try:
        need("matplotlib", "matplotlib", "curve.png and report.html: drawing")
    except ImportError as error:
        return [str(error)]
    from . import page, plots

    figure = plots.sandwich(results)
    with replacing(out / "curve.png") as file:
        figure.savefig(file, format="png", dpi=160)
    settings = [(key, str(value)) for key, value in results["settings"].items() if value is not None]
    body = (
        f"<h1>Certified accuracy</h1><p>{escape(title(results))}.</p>",
        page.figure(plots.svg(figure, "curve"), MEANS[results["guarantee"]]),
        page.table(HEAD, rows(results)),
        "<h2>Settings</h2>",
        page.facts([*((key, str(value)) for key, value in results["model"].items()), *settings]),
        "<h2>Made on</h2>",
        page.facts([(key, str(value)) for key, value in results["environment"].items()]),
    )
    _replace(out / "report.html", page.page(f"fastrobust: {results['model']['path']} certified", body))
    return []


def _replace(path: Path, content: str) -> None:
    with replacing(path) as file:
        file.write(content.encode())
