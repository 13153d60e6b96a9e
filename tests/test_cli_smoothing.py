"""`fastrobust certify --method smoothing` as a user meets it: files, kill -9 and resuming, two processes, mistakes."""

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
from fastrobust import data
from fastrobust.cli import model_file
from fastrobust.cli.main import main
from fastrobust.smoothing import Gaussian, Smooth

pytestmark = pytest.mark.usefixtures("one_thread")
FILES = {"results.json", "table.md", "curve.png", "report.html", "certificates.tsv", "votes.ledger"}


def command(checkpoint: Path, out: Path, *more: str) -> list[str]:
    return ["certify", str(checkpoint), "--method", "smoothing", "--sigma", "0.25", "--out", str(out), *more]


def started(arguments: list[str], processes: int = 1) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(fastrobust.__file__).parents[1]), *sys.path])
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    return subprocess.Popen([sys.executable, "-m", *launcher, "fastrobust", *arguments], text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "certificates.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def facts(folder: Path) -> list[dict[str, Any]]:
    """What of the points does not depend on the machine's speed."""
    return [{k: v for k, v in point.items() if k != "seconds"} for point in results(folder)["points"]]


def test_radii_are_tested_and_what_is_printed_is_what_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = command(checkpoint, tmp_path, "--eps", "0.5", "0.1", "--copies", "5000", "--limit", "30", "--batch-size", "7")
    assert main(run) == 0
    printed, err = capsys.readouterr()
    assert not err
    assert {path.name for path in tmp_path.iterdir()} == FILES
    found = results(tmp_path)
    assert [row["eps"] for row in found["curve"]] == [0.5, 0.1]
    assert found["curve"][0]["certified"] < found["curve"][1]["certified"]
    assert f"{100 * found['curve'][1]['certified']:.1f}%" in printed
    assert "It is never said of f" in printed
    assert found["fresh"] is True
    assert found["acr"] is None
    assert found["votes"]["total"] == found["votes"]["drawn"] == sum(p["samples"] for p in found["points"])
    # As Cohen's analysis reads it: correct, and a radius at least as large.
    lines = table(tmp_path)
    assert list(lines[0]) == ["idx", "label", "predict", "radius", "correct", "time", "samples"]
    for row in found["curve"]:
        share = sum(line["correct"] == "1" and float(line["radius"]) >= row["eps"] for line in lines) / 30
        assert share == pytest.approx(row["certified"])
    # The library's certificates of the same points, keyed by their numbers in the data.
    network, *_ = model_file.load(checkpoint)
    test = data.digits().test
    rows = torch.tensor([int(line["idx"]) for line in lines])
    same = Smooth(network, 10, Gaussian(0.25), seed=found["seed"]).certify_at(
        test.images[rows], [0.1, 0.5], n_max=5000, index=rows
    )
    assert [float(line["radius"]) for line in lines] == same.radius.tolist()
    assert [int(line["samples"]) for line in lines] == same.samples.tolist()
    assert [int(line["label"]) for line in lines] == test.labels[rows].tolist()
    for line, radius, said in zip(lines, same.radius.tolist(), same.prediction.tolist(), strict=True):
        assert int(line["predict"]) == (said if radius > 0 else -1)
    # Again: nothing is drawn; with more points only theirs.
    before = facts(tmp_path)
    assert main(run) == 0
    assert facts(tmp_path) == before
    assert results(tmp_path)["votes"]["drawn"] == 0
    assert main([*run, "--limit", "33"]) == 0
    assert [p for p in facts(tmp_path) if p["idx"] in rows.tolist()] == before
    assert results(tmp_path)["votes"]["drawn"] == sum(p["samples"] for p in facts(tmp_path)) - sum(
        p["samples"] for p in before
    )
    # And from the start: other noise.
    assert main([*run, "--fresh"]) == 0
    assert results(tmp_path)["seed"] != found["seed"]
    assert results(tmp_path)["votes"]["drawn"] == results(tmp_path)["votes"]["total"]
    capsys.readouterr()


def test_a_fixed_number_of_copies(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(checkpoint, tmp_path, "--copies", "1000", "--limit", "20", "--seed", "7")) == 0
    printed = capsys.readouterr().out
    found = results(tmp_path)
    radii = [p["radius"] if p["correct"] else 0.0 for p in found["points"]]
    assert found["acr"] == {"value": pytest.approx(sum(radii) / 20), "n": 1000}
    assert "with n = 1,000" in printed
    assert "A replay of seed 7" in printed
    assert found["fresh"] is False
    assert all(p["samples"] == 1100 for p in found["points"])
    assert [row["eps"] for row in found["curve"]] == [0.125 * k for k in range(len(found["curve"]))]
    assert found["curve"][0]["certified"] > found["curve"][-1]["certified"] > 0
    assert max(radii) - found["curve"][-1]["eps"] < 0.125
    assert "votes" in found
    assert (tmp_path / "report.html").read_text().count("never said of f") == 1


def test_kill_9_in_the_middle_then_two_processes_end_with_the_same_counts(checkpoint: Path, tmp_path: Path) -> None:
    more = ["--seed", "7", "--limit", "20", "--batch-size", "4", "--copies", "40000"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(checkpoint, whole, *more)) == 0
    process, ledger = started(command(checkpoint, killed, *more)), killed / "votes.ledger"
    deadline = time.monotonic() + 60
    while not (ledger.exists() and ledger.read_bytes().count(b"\n") > 20):  # of 103: some chunks, and part of one
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    held = ledger.read_bytes().count(b"\n")
    assert not (killed / "results.json").exists()
    process = started(command(checkpoint, killed, *more), processes=2)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert printed.count("noisy copies a point") == 1  # one process says it
    assert facts(killed) == facts(whole)
    assert results(killed)["curve"] == results(whole)["curve"]
    assert results(killed)["votes"]["drawn"] < results(killed)["votes"]["total"] == 20 * 40_100
    assert ledger.read_bytes().count(b"\n") > held
    assert (killed / "votes.ledger.1").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "smoothing"], "--sigma: needed by --method smoothing"),
        (["--method", "smoothing", "--sigma", "0"], "Gaussian: sigma must be a finite number > 0, got 0"),
        (["--method", "smoothing", "--sigma", "1", "--norm", "Linf"], "--norm: gaussian noise certifies L2 balls, not"),
        (["--method", "smoothing", "--sigma", "1", "--alpha", "1"], "alpha must be between 0 and 1, got 1"),
        (["--method", "smoothing", "--sigma", "1", "--eps", "0"], "radii must be finite numbers > 0"),
        (["--method", "smoothing", "--sigma", "1", "--eps", "9"], "100000 samples cannot certify the radius 9.0"),
        (["--method", "smoothing", "--sigma", "1", "--noise", "pink"], "invalid choice"),
        (["--method", "smoothing", "--sigma", "1", "--copies", "0"], "must be a whole number >= 1"),
        (["--method", "smoothing", "--sigma", "1", "--seed", str(2**64)], "seed must be None or in 0 .. 2^64 - 1"),
        (["--method", "bounds"], "--eps: needed by --method bounds"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", str(checkpoint), "--limit", "5", "--out", str(tmp_path), *arguments]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1


def test_votes_of_another_run_are_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = command(checkpoint, tmp_path, "--copies", "100", "--limit", "3")
    assert main(run) == 0
    capsys.readouterr()
    for more, says in (
        (["--sigma", "0.5"], "holds votes of another noise: Gaussian(sigma=0.25), not Gaussian(sigma=0.5)"),
        (["--seed", "3"], "got 3"),
    ):
        assert main([*run, *more]) == 2
        err = capsys.readouterr().err.strip()
        assert says in err
        assert err.endswith("give another --out, or --fresh")
        assert main([*run, *more, "--fresh"]) == 0
        assert main([*run, "--fresh"]) == 0
        capsys.readouterr()
    ledger = tmp_path / "votes.ledger"
    ledger.write_bytes(b"")
    assert main(run) == 2
    assert "is not a ledger of votes" in capsys.readouterr().err
    ledger.unlink()
    ledger.mkdir()
    assert main(run) == 2
    assert "path must be a file, got the folder" in capsys.readouterr().err
