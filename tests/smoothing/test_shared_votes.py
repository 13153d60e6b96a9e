"""Votes of several processes, and of processes that are killed: counts and certificates of one that is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import votes_worker as worker
from torch import Tensor

import fastrobust
from fastrobust.smoothing import Gaussian, Ledger, Smooth
from fastrobust.smoothing.ledger import Recorded
from fastrobust.smoothing.sharding import shares

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(fastrobust.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}


def start(folder: Path, *arguments: str, processes: int = 1) -> subprocess.Popen[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    folder.mkdir(exist_ok=True)
    command = [*launcher, worker.__file__, str(folder), *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def assert_same(folder: Path, expected: dict[str, Tensor], rank: int = 0) -> None:
    found = torch.load(folder / f"rank-{rank}.pt", weights_only=True)
    for name, value in expected.items():
        assert torch.equal(found[name], value), (rank, name)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_are_all_copies_once_and_even(world: int) -> None:
    for images in (0, 1, 2, 5):
        for samples in (1, 2, 3, 10):
            seen, each = torch.zeros(images, samples, dtype=torch.int64), []
            for rank in range(world):
                before = int(seen.sum())
                for rows, begin, count in shares(images, samples, rank, world):
                    assert count > 0
                    seen[rows, begin : begin + count] += 1
                each.append(int(seen.sum()) - before)
            assert (seen == 1).all()
            assert max(each) - min(each) <= 1


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    """Under one seed, drawn by the first of them; and one process goes on with what two wrote."""
    finish(start(tmp_path / "run", processes=2))
    kept = Smooth(worker.net(), 3, Gaussian(0.5), ledger=tmp_path / "run" / "votes")
    assert isinstance(kept.sampler, Recorded)
    alone = worker.certify(Smooth(worker.net(), 3, Gaussian(0.5), seed=kept.seed))
    for rank in (0, 1):
        assert_same(tmp_path / "run", alone, rank)
        said = (tmp_path / "run" / f"rank-{rank}.txt").read_text()
        assert said == "Smooth: all processes must make the same calls, got different samples, ids or ranges"
    assert kept.fresh
    assert_same(tmp_path / "run", worker.certify(kept))
    assert kept.sampler.drawn < 2000  # of 120,000: ranges were cut elsewhere


def test_kill_9_then_the_same_command_ends_with_the_same_counts(tmp_path: Path) -> None:
    expected = worker.certify(Smooth(worker.net(), 3, Gaussian(0.5), seed=8))
    folder, draw, drawn = tmp_path / "run", random.Random(), 0
    for _ in range(2):
        process = start(folder, "8")
        assert process.stdout is not None
        for _ in range(draw.randint(1, 40)):
            assert process.stdout.readline() == "votes\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before, drawn = drawn, (folder / "votes").read_bytes().count(b"\n")
        assert drawn >= before  # nothing that was written is lost
    finish(start(folder, "8"))
    assert_same(folder, expected)
    assert (folder / "votes").read_bytes().count(b"\n") > drawn


def test_a_ledger_among_those_of_another_is_refused(tmp_path: Path) -> None:
    sampler = Smooth(worker.net(), 3, Gaussian(0.5)).bare
    Ledger(tmp_path / "votes").over(sampler, 1)
    Ledger(tmp_path / "other").over(sampler, 2)
    (tmp_path / "other").rename(tmp_path / "votes.1")
    with pytest.raises(ValueError, match=r"votes\.1 belongs to another ledger than its neighbours; move it away"):
        Ledger(tmp_path / "votes").over(sampler, 1)
