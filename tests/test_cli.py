"""The command line as a user meets it: exit codes, one-line errors, files that agree with the prints."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fastrobust
from fastrobust import data, evaluation
from fastrobust.cli import demo, model_file
from fastrobust.cli.main import main
from fastrobust.evaluation import report

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = ["train", "--data", "digits", "--model", "mlp", "--width", "32", "--eps", "0.1", "--steps", "3"]
TRAIN += ["--val-steps", "3", "--lr", "0.2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "run"
    assert main([*TRAIN, "--epochs", "3", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    return out


def environment() -> dict[str, str]:
    """For a process of its own: this package, and one thread as here, since sums depend on the thread count."""
    path = os.pathsep.join([str(Path(fastrobust.__file__).parents[1]), *sys.path])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["COMMAND"]),
        (["polish"], ["invalid choice: 'polish'"]),
        (["train"], ["--out"]),
        (["train", "--out", "x", "--epochs", "0"], ["--epochs", "whole number >= 1", "'0'"]),
        (["train", "--out", "x", "--eps", "-1"], ["--eps", "8/255", "'-1'"]),
        (["train", "--out", "x", "--eps", "8/0"], ["--eps", "'8/0'"]),
        (["train", "--out", "x", "--eps", "nan"], ["--eps", "'nan'"]),
        (["train", "--out", "x", "--seed", "-1"], ["--seed", "whole number >= 0"]),
        (["train", "--out", "x", "--model", "gpt"], ["--model", "small_cnn"]),
        (["train", "--out", "x", "--data", "cats"], ["mnist5k", "'cats'"]),
        (["train", "--out", "x", "--data", "idx:/nowhere"], ["/nowhere"]),
        (["train", "--out", "x", "--data", "digits", "--ema-decay", "2"], ["ema_decay", "got 2"]),
        (["train", "--out", "/dev/null/x", "--data", "digits"], ["Not a directory: /dev/null/x"]),
        (["demo", "--out", "/dev/null/x"], ["Not a directory: /dev/null/x"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] != "-" else None,
)
def test_a_mistake_is_one_line_and_exit_code_2(
    command: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("fastrobust")
    assert "error: " in err
    assert all(word in err for word in words), err
    assert not out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["--help"], ["demo", "--help"], ["train", "--help"], ["attack", "--help"]])
def test_help_names_every_option_and_its_default(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "usage: fastrobust" in text
    assert "None" not in text
    assert "False" not in text
    if command[0] == "train":
        assert "8/255" in text
        assert "--checkpoint-every" in text
        assert "torchrun" in text


def test_python_m_fastrobust_is_the_command() -> None:
    command = [sys.executable, "-m", "fastrobust", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == f"fastrobust {fastrobust.__version__}\n"


def test_an_interrupted_command_says_so_and_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastrobust.cli.train.fit", interrupt)
    assert main([*TRAIN, "--out", str(tmp_path)]) == 130
    assert "continues" in capsys.readouterr().err


def test_train_leaves_a_model_that_attack_can_read(trained: Path) -> None:
    model, architecture, content = model_file.load(trained / "model.pt")
    assert (architecture.name, architecture.width, architecture.in_shape) == ("mlp", 32, (1, 8, 8))
    assert content["data"] == "digits"
    assert not model.training
    val = data.digits().val
    assert evaluation.accuracy(model, val.images, val.labels) == pytest.approx(content["clean"])


def test_rounds_of_training_and_verifying_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--data", "digits", "--model", "mlp", "--width", "16", "--objective", "ibp", "--eps", "0.02"]
    command += ["--epochs", "2", "--val-steps", "3", "--val-bounds", "ibp", "--verify-rounds", "2"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    rounds = json.loads((tmp_path / "rounds.json").read_text())
    assert found["rounds"] == rounds["rounds"]
    assert found["settings"]["objective"] == rounds["config"]["objective"] == "ibp"
    page, table = (tmp_path / "report.html").read_text(), (tmp_path / "table.md").read_text()
    for row in found["rounds"]:
        assert f"round {row['number']}: {row['certified']:.1%} certified" in out
        assert f"{row['certified']:.1%}" in page
        assert f"| {row['number']} | {row['epochs']} | {row['certified']:.1%} |" in table
    for line in [f"round {found['best']} is kept, since {found['why']}", *(a["change"] for a in found["advice"])]:
        assert all(line in text for text in (out, page, table))
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_a_finished_training_is_not_repeated(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "log.csv").read_bytes(), weights(trained / "model.pt")
    assert main([*TRAIN, "--epochs", "3", "--out", str(trained)]) == 0
    assert (trained / "log.csv").read_bytes() == before[0]  # its seconds would differ
    assert same(weights(trained / "model.pt"), before[1])


def test_a_folder_with_another_run_is_left_alone_unless_fresh(
    trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = weights(trained / "model.pt")
    assert main([*TRAIN, "--epochs", "1", "--out", str(trained)]) == 2
    err = capsys.readouterr().err
    assert "epochs" in err
    assert "--fresh" in err
    assert "resume=" not in err
    assert same(weights(trained / "model.pt"), before)

    folder = tmp_path / "run"
    for fresh in ([], ["--fresh"]):
        assert main([*TRAIN, "--epochs", "1", "--seed", str(len(fresh)), "--out", str(folder), *fresh]) == 0
    assert len(list(csv.DictReader((folder / "log.csv").open()))) == 1


def test_a_diverging_training_ends_with_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*TRAIN, "--epochs", "2", "--lr", "1e30", "--schedule", "constant", "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "loss" in err
    assert "Lower lr" in err
    assert "Traceback" not in err
    assert not (tmp_path / "model.pt").exists()


def test_the_same_command_after_kill_9_ends_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [*TRAIN, "--epochs", "3", "--out", str(folder), "--checkpoint-every", "1"]
    process = subprocess.Popen([sys.executable, "-m", "fastrobust", *command], env=environment())
    try:
        deadline = time.monotonic() + 120
        while not (folder / "log.csv").exists():  # one epoch is done, two are not
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (folder / "model.pt").exists()
    assert main(command) == 0
    assert same(weights(folder / "model.pt"), weights(trained / "model.pt"))


def test_demo_writes_the_whole_report(quick: Path) -> None:
    networks = {f"{name}.pt" for name in ("standard", "robust", "certified", "smoothed")}
    pictures = {"gallery.png", *(f"{name}.png" for name in report.PLOTS)}
    assert {path.name for path in quick.iterdir()} == {"report.html", "results.json", "training"} | networks | pictures
    results = json.loads((quick / "results.json").read_text())
    assert results["schema"] == report.SCHEMA
    assert set(results) == {
        *(
            "schema",
            "created",
            "seed",
            "settings",
            "environment",
            "data",
            "models",
            "sweep",
            "autoattack",
            "threats",
            "diagnosis",
            "certified",
            "smoothed",
            "headline",
            "floors",
        ),
        *("examples", "timing", "reproduce", "seconds"),
    }
    assert results["floors"] == {**demo.FLOORS, "checked": False, "passed": results["floors"]["passed"]}
    assert {"fastrobust", "python", "torch", "numpy", "processor", "cores", "threads", "kernels"} <= set(
        results["environment"]
    )
    for name in ("standard", "robust"):
        curve = results["sweep"][name]
        assert len(curve) == len(results["sweep"]["eps"])
        assert curve == sorted(curve, reverse=True)
        assert results["headline"][name] == {
            "clean": curve[0],
            "attacked": curve[results["sweep"]["eps"].index(0.2)],
        }
        assert len(results["models"][name]["history"]) == results["models"][name]["config"]["epochs"]
        finer = results["sweep"]["envelope"]
        assert finer[name] == sorted(finer[name], reverse=True)
        assert all(finer[name][finer["eps"].index(e)] <= share for e, share in zip((0.0, 0.1, 0.2), curve, strict=True))
        left = results["autoattack"][name]["accuracy"]
        assert left["clean"] == curve[0]
        assert left["square"] <= left["apgd-ce"] <= curve[0]
    proof = results["certified"]["curve"]
    assert [row["eps"] for row in proof] == list(demo.QUICK.certified)
    assert all(row["certified"] <= row["standing"] <= results["certified"]["clean"] for row in proof)
    assert proof[0]["certified"] > 0
    voted = results["smoothed"]
    assert [row["eps"] for row in voted["curve"]] == list(demo.QUICK.smoothed)
    assert voted["curve"][0]["certified"] >= voted["curve"][1]["certified"]
    assert 0 < voted["votes"]["mean"] <= 100 + demo.QUICK.copies
    assert voted["fresh"] is True
    assert len(results["threats"]) == 4
    assert len(results["diagnosis"]["findings"]) == 11
    assert [example["label"] for example in results["examples"]] == list(range(10))
    assert all(change <= 0.2 + 1e-6 for example in results["examples"] for change in example["largest_change"].values())
    assert results["timing"]["contenders"][0]["name"] == "fastrobust"


def test_demo_networks_score_what_the_report_says(quick: Path) -> None:
    sweep = json.loads((quick / "results.json").read_text())["sweep"]
    test = data.split(data.mnist5k().test, (demo.QUICK.sizes[2],))[0]
    for name in ("standard", "robust"):
        model, *_ = model_file.load(quick / f"{name}.pt")
        assert evaluation.accuracy(model, test.images, test.labels) == pytest.approx(sweep[name][0])


def test_demo_repeats_no_finished_training_and_starts_over_for_other_settings(
    quick: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = json.loads((quick / "results.json").read_text())
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(demo.timing, "compare", lambda *args: results["timing"])
    monkeypatch.setattr(report, "write", lambda results, *rest: written.append(results))
    logs = [quick / "training" / name / "log.csv" for name in ("standard", "robust", "certified", "smoothed")]
    before = [log.read_bytes() for log in logs]  # with the seconds of every epoch
    assert main(["demo", "--quick", "--out", str(quick)]) == 0
    assert [log.read_bytes() for log in logs] == before
    assert "starting over" not in capsys.readouterr().out
    assert main(["demo", "--quick", "--epochs", "1", "--out", str(quick)]) == 0
    assert capsys.readouterr().out.count("starting over") == 4
    assert [len(log.read_text().splitlines()) for log in logs] == [2, 2, 2, 2]
    assert written[0]["sweep"] == results["sweep"] != written[1]["sweep"]


@pytest.mark.parametrize(("clean", "attacked", "code"), [(0.95, 0.75, 0), (0.949, 0.9, 1), (0.99, 0.749, 1)])
def test_demo_fails_when_a_floor_is_missed(
    clean: float, attacked: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.judge({"clean": clean, "attacked": attacked}, quick=False) == code
    out, err = capsys.readouterr()
    assert ("a floor was missed" in err) == bool(code)
    assert "95% clean and 75% under PGD-20 at eps 0.2" in (err if code else out)


def test_demo_without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    assert "matplotlib: pip install 'fastrobust[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
