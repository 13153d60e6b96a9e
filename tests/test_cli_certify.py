"""`fastrobust certify` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fastrobust as fr
from fastrobust import data, evaluation, training
from fastrobust.cli import model_file
from fastrobust.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")
RADII = ["0.005", "0.02", "0.1"]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_what_is_printed_is_what_is_written_and_holds(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["certify", str(checkpoint), "--limit", "60", "--cascade", "ibp", "crown", "--eps", *RADII]
    assert main([*command, "--out", str(tmp_path)]) == 0
    printed, err = capsys.readouterr()
    assert not err
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "table.md", "curve.png", "report.html"}
    found = results(tmp_path)
    curve = found["curve"]
    assert [row["eps"] for row in curve] == [0.0, 0.005, 0.02, 0.1]
    for key in ("certified", "standing"):
        shares = [row[key] for row in curve]
        assert shares == sorted(shares, reverse=True)
    assert all(row["certified"] <= row["standing"] for row in curve)
    assert curve[0]["standing"] == pytest.approx(found["clean"])
    assert curve[1]["certified"] > 0
    assert curve[-1]["certified"] < curve[1]["certified"]
    assert sum(curve[1]["proven_by"].values()) == round(60 * curve[1]["certified"])
    assert "float32 evaluation" in printed
    assert f"{100 * curve[2]['certified']:.1f}%" in printed
    # No attack takes what is certified.
    network, *_ = model_file.load(checkpoint)
    test = data.digits().test
    rows = data.split_rows(test.labels, (60,))[0]
    x, y = test.images[rows], test.labels[rows]
    for k, eps in enumerate((0.005, 0.02, 0.1), 1):
        certified = torch.tensor([p["certified"] is not None and p["certified"] >= eps for p in found["points"]])
        assert float(certified.double().mean()) == pytest.approx(curve[k]["certified"])
        x_adv = fr.attacks.APGD(network, "Linf", eps, steps=30)(x, y)
        assert not bool((certified & (evaluation.predict(network, x_adv) != y)).any())


def test_two_guarantees_and_no_attack(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["certify", str(checkpoint), "--limit", "20", "--eps", "0.01", "--cascade", "ibp", "--attack-steps", "0"]
    shares = []
    for sound in ("float32", "exact"):
        assert main([*command, "--sound", sound, "--out", str(tmp_path / sound)]) == 0
        shares.append(results(tmp_path / sound)["curve"][1]["certified"])
        assert results(tmp_path / sound)["guarantee"] == sound
    assert shares[0] <= shares[1]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eps", "-1"], "must be a number >= 0"),
        (["--eps", "0.1", "--cascade", "magic"], "invalid choice"),
        (["--eps", "0.1", "--box", "1", "0"], "--box: LO must be below HI"),
        (["--eps", "0.1", "--norm", "L0"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", str(checkpoint), *arguments]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_certified_training_from_start_to_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train = ["train", "--data", "digits", "--model", "mlp", "--width", "32", "--objective", "ibp", "--eps", "0.01"]
    train += ["--epochs", "4", "--eps-warmup", "2", "--eps-growth", "smoothed", "--lr", "0.1", "--regularizer", "0.5"]
    train += ["--init", "ibp", "--val-bounds", "ibp", "--val-steps", "3", "--out", str(tmp_path)]
    assert main(train) == 0
    printed = capsys.readouterr().out
    assert re.search(r"validation [0-9.]+% clean, [0-9.]+% under attack, [0-9.]+% certified", printed)
    assert f"next: fastrobust certify {tmp_path / 'model.pt'} --eps 0.01" in printed
    assert main(["certify", str(tmp_path / "model.pt"), "--eps", "0.01", "--cascade", "ibp"]) == 0
    curve = results(tmp_path / "model.pt.certify")["curve"]
    assert 0.3 < curve[1]["certified"] <= curve[1]["standing"] <= curve[0]["standing"]


def test_a_network_that_bounds_cannot_follow_is_refused_before_training(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = torch.sin(self.layer(x.flatten(1)))
            return out

    config = training.TrainConfig(objective="ibp", epochs=1)
    with pytest.raises(ValueError, match=r"fit: the model must be one that bounds can follow: .*sin"):
        training.fit(Odd(), data.digits(), config, tmp_path, progress=False)
