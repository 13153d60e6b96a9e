"""The report asks the network for nothing, says what the results say, and draws axes that do not mislead."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastrobust.evaluation import plots, report, timing
from fastrobust.evaluation.examples import Example, collect, to_json
from fastrobust.evaluation.metrics import Attack
from fastrobust.evaluation.shares import wilson

VOID = {"meta", "link", "img", "br", "use", "path"}


def history(epochs: int) -> list[dict[str, Any]]:
    return [{"epoch": e, "loss": 2.0 / e, "clean": 0.9, "robust": 0.5 if e % 2 else None} for e in range(1, epochs + 1)]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    model = {"checkpoint": "x.pt", "parameters": 7, "config": {}, "train_seconds": 12.0, "best_epoch": 2}
    contenders = [("fastrobust", 0.40, None), ("eager loop", 0.50, 12), ("torchattacks", 0.55, 1234)]
    return {
        "schema": report.SCHEMA,
        "created": "2026-01-01T00:00:00+00:00",
        "seed": 3,
        "settings": {"train_eps": 0.2, "validation_steps": 10, "epochs": [4, 6]},
        "environment": {"processor": "Quick & <Dirty> 9000", "torch": "2.13.0"},
        "data": {"name": "toy", "title": "toys", "train": 4000, "validation": 500, "test": 500},
        "models": {name: {**model, "history": history(4)} for name in ("standard", "robust", "certified", "smoothed")},
        "sweep": {
            "eps": [0.0, 0.1, 0.2],
            "standard": [0.98, 0.31, 0.0],
            "robust": [0.957, 0.9, 0.791],
            "envelope": {
                "eps": [0.0, 0.05, 0.1, 0.15, 0.2],
                "attacks": ["PGD-20", "FMN-100"],
                "standard": [0.98, 0.6, 0.3, 0.1, 0.0],
                "robust": [0.957, 0.93, 0.9, 0.84, 0.78],
            },
        },
        "autoattack": {
            "eps": 0.2,
            "queries": 1000,
            **{
                name: {
                    "accuracy": {"clean": c, "apgd-ce": a, "apgd-t": a, "fab-t": a, "square": a - 0.01},
                    "seconds": 3.21,
                    "doubts": ["Square, which sees <no> gradients"] if name == "robust" else [],
                }
                for name, c, a in (("standard", 0.98, 0.01), ("robust", 0.957, 0.774))
            },
        },
        "threats": [
            {
                "threat": "L2 2",
                "standard": {"robust_accuracy": 0.0, "success_rate_of_correct": None, "mean_perturbation": None},
                "robust": {"robust_accuracy": 0.613, "success_rate_of_correct": 0.344, "mean_perturbation": 1.234},
            }
        ],
        "diagnosis": {
            "points": 100,
            "findings": [
                {"name": "steps", "suspicious": False, "saw": "steady at 77.4%", "advice": ""},
                {"name": "noise", "suspicious": True, "saw": "noise wins", "advice": "look again"},
            ],
        },
        "certified": {
            "eps": 0.1,
            "steps": 20,
            "guarantee": "float32",
            "settings": {"norm": "Linf"},
            "clean": 0.962,
            "curve": [
                {
                    "eps": e,
                    "certified": c,
                    "standing": s,
                    "interval": [*wilson(c, 500)],
                    "proven_by": {"ibp": round(500 * c)},
                }
                for e, c, s in ((0.0, 0.962, 0.962), (0.1, 0.884, 0.934))
            ],
        },
        "smoothed": {
            "sigma": 0.5,
            "settings": {"norm": "L2", "eps": [0.25, 0.5], "alpha": 0.001, "copies": 10_000},
            "clean": 0.97,
            "curve": [
                {"eps": e, "certified": c, "interval": [*wilson(c, 500)]} for e, c in ((0.25, 0.95), (0.5, 0.876))
            ],
            "votes": {"total": 617_000, "mean": 1234.0},
            "seed": 2**63,
            "fresh": True,
        },
        "headline": {
            "eps": 0.2,
            "steps": 20,
            "standard": {"clean": 0.98, "attacked": 0.0},
            "robust": {"clean": 0.957, "attacked": 0.791},
        },
        "floors": {"clean": 0.95, "attacked": 0.75, "checked": True, "passed": True},
        "timing": {
            "model": "robust",
            "steps": 20,
            "batch": 250,
            "rounds": 5,
            "threads": 2,
            "pixels": 196000,
            "tolerance": 1e-5,
            "loss_gap": 1e-4,
            "model_alone_s": 0.37,
            "missing": ["foo was not timed: no foo"],
            "contenders": [
                {"name": n, "median_s": t, "seconds": [t, t + 0.1, t - 0.05], "pixels_differing": d}
                for n, t, d in contenders
            ],
        },
        "reproduce": ["fastrobust demo --seed 3"],
        "seconds": {"total": 100.0},
    }


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    clean = np.linspace(0, 1, 36, dtype=np.float32).reshape(6, 6)
    moved = clean.copy()
    moved[0] += 0.2
    moved[5] -= 0.2
    right, wrong = {"standard": 4, "robust": 4}, {"standard": 9, "robust": 4}
    return [
        Example(
            4,
            clean,
            {"standard": moved, "robust": clean},
            {"clean": right, "standard": wrong, "robust": right},
        )
    ]


@pytest.fixture(scope="module")
def out(results: dict[str, Any], examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report.write(results, examples, folder)
    return folder


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_refers_to_nothing_outside_itself(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "://" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", text))
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)


def test_the_report_reads_on_a_phone_in_light_and_dark(out: Path) -> None:
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    style = "".join(page.text)
    assert "prefers-color-scheme: dark" in style
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == len(report.PLOTS)
    assert all("width" not in chart and chart["viewbox"] for chart in charts)  # they scale with the page


def test_ids_are_unique_so_that_charts_do_not_share_clips(out: Path) -> None:
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    text = (out / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', text)) <= set(ids)


def test_the_page_says_what_the_results_say(out: Path, results: dict[str, Any]) -> None:
    text = " ".join(Page((out / "report.html").read_text(encoding="utf-8")).text)
    for expected in (
        "95.7%",
        "79.1%",
        "98.0%",
        "PGD-20",
        "500",
        "fastrobust demo --seed 3",
        "Both floors hold",
    ):
        assert expected in text
    for expected in (
        "1,234",
        "1,234 votes a digit",
        "87.6%",
        "196,000",
        "median ms",
        "350 - 500",
        "1.38",
        "foo was not timed",
        "75.3% to 82.4%",
        "76.4%",
        "which sees <no> gradients",
        "61.3%",
        "34.4%",
        "1.23",
        "1 of 2 checks want a look",
        "noise: noise wins. look again",
    ):
        assert expected in text
    assert "Quick & <Dirty> 9000" in text  # escaped in the source, so it arrives as text


@pytest.mark.parametrize(
    ("checked", "passed", "words"),
    [(True, False, "A floor was missed"), (False, False, "A quick run"), (True, True, "Both floors hold")],
)
def test_a_missed_floor_is_not_hidden(
    results: dict[str, Any], examples: list[Example], checked: bool, passed: bool, words: str
) -> None:
    changed = copy.deepcopy(results)
    changed["floors"].update(checked=checked, passed=passed)
    assert words in report.html(changed, examples, dict.fromkeys(report.PLOTS, "<svg></svg>"))


def test_results_json_is_the_results(out: Path, results: dict[str, Any]) -> None:
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results


def test_plots_are_png_files(out: Path) -> None:
    for name in (*report.PLOTS, "gallery"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert not list(out.glob("*.part"))


def test_nan_is_refused_and_the_old_report_stays(
    results: dict[str, Any], examples: list[Example], tmp_path: Path
) -> None:
    report.write(results, examples, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("results.json", "report.html")}
    broken = copy.deepcopy(results)
    broken["timing"]["loss_gap"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        report.write(broken, examples, tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_accuracy_axes_show_the_whole_range_and_bars_start_at_zero(results: dict[str, Any]) -> None:
    for draw in (plots.robust_accuracy, plots.training_accuracy):
        low, high = draw(results).axes[0].get_ylim()
        assert low == 0
        assert 1 <= high < 1.1
    assert plots.training_loss(results).axes[0].get_ylim()[0] == 0
    axes = plots.timing(results).axes[0]
    assert axes.get_xlim()[0] == 0
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([400, 500, 550])


def test_unmeasured_epochs_are_left_out_of_the_curve(results: dict[str, Any]) -> None:
    lines = {line.get_label(): line for line in plots.training_accuracy(results).axes[0].lines}
    assert list(lines["robust, attacked"].get_xdata()) == [1, 3]
    assert list(lines["robust, clean"].get_xdata()) == [1, 2, 3, 4]


def test_wilson_interval_of_known_cases() -> None:
    # Reference values: Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_gallery_pictures_are_the_images_pixel_by_pixel(out: Path, examples: list[Example]) -> None:
    image = pytest.importorskip("matplotlib.image")
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    pictures = [
        image.imread(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2])))
        for tag, attributes in page.tags
        if tag == "img"
    ]
    clean, change, moved = pictures[:3]
    assert clean.shape[:2] == (6, 6)
    assert np.abs(clean[..., 0] - examples[0].clean).max() <= 1 / 255
    assert np.abs(moved[..., 0] - np.clip(examples[0].adversarial["standard"], 0, 1)).max() <= 1 / 255
    assert change[2, 2, :3].min() > 0.95  # nothing changed: white
    assert change[0, 0, 0] > change[0, 0, 2]
    assert change[5, 0, 0] < change[5, 0, 2]
    wrong = [tag for tag, attributes in page.tags if tag == "span" and attributes.get("class") == "wrong"]
    assert len(wrong) == 1


def test_examples_are_the_first_of_each_class_with_every_network_asked() -> None:
    x = torch.tensor([0.9, 0.8, 0.1, 0.2]).reshape(4, 1, 1, 1)
    y = torch.tensor([1, 1, 0, 0])

    class Above(nn.Module):
        def __init__(self, threshold: float) -> None:
            super().__init__()
            self.threshold = threshold

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = x.flatten(1) - self.threshold
            return torch.cat((-score, score), dim=1)

    networks = {"standard": Above(0.5), "robust": Above(0.85)}
    asked = []

    def attack_on(network: nn.Module) -> Attack:
        asked.append(network)
        return lambda x, y: (x + torch.where(y == 0, 0.6, -0.6).reshape(-1, 1, 1, 1)).clamp(0, 1)

    zero, one = collect(networks, x, y, attack_on)
    assert asked == list(networks.values())
    assert (zero.label, one.label) == (0, 1)
    assert zero.clean.shape == (1, 1)
    assert zero.clean[0, 0] == pytest.approx(0.1)
    assert zero.predictions["clean"] == {"standard": 0, "robust": 0}
    assert zero.predictions["standard"] == {"standard": 1, "robust": 0}  # at 0.7
    assert one.predictions["robust"] == {"standard": 0, "robust": 0}  # at 0.3
    assert to_json([zero])[0]["largest_change"] == pytest.approx({"standard": 0.6, "robust": 0.6})


def small_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 3)).train()


def test_timing_runs_the_same_attack_on_the_same_network_for_all() -> None:
    network, x = small_network(), torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    y = torch.arange(8) % 3
    result = timing.compare(network, x, y, eps=0.1, alpha=0.03, steps=5, rounds=3)
    names = [row["name"] for row in result["contenders"]]
    assert names[:3] == ["fastrobust", "fastrobust, not compiled", "eager loop"]
    assert ("torchattacks" in names) != bool(result["missing"])
    for row in result["contenders"]:
        assert len(row["seconds"]) == 3
        assert sorted(row["seconds"])[1] == row["median_s"] > 0
        assert row["pixels_differing"] in (None, 0)  # a fully connected network: no sign flips
    assert result["loss_gap"] < 1e-5
    assert result["pixels"] == 8 * 36
    assert network.training
    assert network[3].training
    assert all(parameter.grad is None for parameter in network.parameters())
    json.dumps(result, allow_nan=False)


def test_timing_shows_a_contender_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "eager_pgd", lambda model, x, y, eps, alpha, steps: x)
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    result = timing.compare(small_network(), torch.full((4, 1, 6, 6), 0.5), torch.zeros(4).long(), 0.1, 0.03, 5, 1)
    assert result["contenders"][2]["pixels_differing"] > 100
    assert result["loss_gap"] > 0.01
    assert len(result["missing"]) == 1
    assert result["missing"][0].startswith("torchattacks was not timed: ")
