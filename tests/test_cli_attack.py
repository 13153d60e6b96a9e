"""`fastrobust attack` as a user meets it: what it prints and writes, resumes, and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastrobust as fr
from fastrobust import data, evaluation
from fastrobust.cli import model_file
from fastrobust.cli.main import main
from fastrobust.evaluation import attack_report

pytestmark = pytest.mark.usefixtures("one_thread")
FILES = {"results.json", "table.md", "curve.png", "report.html"}


@pytest.fixture(scope="module")
def program(checkpoint: Path) -> Path:
    network, *_ = model_file.load(checkpoint)
    exported = torch.export.export(network, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(exported, checkpoint.with_name("net.pt2"))
    return checkpoint.with_name("net.pt2")


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def accuracies(folder: Path) -> list[float]:
    return [row["accuracy"] for row in results(folder)["curve"]]


def test_what_is_printed_is_what_is_written(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "results"
    command = ["attack", str(checkpoint), "--eps", "0.1", "0.05", "1/10", "--steps", "5"]
    assert main([*command, "--out", str(out), "--save-points"]) == 0
    printed, err = capsys.readouterr()
    assert not err
    assert {path.name for path in out.iterdir()} == FILES | {"points.npz"}
    found = results(out)
    assert found["schema"] == attack_report.SCHEMA
    assert [row["eps"] for row in found["curve"]] == [0.0, 0.05, 0.1]
    network, *_ = model_file.load(checkpoint)
    test = data.digits().test
    assert found["samples"] == len(test)
    assert accuracies(out)[0] == pytest.approx(evaluation.accuracy(network, test.images, test.labels))
    assert accuracies(out) == sorted(accuracies(out), reverse=True)
    assert accuracies(out)[-1] < accuracies(out)[0]
    table = (out / "table.md").read_text()
    for row in found["curve"]:
        low, high = row["interval"]
        assert low < row["accuracy"] < high
        assert row["correct"] / len(test) == pytest.approx(row["accuracy"])
        for text in (printed, table):
            assert f"{100 * row['accuracy']:.1f}%" in text
            assert f"{100 * low:.1f}% to {100 * high:.1f}%" in text
    assert found["environment"]["torch"] == torch.__version__
    assert found["settings"] == {
        "attack": "pgd", "norm": "Linf", "box": [0.0, 1.0], "seed": 0, "steps": 5, "alpha": None, "restarts": 1,
        "loss": "ce", "minimum_norm": False, "split": "test", "limit": None, "batch_size": 250, "device": "cpu",
    }  # fmt: skip
    assert main([*command, "--out", str(tmp_path / "again"), "--batch-size", "7"]) == 0
    assert results(tmp_path / "again")["broken_at"] == found["broken_at"]


def test_the_points_are_where_the_table_says(checkpoint: Path, tmp_path: Path) -> None:
    network, *_ = model_file.load(checkpoint)
    eps = [0.05, 0.1, 0.2]
    for attack in (["pgd"], ["square", "--queries", "200"], ["fmn"]):
        command = ["attack", str(checkpoint), "--limit", "40", "--save-points", "--quiet", "--attack", *attack]
        assert main([*command, "--eps", *map(str, eps), "--out", str(tmp_path)]) == 0
        points = {key: torch.from_numpy(value) for key, value in np.load(tmp_path / "points.npz").items()}
        broken_at, found = points["broken_at"], results(tmp_path)
        assert attack_report.finite(broken_at) == found["broken_at"]
        for row in found["curve"]:
            assert row["correct"] == int((broken_at > row["eps"]).sum())
        wrong = evaluation.predict(network, points["x_adv"]) != points["y"]
        assert torch.equal(wrong, broken_at < torch.inf)
        size = (points["x_adv"].double() - points["x"].double()).flatten(1).abs().amax(1)
        assert bool((size <= broken_at).all())
        moved = (broken_at > 0) & (broken_at < torch.inf)
        assert torch.equal(size > 0, moved)
        if attack == ["fmn"]:
            torch.testing.assert_close(size[moved], broken_at[moved], rtol=0, atol=0)
            assert found["median_norm"] == pytest.approx(float(broken_at[broken_at > 0].quantile(0.5)))


@pytest.fixture
def ensemble(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An AutoAttack of two attacks, since what is tested here is not how strong it is."""
    names = ["apgd-ce", "square"]
    monkeypatch.setitem(fr.attacks.autoattack.VERSIONS, "standard", tuple(names))
    return ["--attack", "autoattack", "--queries", "20", "--limit", "30", "--quiet"]


def test_autoattack_finds_no_less_than_one_step(checkpoint: Path, ensemble: list[str], tmp_path: Path) -> None:
    command, more = ["attack", str(checkpoint), "--eps", "0.05", "0.1"], ["--limit", "30", "--steps", "1"]
    assert main([*command, *ensemble, "--out", str(tmp_path / "many")]) == 0
    assert main([*command, *more, "--out", str(tmp_path / "one")]) == 0
    many, one = accuracies(tmp_path / "many"), accuracies(tmp_path / "one")
    assert many[0] == one[0]
    assert many[1] <= one[1]
    assert many[2] < one[2]


def test_autoattack_at_several_radii_is_autoattack_at_each(
    checkpoint: Path, ensemble: list[str], tmp_path: Path
) -> None:
    command = ["attack", str(checkpoint), *ensemble]
    assert main([*command, "--eps", "0.02", "0.1", "--out", str(tmp_path / "both")]) == 0
    assert main([*command, "--eps", "0.02", "--out", str(tmp_path / "one")]) == 0
    assert accuracies(tmp_path / "one") == accuracies(tmp_path / "both")[:2]


def test_autoattack_continues_from_its_state(
    checkpoint: Path, ensemble: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    state, calls = tmp_path / "state", 0
    command = ["attack", str(checkpoint), *ensemble, "--eps", "0.05"]
    run = fr.attacks.Square.run

    def interrupt(*args: Any, **keywords: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(fr.attacks.Square, "run", interrupt)
    assert main([*command, "--state", str(state), "--out", str(tmp_path / "a")]) == 130
    assert f"continues from {state}" in capsys.readouterr().err
    assert not (tmp_path / "a" / "results.json").exists()
    monkeypatch.setattr(fr.attacks.Square, "run", run)
    apgd = fr.attacks.APGD.run

    def count(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        return apgd(*args, **keywords)

    monkeypatch.setattr(fr.attacks.APGD, "run", count)
    assert main([*command, "--state", str(state), "--out", str(tmp_path / "a")]) == 0
    assert calls == 0
    assert main([*command, "--out", str(tmp_path / "b")]) == 0
    assert calls > 0
    assert results(tmp_path / "a")["broken_at"] == results(tmp_path / "b")["broken_at"]
    assert list(results(tmp_path / "a")["after"]) == ["clean", "apgd-ce", "square"]
    assert main([*command, "--seed", "1", "--state", str(state)]) == 2
    assert "--state" in capsys.readouterr().err


def test_an_interrupted_attack_says_that_nothing_was_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fr.attacks.PGD, "run", interrupt)
    assert main(["attack", str(checkpoint), "--eps", "0.1", "--out", str(tmp_path)]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_program_gives_what_its_checkpoint_gives(checkpoint: Path, program: Path, tmp_path: Path) -> None:
    command = ["--data", "digits", "--limit", "60", "--eps", "0.05", "--steps", "5"]
    for file, name in ((checkpoint, "a"), (program, "b")):
        assert main(["attack", str(file), *command, "--out", str(tmp_path / name)]) == 0
    assert results(tmp_path / "a")["broken_at"] == results(tmp_path / "b")["broken_at"]
    kinds = [results(tmp_path / name)["model"]["kind"] for name in ("a", "b")]
    assert kinds == ["checkpoint", "torch.export"]


def test_points_of_an_archive_in_a_box_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).eval()
    program = torch.export.export(network, (torch.zeros(4, 6),))
    torch.export.save(program, tmp_path / "net.pt2")
    x = (torch.rand(10, 6, generator=torch.Generator().manual_seed(0)) * 4 - 2).numpy()
    np.savez(tmp_path / "p.npz", x=x, y=np.arange(10, dtype=np.int32) % 3)
    command = ["attack", str(tmp_path / "net.pt2"), "--data", f"npz:{tmp_path / 'p.npz'}", "--norm", "L2"]
    command += ["--eps", "1", "--save-points"]
    assert main([*command, "--box", "-2", "2"]) == 0
    assert "4 samples at a time" in capsys.readouterr().err
    points = np.load(tmp_path / "net.pt2.attack" / "points.npz")
    assert np.abs(points["x_adv"]).max() <= 2
    assert points["x_adv"].min() < 0
    assert main(command) == 2
    assert "--box" in capsys.readouterr().err


def test_a_balanced_part_beside_the_model(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", str(checkpoint), "--eps", "0.1", "--steps", "1", "--limit", "20"]) == 0
    assert "on 20 samples of digits (test)" in capsys.readouterr().out
    assert {path.name for path in checkpoint.with_name("model.pt.attack").iterdir()} == FILES


def test_the_report_stands_alone(checkpoint: Path, tmp_path: Path) -> None:
    for attack in ("pgd", "deepfool"):
        command = ["attack", str(checkpoint), "--limit", "20", "--eps", "0.1", "--attack", attack]
        assert main([*command, "--out", str(tmp_path)]) == 0
        page = (tmp_path / "report.html").read_text()
        assert "<svg" in page
        assert "http" not in page.replace("http://www.w3.org", "")
        assert str(checkpoint) in page
        assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_the_numbers_are_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["attack", str(checkpoint), "--limit", "20", "--eps", "0.1", "--out", str(tmp_path)]) == 0
    assert "matplotlib: pip install 'fastrobust[demo]'" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "table.md"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["--eps", "0.1"], ["MODEL"]),
        (["MODEL"], ["--eps"]),
        (["/nowhere.pt", "--eps", "0.1"], ["no such model file: /nowhere.pt"]),
        ([__file__, "--eps", "0.1"], ["test_cli_attack.py", "not a network"]),
        (["MODEL", "--eps", "0.1", "--data", "npz:POINTS"], ["(1, 8, 8)", "(3,)"]),
        (["MODEL", "--eps", "0.1", "--data", "npz:/nowhere"], ["/nowhere"]),
        (["PROGRAM", "--eps", "0.1"], ["--data", "torch.export"]),
        (["MODEL", "--eps", "0.1", "--box", "1", "0"], ["--box", "LO must be below HI"]),
        (["MODEL", "--eps", "0.1", "--box", "0", "inf"], ["--box", "'inf'"]),
        (["MODEL", "--eps", "0.1", "--box", "0.5", "1"], ["--box", "[0, 1]"]),
        (["MODEL", "--eps", "0.1", "--attack", "magic"], ["--attack", "autoattack"]),
        (["MODEL", "--eps", "0.1", "--attack", "apgd", "--alpha", "1"], ["--alpha", "apgd", "--steps"]),
        (["MODEL", "--eps", "0.1", "--attack", "fmn", "--restarts", "2"], ["--restarts", "fmn", "--steps"]),
        (["MODEL", "--eps", "0.1", "--attack", "ddn"], ["--norm", "L2", "got Linf"]),
        (["MODEL", "--eps", "0.1", "--norm", "L0"], ["--norm", "pgd"]),
        (["MODEL", "--eps", "0.1", "--state", "s"], ["--state", "autoattack"]),
        (["MODEL", "--eps", "0.1", "0.2", "--attack", "autoattack", "--state", "s"], ["--state", "single --eps"]),
        (["MODEL", "--eps", "0.1", "--device", "tpu"], ["--device", "cuda"]),
        (["MODEL", "--eps", "0.1", "--out", "/dev/null/x"], ["Not a directory: /dev/null/x"]),
    ],
    ids=lambda value: " ".join(value).replace(__file__, "py") if value and value[0] != "-" else None,
)
def test_a_mistake_is_one_line_and_exit_code_2(
    command: list[str], words: list[str], checkpoint: Path, program: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    points = checkpoint.with_name("points.npz")
    np.savez(points, x=np.zeros((2, 3), np.float32), y=np.zeros(2, np.int64))
    files = {"MODEL": str(checkpoint), "PROGRAM": str(program), "npz:POINTS": f"npz:{points}"}
    assert main(["attack", *(files.get(word, word) for word in command)]) == 2
    out, err = capsys.readouterr()
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("fastrobust attack: error: ")
    assert all(word in err for word in words), err
    assert not out
    assert not list(tmp_path.iterdir())


def test_npz_files_are_checked(tmp_path: Path) -> None:
    x, y = np.zeros((3, 4), np.float32), np.array([0, 1, 2])
    cases = {
        "missing": {"x": x}, "whole": {"x": x.astype(np.int64), "y": y}, "shape": {"x": x, "y": y[:2]},
        "labels": {"x": x, "y": y * 0.5}, "negative": {"x": x, "y": y - 1}, "nan": {"x": x + np.nan, "y": y},
        "empty": {"x": x[:0], "y": y[:0]}, "objects": {"x": np.array([[object()]]), "y": y[:1]},
    }  # fmt: skip
    for name, arrays in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match="read_npz"):
            data.read_npz(tmp_path / f"{name}.npz")
    (tmp_path / "no.npz").write_text("hello")
    with pytest.raises(ValueError, match="read_npz"):
        data.read_npz(tmp_path / "no.npz")
    np.savez(tmp_path / "good.npz", x=np.tile(x.astype(np.float64), (10, 1)), y=np.arange(30, dtype=np.uint8) % 3)
    parts = data.load(f"npz:{tmp_path / 'good.npz'}")
    assert (len(parts.train), len(parts.val), len(parts.test), parts.train.classes) == (24, 3, 3, 3)
