"""What a demo run leaves behind: results.json, the plots, and report.html, which needs no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastrobust._files import replacing

from . import certify_report, page, plots
from .examples import Example
from .shares import percent, wilson

SCHEMA = 1
"""The version of results.json; it rises when a key changes its meaning or goes."""

PLOTS: dict[str, Callable[[Mapping[str, Any]], plots.Figure]] = {
    "robust_accuracy": plots.robust_accuracy,
    "certified_accuracy": lambda results: plots.sandwich(results["certified"]),
    "smoothed_accuracy": lambda results: plots.smoothed(results["smoothed"]),
    "training_accuracy": plots.training_accuracy,
    "training_loss": plots.training_loss,
    "timing": plots.timing,
}

Results = Mapping[str, Any]


def write(results: Results, examples: Sequence[Example], out: Path) -> list[Path]:
    """Write results.json, the plots and report.html into the folder ``out`` and return their paths.

    Each file is replaced as a whole, so a run killed here leaves the previous one readable.
    """
    out.mkdir(parents=True, exist_ok=True)
    written, charts = [], {}
    for name, draw in PLOTS.items():
        figure = draw(results)
        charts[name] = plots.svg(figure, name)
        written.append(_save(figure, out / f"{name}.png"))
    written.append(_save(plots.gallery(examples), out / "gallery.png"))
    written.append(_replace(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n"))
    written.append(_replace(out / "report.html", html(results, examples, charts)))
    return written


def html(results: Results, examples: Sequence[Example], charts: Mapping[str, str]) -> str:
    """The whole page as text; ``charts`` maps each name of PLOTS to its inline SVG."""
    body = (
        _head(results),
        _headline(results),
        _curve(results, charts),
        _suite(results),
        _threats(results),
        _diagnosis(results),
        _certified(results, charts),
        _smoothed(results, charts),
        _training(results, charts),
        _gallery(results, examples),
        _timing(results, charts),
        _reproduce(results),
        _environment(results),
    )
    return page.page("fastrobust: a robust digit classifier", body)


def _head(results: Results) -> str:
    data, top, train_eps = results["data"], results["headline"], results["settings"]["train_eps"]
    return (
        "<h1>A digit classifier that withstands attack</h1>"
        f"<p>Two copies of the same small convolutional network were trained on {data['train']:,} "
        f"handwritten digits ({escape(data['title'])}): one in the usual way, one on the worst images that "
        f"an attacker can make by changing every pixel by at most eps = {train_eps:g}, where black is 0 and "
        "white is 1 (adversarial training, Madry et al. 2018). Then both were attacked on "
        f"{data['test']:,} digits that neither had seen. The attack is projected gradient descent with "
        f"{top['steps']} steps (PGD-{top['steps']}); it knows the network completely.</p>"
    )


def _headline(results: Results) -> str:
    top, floors, n = results["headline"], results["floors"], results["data"]["test"]
    tiles = []
    for name in plots.COLOURS:
        tiles.append(page.number(percent(top[name]["clean"]), f"{name} network, clean digits", name))
        what = f"{name} network, attacked at eps {top['eps']:g}"
        tiles.append(page.number(percent(top[name]["attacked"]), what, name))
    low, high = wilson(top["robust"]["attacked"], n)
    verdict = "Both floors hold" if floors["passed"] else "A floor was missed"
    verdict = verdict if floors["checked"] else "A quick run, too small for its floors"
    return (
        f'<div class="numbers">{"".join(tiles)}</div>'
        f'<p class="soft">{verdict}: the robust network must reach {percent(floors["clean"])} on clean '
        f"digits and {percent(floors['attacked'])} under PGD-{top['steps']} at eps {top['eps']:g}. On {n} "
        f"digits chance matters: the 95% interval of the last number is {percent(low)} to {percent(high)}. "
        "An attack gives an upper bound on robust accuracy; a stronger one can only lower it.</p>"
    )


def _curve(results: Results, charts: Mapping[str, str]) -> str:
    sweep = results["sweep"]
    points = zip(sweep["eps"], *(sweep[name] for name in plots.COLOURS), strict=True)
    rows = [(f"{e:g}", *map(percent, shares)) for e, *shares in points]
    caption = (
        "Share of the held-out digits still classified correctly. Bands: 95% intervals. Dotted: the eps of "
        "the floors. A digit broken at a smaller eps counts as broken at every larger one. Lines: the nearest "
        f"points found by {' or '.join(sweep['envelope']['attacks'])}, each at its own distance."
    )
    return (
        '<h2>Accuracy against the size of the attack</h2><div class="pair">'
        + page.figure(charts["robust_accuracy"], caption)
        + page.table(("eps", *plots.COLOURS), rows)
        + "</div>"
    )


def _suite(results: Results) -> str:
    suite = results["autoattack"]
    names = {
        "clean": "no attack",
        "apgd-ce": "APGD, cross-entropy",
        "apgd-t": "APGD, 9 targets",
        "fab-t": "FAB, 9 targets",
    }
    names["square"] = f"Square, {suite['queries']:,} queries"
    rows = [(what, *(percent(suite[name]["accuracy"][key]) for name in plots.COLOURS)) for key, what in names.items()]
    doubts = [doubt for name in plots.COLOURS for doubt in suite[name]["doubts"]]
    seconds = " and ".join(f"{suite[name]['seconds']:.1f} s ({name})" for name in plots.COLOURS)
    return (
        "<h2>AutoAttack</h2>"
        f"<p>The usual measure (Croce and Hein 2020), at eps {suite['eps']:g}: four attacks in a row, each on the "
        f"digits that stood those before; accuracy after each. It took {seconds}.</p>"
        + page.table(("after", *plots.COLOURS), rows)
        + "".join(f'<p class="wrong">{escape(doubt)}</p>' for doubt in doubts)
    )


def _threats(results: Results) -> str:
    rows = []
    for row in results["threats"]:
        for name in plots.COLOURS:
            found = row[name]
            broken = found["success_rate_of_correct"]
            size = found["mean_perturbation"]
            rows.append((
                row["threat"], name, percent(found["robust_accuracy"]), "" if broken is None else percent(broken),
                "" if size is None else f"{size:.3g}",
            ))  # fmt: skip
    return (
        "<h2>Threats that were not trained for</h2>"
        "<p>Robustness to one kind of change says little of another. APGD with 50 steps; broken: of the digits that "
        "the network gets right without attack; size: mean norm of what broke them.</p>"
        + page.table(("threat", "network", "robust accuracy", "broken", "size"), rows)
    )


def _diagnosis(results: Results) -> str:
    found = results["diagnosis"]
    rows = [
        ("look" if f["suspicious"] else "ok", f"{f['name']}: {f['saw']}{'. ' + f['advice'] if f['advice'] else ''}")
        for f in found["findings"]
    ]
    looks = sum(row[0] == "look" for row in rows)
    verdict = "None of the checks found one." if not looks else f"{looks} of {len(rows)} checks want a look."
    return (
        "<h2>Can the numbers be believed?</h2>"
        "<p>A network can also withstand because its attacker fails. Signs of that were looked for on "
        f"{found['points']} digits and the robust network. {verdict}</p>" + page.facts(rows)
    )


def _certified(results: Results, charts: Mapping[str, str]) -> str:
    found, trained = results["certified"], results["models"]["certified"]
    rows = [
        (f"{row['eps']:g}", percent(row["certified"]), percent(row["standing"]),
         ", ".join(f"{count} by {how}" for how, count in row["proven_by"].items()))
        for row in found["curve"]
    ]  # fmt: skip
    return (
        "<h2>What is proven</h2>"
        "<p>An attack that fails proves nothing. A third network was trained on boxes that hold every image within "
        f"eps = {found['eps']:g} of a digit (interval bound propagation, Gowal et al. 2019), in "
        f"{trained['train_seconds']:.0f} s. For the certified digits it is proven that no image in the box is "
        f"classified otherwise. PGD-{found['steps']} found no counterexample to what lies above; what lies between is "
        'not known.</p><div class="pair">'
        + page.figure(charts["certified_accuracy"], certify_report.MEANS[found["guarantee"]])
        + page.table(("eps", "certified", f"under PGD-{found['steps']}", "proven"), rows)
        + "</div>"
    )


def _smoothed(results: Results, charts: Mapping[str, str]) -> str:
    found, trained = results["smoothed"], results["models"]["smoothed"]
    settings, mean = found["settings"], found["votes"]["mean"]
    rows = [
        (f"{row['eps']:g}", percent(row["certified"]), " to ".join(map(percent, row["interval"])))
        for row in found["curve"]
    ]
    caption = (
        f"Bars: 95% intervals. {mean:,.0f} votes a digit for all radii together; the usual procedure takes 100,100. "
        f"A digit's statements are all true with a probability of at least {1 - settings['alpha']:g}."
    )
    return (
        "<h2>What votes prove</h2>"
        f"<p>A fourth network f was trained on digits with Gaussian noise of sigma = {found['sigma']:g}, in "
        f"{trained['train_seconds']:.0f} s. The smoothed classifier g says what f says most often under that noise: "
        "where one class has votes enough, no change within an L2 radius makes g say another (Cohen et al. 2019). "
        "Each digit gets as many votes as its radii take (exact sequential tests), at most "
        f'{settings["copies"]:,}. The statement is about g, never about f.</p><div class="pair">'
        + page.figure(charts["smoothed_accuracy"], caption)
        + page.table(("L2 radius", "certified accuracy of g", "95% interval"), rows)
        + "</div>"
    )


def _training(results: Results, charts: Mapping[str, str]) -> str:
    models, settings, points = results["models"], results["settings"], results["data"]["validation"]
    seconds = " and ".join(f"{models[name]['train_seconds']:.0f} s ({name})" for name in plots.COLOURS)
    accuracy = (
        f"Accuracy on {points} validation digits after each epoch; attacked: PGD-"
        f"{settings['validation_steps']} at eps {settings['train_eps']:g}."
    )
    loss = "Training loss. The robust network's is measured on attacked digits: the two are not comparable."
    return (
        f'<h2>Training</h2><p>Training took {seconds}.</p><div class="pair">'
        + page.figure(charts["training_accuracy"], accuracy)
        + page.figure(charts["training_loss"], loss)
        + "</div>"
    )


def _gallery(results: Results, examples: Sequence[Example]) -> str:
    top = results["headline"]
    return (
        "<h2>What the attack does</h2>"
        "<p>The first held-out digit of each class, not a selection. Each network is attacked on its own, "
        f"with PGD-{top['steps']} at eps {top['eps']:g}; then both are asked. In the perturbation, red "
        "pixels were made brighter and blue ones darker.</p>" + page.gallery(examples)
    )


def _timing(results: Results, charts: Mapping[str, str]) -> str:
    timing, processor = results["timing"], results["environment"]["processor"]
    ours = timing["contenders"][0]["median_s"]
    rows = []
    for row in timing["contenders"]:
        differ = "" if row["pixels_differing"] is None else f"{row['pixels_differing']:,}"
        median, spread = 1e3 * row["median_s"], (1e3 * min(row["seconds"]), 1e3 * max(row["seconds"]))
        times = (f"{median:.4g}", f"{spread[0]:.0f} - {spread[1]:.0f}", f"{row['median_s'] / ours:.2f}")
        rows.append((row["name"], *times, differ))
    share = timing["model_alone_s"] / ours
    missing = "".join(f'<p class="soft">{escape(text)}</p>' for text in timing["missing"])
    return (
        "<h2>Timing</h2>"
        f"<p>One PGD attack with {timing['steps']} steps on {timing['batch']} digits against the "
        f"{escape(timing['model'])} network. All contenders start at the same points and take turns, "
        f"{timing['rounds']} rounds; medians. Processor: {escape(processor)}; threads: {timing['threads']}.</p>"
        '<div class="pair">'
        + page.figure(charts["timing"], "The network alone: its forward passes and input gradients, no attack.")
        + "<div>"
        + page.table(("", "median ms", "all rounds", "/ ours", "pixels off"), rows)
        + "<p>Read it with care. The network's own forward and backward passes, run alone in plain PyTorch, "
        f"take {1e3 * timing['model_alone_s']:.4g} ms, which is {100 * share:.0f}% of our time"
        f"{' (noise puts it above 100%)' if share > 1 else ''}. An attack library can only shorten what comes "
        "on top, unless it runs the network itself differently.</p>"
        f'<p class="soft">Pixels off: of the {timing["pixels"]:,} final pixels, those more than '
        f"{timing['tolerance']:g} away from ours. The sign of a gradient next to zero can "
        "flip on rounding. The losses reached agree within "
        f"{100 * timing['loss_gap']:.2g}%.</p>{missing}</div></div>"
    )


def _reproduce(results: Results) -> str:
    commands = escape("\n".join(results["reproduce"]))
    return (
        f"<h2>How to reproduce</h2><pre><code>{commands}</code></pre>"
        "<p>The same seed on the same machine and thread count gives the same accuracies; elsewhere "
        "floating-point sums are ordered differently and single digits can fall the other way. All numbers "
        "of this page are in <code>results.json</code> beside it.</p>"
    )


def _environment(results: Results) -> str:
    rows = {
        **results["environment"],
        "seed": results["seed"],
        **results["settings"],
        "total_time": f"{results['seconds']['total']:.0f} s",
        "created": results["created"],
    }
    listed = [
        (key.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for key, value in rows.items()
    ]
    return "<h2>Environment and settings</h2>" + page.facts(listed)


def _save(figure: plots.Figure, path: Path) -> Path:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return path


def _replace(path: Path, text: str) -> Path:
    with replacing(path) as file:
        file.write(text.encode())
    return path
