"""What `fastrobust attack` and `certify` write: results.json, table.md, with matplotlib curve.png and report.html."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastrobust._files import replacing
from fastrobust.data.optional import need

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Mapping[str, Any]


class Shown(NamedTuple):
    """How results are shown: a line that says what was done, a table, what it means, further lines, the picture."""

    heading: str
    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    meaning: str
    remarks: Sequence[str]
    draw: Callable[[], Figure]


def about(results: Results) -> str:
    """Of which network on which samples the results are."""
    part = "" if results["data"].startswith("npz:") else f" ({results['settings']['split']})"
    return f"{results['model']['path']} on {results['samples']} samples of {results['data']}{part}"


def write(results: Results, shown: Shown, out: Path) -> list[str]:
    """Write the files into the folder ``out``, each replaced as a whole; returns what could not be made, and why."""
    _replace(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    lines = ["| " + " | ".join(cells) + " |" for cells in (shown.head, ("---:",) * len(shown.head), *shown.rows)]
    below = "\n\n".join([*shown.remarks, shown.meaning])
    _replace(out / "table.md", "\n".join([shown.title, "", *lines, "", below, ""]))
    try:
        need("matplotlib", "matplotlib", "curve.png and report.html: drawing")
    except ImportError as error:
        return [str(error)]
    from . import page, plots

    figure = shown.draw()
    with replacing(out / "curve.png") as file:
        figure.savefig(file, format="png", dpi=160)
    settings = [(key, str(value)) for key, value in results["settings"].items() if value is not None]
    body = (
        f"<h1>{escape(shown.heading)}</h1><p>{escape(shown.title)}.</p>",
        page.figure(plots.svg(figure, "curve"), shown.meaning),
        page.table(shown.head, shown.rows),
        *(f'<p class="soft">{escape(line)}</p>' for line in shown.remarks),
        "<h2>Settings</h2>",
        page.facts([*((key, str(value)) for key, value in results["model"].items()), *settings]),
        "<h2>Made on</h2>",
        page.facts([(key, str(value)) for key, value in results["environment"].items()]),
    )
    _replace(out / "report.html", page.page(f"fastrobust: {results['model']['path']}", body))
    return []


def _replace(path: Path, content: str) -> None:
    with replacing(path) as file:
        file.write(content.encode())
