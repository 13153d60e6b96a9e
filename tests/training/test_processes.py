"""Real processes: killed with SIGKILL at random moments, and several that train as one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small import net, splits, store

import fastrobust
from fastrobust.training import TrainConfig, fit
from fastrobust.training.ranks import Ranks

WORKER = Path(__file__).with_name("worker.py")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(fastrobust.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}


def start(folder: Path, fields: dict[str, Any], processes: int = 1) -> subprocess.Popen[str]:
    store(folder.parent / "data.pt")
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, str(WORKER), str(folder), json.dumps(fields)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "threads left" not in errors
    return errors


def alone(folder: Path, fields: dict[str, Any]) -> None:
    """The same run in this process."""
    rest = dict(fields)
    fit(net(rest.pop("net", "plain")), splits(), TrainConfig(**rest), folder, progress=False)


def checkpoint(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return state


def test_kill_9_at_random_moments_then_the_same_command_ends_with_the_same_weights(tmp_path: Path) -> None:
    fields = {
        "net": "all",
        "epochs": 30,
        "batch_size": 32,
        "eps": 0.1,
        "steps": 3,
        "val_steps": 3,
        "lr": 0.05,
    }
    fields |= {"ema_decay": 0.9, "augment": "crop_flip", "checkpoint_every": 1}
    finish(start(tmp_path / "whole", fields))
    draw, kills = random.Random(), []
    for _ in range(4):
        process = start(tmp_path / "killed", fields)
        assert process.stdout is not None
        # A random step, and a random moment in it: in the attack, the update or while the checkpoint is
        # written.
        steps, pause = draw.randint(1, 35), draw.uniform(0, 0.03)
        for _ in range(steps):
            assert process.stdout.readline() == "step\n"
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills.append((steps, pause))
    finish(start(tmp_path / "killed", fields))
    expected, found = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "killed")
    assert found["step"] == expected["step"] == 150
    for part in ("model", "ema"):
        for name, value in expected[part].items():
            assert torch.equal(found[part][name], value), (name, kills)
    best = [torch.load(tmp_path / run / "best.pt", weights_only=True) for run in ("whole", "killed")]
    assert best[0]["epoch"] == best[1]["epoch"]
    assert all(torch.equal(value, best[1]["model"][name]) for name, value in best[0]["model"].items())


@pytest.mark.parametrize("objective", ["pgd", "trades"])
def test_two_processes_train_as_one(objective: str, tmp_path: Path) -> None:
    # 150 samples in batches of 31: odd shares, and a last batch of 26. In double precision, because the step
    # that begins TRADES follows the sign of a gradient that is almost zero, where float32 rounding decides.
    fields = {
        "net": "double",
        "objective": objective,
        "epochs": 3,
        "batch_size": 31,
        "eps": 0.1,
        "steps": 3,
        "val_steps": 3,
    }
    fields |= {"lr": 0.05, "augment": "crop_flip", "ema_decay": 0.5, "checkpoint_every": 2}
    alone(tmp_path / "one", fields)
    finish(start(tmp_path / "two", fields, processes=2))
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    for part in ("model", "ema"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-7, atol=1e-9)
    for row, expected in zip(two["history"], one["history"], strict=True):
        for name in ("loss", "accuracy", "clean", "robust"):
            assert row[name] == pytest.approx(expected[name], rel=1e-7)
    assert (tmp_path / "two" / "rank-0.txt").read_text() == (tmp_path / "two" / "rank-1.txt").read_text()


@pytest.mark.parametrize("objective", ["ibp", "crown_ibp", "sabr", "mtl_ibp"])
def test_two_processes_train_certified_networks_as_one(objective: str, tmp_path: Path) -> None:
    fields = {"objective": objective, "epochs": 2, "batch_size": 31, "eps": 0.02, "eps_warmup": 1, "steps": 2}
    fields |= {"val_steps": 2, "val_bounds": "ibp", "lr": 0.05, "loss_fusion": objective == "crown_ibp"}
    alone(tmp_path / "one", fields)
    finish(start(tmp_path / "two", fields, processes=2))
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    for name, value in one["model"].items():  # float32: PGD's signs may differ where a gradient is almost 0
        torch.testing.assert_close(two["model"][name], value, rtol=1e-2, atol=1e-4)
    for row, expected in zip(two["history"], one["history"], strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert row["certified"] == pytest.approx(expected["certified"], abs=0.021)  # one of 50 validation samples
    assert (tmp_path / "two" / "rank-0.txt").read_text() == (tmp_path / "two" / "rank-1.txt").read_text()


@pytest.mark.parametrize("objective", ["smooth_adv", "macer", "smoothmix", "stability"])
def test_two_processes_train_for_smoothing_as_one(objective: str, tmp_path: Path) -> None:
    fields = {"objective": objective, "net": "denoised" if objective == "stability" else "double", "sigma": 0.2}
    fields |= {"norm": "L2", "eps": 0.2, "steps": 2, "draws": 2, "epochs": 2, "batch_size": 31, "lr": 0.05}
    fields |= {"val_bounds": "smoothing", "val_samples": 300, "eps_warmup": 1, "compile": False}
    alone(tmp_path / "one", fields)
    finish(start(tmp_path / "two", fields, processes=2))
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-7, atol=1e-9)
    for row, expected in zip(two["history"], one["history"], strict=True):
        for name in ("loss", "accuracy", "clean", "certified", "noisy"):
            assert row[name] == pytest.approx(expected[name], rel=1e-7)


def test_batch_norm_on_two_cpu_processes_warns_and_keeps_the_ranks_equal(tmp_path: Path) -> None:
    fields = {
        "net": "norm",
        "epochs": 2,
        "batch_size": 30,
        "eps": 0.1,
        "steps": 2,
        "val_steps": 2,
        "lr": 0.05,
    }
    errors = finish(start(tmp_path / "run", fields, processes=2))
    assert "batch norm on the CPU uses each rank's own batch statistics" in errors
    assert (tmp_path / "run" / "rank-0.txt").read_text() == (tmp_path / "run" / "rank-1.txt").read_text()
    assert torch.isfinite(checkpoint(tmp_path / "run")["model"]["1.running_var"]).all()


def test_an_error_on_rank_0_ends_every_rank(tmp_path: Path) -> None:
    fields = {"epochs": 1, "batch_size": 30, "eps": 0.1, "steps": 1, "val_steps": 1}
    alone(tmp_path / "run", fields)
    process = start(tmp_path / "run", {**fields, "lr": 0.7}, processes=2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "lr is 0.1 there, 0.7 here" in errors


def test_alone_there_is_nothing_to_prepare() -> None:
    model = net("norm")
    assert Ranks(0, 1, torch.device("cpu")).prepare(model) is model
