"""What the train-verify loop says: a table of its rounds, why it ended, what would prove more, its picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import results
from .results import Results
from .shares import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
"""The version of results.json; it rises when a key changes its meaning or goes."""

HEAD = ("round", "epochs", "certified", "real failures", "unproven", "training samples with more weight")
MEANS = (
    "Certified: proven on the validation sample. Real failures: the network errs there, or on a point that an attack "
    "found within eps. Unproven: neither. Training never sees these samples."
)


def title(found: Results) -> str:
    """One line that says what was done."""
    settings = found["settings"]
    return f"{results.about(found)}, {settings['objective']}, {settings['norm']} eps {settings['eps']:.5g}"


def rows(found: Results) -> list[tuple[str, ...]]:
    """The table's cells."""
    return [
        (str(r["number"]), str(r["epochs"]), *(percent(r[key]) for key in ("certified", "real", "unproven")),
         str(r["repeated"]))
        for r in found["rounds"]
    ]  # fmt: skip


def remarks(found: Results) -> list[str]:
    """How the rounds ended, and what would prove more."""
    advice = [f"{a['change']}: {percent(a['gain'])} more would be certified" for a in found["advice"]]
    return [f"round {found['best']} is kept, since {found['why']}", *advice]


def write(found: Results, out: Path) -> list[str]:
    """Write the files into the folder ``out``; returns what could not be made, and why."""

    def draw() -> Figure:
        from . import plots

        return plots.rounds(found)

    shown = results.Shown("Train, verify, train", title(found), HEAD, rows(found), MEANS, remarks(found), draw)
    return results.write(found, shown, out)
