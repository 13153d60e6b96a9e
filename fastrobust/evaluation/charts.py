"""Figures of a diagnosis and of loss landscapes, in the style of `plots`; they need matplotlib."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator

from .diagnosis import Diagnosis
from .landscape import Landscape
from .plots import COLOURS, INK, STYLE, _share_axis, wilson
from .shares import percent

__all__ = ["diagnosis_figure", "landscape_figure"]

FINE, LOOK, QUIET = COLOURS["robust"], COLOURS["standard"], "#8b949e"
LABELS = {"ce": "cross-entropy", "margin": "margin (above 0: wrong)"}
COLUMNS = 4
OUTLINE = [withStroke(linewidth=2.8, foreground=INK)]  # lest white vanish on yellow


def diagnosis_figure(diagnosis: Diagnosis) -> Figure:
    """Accuracy against steps, restarts and radius, and by attack; what wants a look is orange.

    Bands are 95% Wilson intervals of the number of points, which all attacks share: they say how well an accuracy is
    known, not whether two attacks differ.
    """
    numbers = diagnosis.numbers
    suspicious = {finding.name for finding in diagnosis.suspicious}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 6.6), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08))
        grid = figure.subplots(2, 2).flat
        panels = (
            ("steps", "steps", numbers["against_steps"], "PGD steps"),
            ("restarts", "restarts", numbers["against_restarts"], "random starts"),
            ("radii", "eps", numbers["radii"], "eps"),
        )
        for axes, (name, key, found, label) in zip(grid, panels, strict=False):
            look = name in suspicious
            axes.axhline(numbers["clean"], color=INK, alpha=0.6, linewidth=1, linestyle=":", label="no attack")
            _curve(axes, found[key], found["accuracy"], numbers["points"], look)
            axes.set_title(f"against {name}{_note(look)}")
            axes.set_xlabel(label)
        figure.axes[0].legend(loc="best")
        _bars(figure.axes[3], diagnosis, suspicious)
    return figure


def _curve(axes: Axes, at: list[float], accuracy: list[float], points: int, look: bool) -> None:
    colour = LOOK if look else FINE
    low, high = np.transpose([wilson(share, points) for share in accuracy])
    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(at, accuracy, "o-", color=colour, markersize=5)
    axes.set_xscale("log")
    axes.set_xticks(at, [f"{value:g}" for value in at])
    axes.xaxis.set_minor_locator(NullLocator())
    _share_axis(axes, "accuracy under attack")


def _bars(axes: Axes, diagnosis: Diagnosis, suspicious: set[str]) -> None:
    by, clean = diagnosis.numbers["attacks"], diagnosis.numbers["clean"]
    rows = (
        ("no attack", clean, QUIET),
        ("random noise", by["noise"], LOOK if "noise" in suspicious else QUIET),
        ("Square, no gradients", by["square"], LOOK if "black box" in suspicious else QUIET),
        ("APGD, cross-entropy", by["apgd-ce"], LOOK if "saturation" in suspicious else FINE),
        ("APGD, DLR", by["apgd-dlr"], FINE),
        ("PGD, no bounds", diagnosis.numbers["unbounded"]["accuracy"], LOOK if "unbounded" in suspicious else FINE),
    )
    bars = axes.barh([name for name, _, _ in rows], [share for _, share, _ in rows], height=0.62)
    for bar, (_, _, colour) in zip(bars, rows, strict=True):
        bar.set_color(colour)
    axes.bar_label(bars, [percent(share) for _, share, _ in rows], padding=3, fontsize=9.5)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.18)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{k}%" for k in range(0, 101, 20)])
    look = suspicious & {"noise", "black box", "saturation", "unbounded"}
    axes.set_title(f"by attack{_note(bool(look))}")
    axes.set_xlabel("accuracy under attack")


def _note(look: bool) -> str:
    return ": look" if look else ""


def landscape_figure(landscape: Landscape, n: int = 4) -> Figure:
    """The planes of the first n samples: the loss as colour, and lines where the prediction changes.

    Each panel has its own scale of colours. The cross is x itself.
    """
    count = min(n, len(landscape.loss))
    if count < 1:
        raise ValueError(f"landscape_figure: n and the number of samples must be at least 1, got {count}")
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    axis = landscape.axis.cpu().numpy()
    half = (axis[1] - axis[0]) / 2
    extent = (axis[0] - half, axis[-1] + half, axis[0] - half, axis[-1] + half)
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(2.9 * columns + 0.4, 3.5 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for panel in grid.flat[count:]:
            panel.set_axis_off()
        for sample, axes in enumerate(grid.flat[:count]):
            values = landscape.loss[sample].T.cpu().numpy()  # a to the right, b up
            said = landscape.prediction[sample].T.cpu().numpy()
            image = axes.imshow(values, origin="lower", extent=extent, cmap="viridis", interpolation="nearest")
            for label in np.unique(said)[1:] if len(np.unique(said)) > 1 else ():
                axes.contour(axis, axis, said == label, levels=[0.5], colors="white", linewidths=1.4).set_path_effects(
                    OUTLINE
                )
            axes.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=1.6, path_effects=OUTLINE)
            centre = said[len(axis) // 2, len(axis) // 2]
            axes.set_title(f"sample {sample}: predicted {centre}", fontsize=9.5)
            axes.set_xlabel("along the first direction")
            if sample % columns == 0:
                axes.set_ylabel("along the second")
            for ticks in (axes.xaxis, axes.yaxis):
                ticks.set_major_locator(MaxNLocator(4))
            bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.9, aspect=22)
            bar.ax.xaxis.set_major_locator(MaxNLocator(4))
            bar.set_label(LABELS[landscape.kind])
            bar.outline.set_visible(False)
    return figure
