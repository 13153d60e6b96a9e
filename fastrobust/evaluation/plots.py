"""The report's figures, drawn once with matplotlib and saved twice: as PNG, and as SVG in the page's colours.

Every function takes the results of `report.write` and returns a figure. Accuracy axes run from 0 to 1, time
axes start at 0, and test accuracies carry the 95% Wilson interval of the number of points measured.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .examples import Example
from .shares import wilson

INK = "#1f2328"  # text and frames; becomes the page's text colour in the SVG
COLOURS = {"standard": "#d2622a", "robust": "#2f7fd0"}  # both readable on white and on near-black
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.fonttype": "none",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}

Results = Mapping[str, Any]


def robust_accuracy(results: Results) -> Figure:
    """Accuracy against eps for both networks: PGD's, the envelope of all points found, and AutoAttack's."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        sweep, n, suite = results["sweep"], results["data"]["test"], results["autoattack"]
        envelope = sweep["envelope"]
        for name, colour in COLOURS.items():
            low, high = np.transpose([wilson(share, n) for share in sweep[name]])
            axes.fill_between(sweep["eps"], low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(sweep["eps"], sweep[name], "o", color=colour, markersize=5, label=f"{name}, PGD")
            axes.plot(envelope["eps"], envelope[name], color=colour, linewidth=1.5, label=f"{name}, nearest found")
            left = suite[name]["accuracy"]["square"]
            axes.plot(suite["eps"], left, "D", color=colour, markersize=7, markeredgecolor=INK, clip_on=False,
                      label=f"{name}, AutoAttack")  # fmt: skip
        axes.axvline(results["headline"]["eps"], color=INK, alpha=0.45, linewidth=1, linestyle=":")
        axes.set_xlabel("eps: largest change of a pixel (0 to 1)")
        _share_axis(axes, "accuracy under attack")
        axes.set_xlim(left=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def attacked(results: Results) -> Figure:
    """Accuracy against eps for the network of `attack_report.write`: at the radii measured, with their intervals."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        colour, curve = COLOURS["robust"], results["curve"]
        eps = [row["eps"] for row in curve]
        low, high = np.transpose([row["interval"] for row in curve])
        if results["settings"]["minimum_norm"]:  # the norms of what was found are the places where the curve falls
            ends = sorted(e for e in results["broken_at"] if e and e <= max(eps))
            left = curve[0]["accuracy"] - np.arange(len(ends) + 1) / results["samples"]
            axes.plot([0, *ends, max(eps)], [*left, left[-1]], color=colour, drawstyle="steps-post")
            axes.errorbar(eps, [row["accuracy"] for row in curve], yerr=_reach(curve), fmt="o", color=colour)
        else:
            axes.fill_between(eps, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(eps, [row["accuracy"] for row in curve], "o-", color=colour, markersize=5)
        axes.set_xlabel(f"eps: {results['settings']['norm']} norm of the change")
        _share_axis(axes, "accuracy under attack")
        axes.set_xlim(left=0)
    return figure


def sandwich(results: Results) -> Figure:
    """Accuracy against eps: what no attack took, what is proven, and between them what is not known."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        curve, colour = results["curve"], COLOURS["robust"]
        eps, above, below = ([row[key] for row in curve] for key in ("eps", "standing", "certified"))
        axes.fill_between(eps, below, above, color="#8b949e", alpha=0.25, linewidth=0, label="unknown")
        axes.plot(eps, above, "o-", color=COLOURS["standard"], markersize=5, label="no counterexample")
        axes.plot(eps, below, "s-", color=colour, markersize=5, label="certified")
        axes.axhline(results["clean"], color=INK, alpha=0.45, linewidth=1, linestyle=":", label="clean")
        axes.set_xlabel(f"eps: {results['settings']['norm']} norm of the change")
        _share_axis(axes, "accuracy")
        axes.set_xlim(left=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def smoothed(results: Results) -> Figure:
    """Certified accuracy of the smoothed classifier against the radius, with its intervals."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        colour, curve = COLOURS["robust"], results["curve"]
        eps, certified = ([row[key] for row in curve] for key in ("eps", "certified"))
        if results["settings"]["eps"] is None:  # radii of a fixed number of copies: where the curve falls
            ends = sorted(point["radius"] for point in results["points"] if point["correct"])
            left = (len(ends) - np.arange(len(ends) + 1)) / results["samples"]
            axes.plot([0, *ends], left, color=colour, drawstyle="steps-post")
        low, high = np.transpose([row["interval"] for row in curve])
        reach = np.maximum([np.subtract(certified, low), np.subtract(high, certified)], 0.0)
        axes.errorbar(eps, certified, yerr=reach, fmt="o", color=colour, label="g, certified")
        axes.axhline(
            results["clean"], color=INK, alpha=0.45, linewidth=1, linestyle=":", label="f, clean, not certified"
        )
        axes.set_xlabel(f"radius: {results['settings']['norm']} norm of the change")
        _share_axis(axes, "certified accuracy of g")
        axes.set_xlim(left=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def rounds(results: Results) -> Figure:
    """Of each round the shares certified, unproven and falsified, one above the other."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        numbers = [row["number"] for row in results["rounds"]]
        base = np.zeros(len(numbers))
        for key, what, colour in (
            ("certified", "certified", COLOURS["robust"]), ("unproven", "unproven", "#8b949e"),
            ("real", "real failures", COLOURS["standard"]),
        ):  # fmt: skip
            shares = np.array([row[key] for row in results["rounds"]])
            axes.bar(numbers, shares, bottom=base, width=0.6, color=colour, label=what)
            base = base + shares
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _share_axis(axes, "share of the validation sample")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def training_accuracy(results: Results) -> Figure:
    """Validation accuracy per epoch: clean solid, under attack dashed."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        for name, colour in COLOURS.items():
            history = results["models"][name]["history"]
            for key, line, what in (("clean", "o-", "clean"), ("robust", "o--", "attacked")):
                rows = [row for row in history if row.get(key) is not None]
                values = [row[key] for row in rows]
                axes.plot(
                    [row["epoch"] for row in rows],
                    values,
                    line,
                    color=colour,
                    markersize=3.5,
                    label=f"{name}, {what}",
                )
        axes.set_xlabel("epoch")
        _share_axis(axes, "validation accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def training_loss(results: Results) -> Figure:
    """The objective's value per epoch, on the points each network was trained on."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        for name, colour in COLOURS.items():
            history = results["models"][name]["history"]
            axes.plot(
                [r["epoch"] for r in history],
                [r["loss"] for r in history],
                "o-",
                color=colour,
                markersize=3.5,
                label=name,
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper right")
    return figure


def timing(results: Results) -> Figure:
    """Median time of one attack per contender, over the time the model alone needs."""
    with matplotlib.rc_context(STYLE):
        rows = results["timing"]["contenders"]
        figure, axes = _figure(height=1.3 + 0.45 * len(rows))
        times = [1e3 * row["median_s"] for row in rows]
        colours = [COLOURS["robust"] if row["name"] == "fastrobust" else "#8b949e" for row in rows]
        bars = axes.barh([row["name"] for row in rows], times, color=colours, height=0.6)
        axes.bar_label(bars, [f"{t:.0f} ms" for t in times], label_type="center", color="white")
        model = 1e3 * results["timing"]["model_alone_s"]
        axes.axvline(model, color=INK, linewidth=1.2, linestyle="--", label="the network alone")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 1.2 * max(*times, model))
        axes.set_xlabel("milliseconds per attack, median")
    return figure


def gallery(examples: Sequence[Example]) -> Figure:
    """One row per example: clean, then perturbation and adversarial point for each attacked network."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.5, 1.55 * len(examples) + 0.4), layout="constrained")
        grid = figure.subplots(len(examples), 5, squeeze=False)
        scale = largest_change(examples)
        for axes, example in zip(grid, examples, strict=True):
            _picture(axes[0], example.clean, _says(example.predictions["clean"]))
            for k, (name, point) in enumerate(example.adversarial.items()):
                _picture(axes[1 + 2 * k], tint(point - example.clean, scale), f"against {name}")
                _picture(axes[2 + 2 * k], point, _says(example.predictions[name]))
    return figure


def largest_change(examples: Sequence[Example]) -> float:
    """The largest change of a pixel in any example, so that all perturbations share one colour scale."""
    changes = (np.abs(point - e.clean).max() for e in examples for point in e.adversarial.values())
    return float(max(changes, default=0.0)) or 1.0


def tint(change: np.ndarray, scale: float) -> np.ndarray:
    """A perturbation as a picture (h, w, 3): white for no change, red for brighter, blue for darker."""
    if change.ndim == 3:
        return np.clip(0.5 + 0.5 * change / scale, 0, 1)
    picture: np.ndarray = matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * change / scale)[..., :3]
    return picture


def png(image: np.ndarray) -> str:
    """A picture (h, w) or (h, w, 3) in [0, 1] as a data URI, one pixel to a pixel."""
    buffer = io.BytesIO()
    imsave(buffer, np.clip(image, 0, 1), format="png", cmap="gray", vmin=0, vmax=1, metadata={"Software": ""})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def svg(figure: Figure, name: str) -> str:
    """The figure as an inline ``<svg>``: its ids start with ``name``, its ink is the page's text colour."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\sid="', rf"\g<0>{name}-", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        rf'<svg class="chart" role="img" aria-label="{name}" \1>',
        text,
        count=1,
    )
    return text.replace(INK, "currentColor")


def _figure(height: float = 3.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, height), layout="constrained")
    return figure, figure.subplots()


def _reach(curve: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """How far the intervals reach below and above, (2, radii)."""
    ends = [(row["accuracy"] - row["interval"][0], row["interval"][1] - row["accuracy"]) for row in curve]
    return np.maximum(np.transpose(ends), 0.0)


def _share_axis(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _picture(axes: Axes, image: np.ndarray, caption: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(caption, fontsize=7.5)
    axes.set_axis_off()


def _says(predictions: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in predictions.items())
