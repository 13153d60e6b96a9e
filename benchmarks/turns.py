"""What the sections of `benchmarks.suite` share: the network and its points, runs that take turns, their ratio."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrobust import data, evaluation
from fastrobust.attacks._rows import size
from fastrobust.cli import model_file

EPS, BATCH = 0.2, 250
Lines = list[str]


class Problem:
    """The network, points that it may get wrong too, and the settings of a run."""

    def __init__(self, checkpoint: Path, points: int, seeds: int, queries: list[int]) -> None:
        files = checkpoint, checkpoint.with_name("standard.pt")
        if missing := [str(file) for file in files if not file.exists()]:
            sys.exit(f"{' and '.join(missing)} missing: `make demo` trains them")
        self.model, self.plain = (model_file.load(file)[0] for file in files)
        part = data.load("mnist5k").test
        self.x, self.y = part.images[:points], part.labels[:points]
        self.right = evaluation.predict(self.model, self.x) == self.y
        self.seeds, self.queries = seeds, queries

    def robust(self, x_adv: Tensor, norm: str = "Linf", eps: float = EPS) -> float:
        """Accuracy on clean and adversarial points, in percent; outside the ball (by over 1e-6) is right."""
        inside = size(x_adv.double() - self.x.double(), norm) <= eps * (1 + 1e-6) + 1e-7
        stands = (evaluation.predict(self.model, x_adv) == self.y) | ~inside
        return 100 * (stands & self.right).double().mean().item()

    def in_batches(self, attack: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What an attack makes of the points, some at a time."""
        parts = zip(self.x.split(BATCH), self.y.split(BATCH), strict=True)
        return torch.cat([attack(x, y) for x, y in parts])


def take_turns(rounds: int, *runs: Callable[[int], Any]) -> tuple[list[list[float]], list[list[Any]]]:
    """Times and outcomes of each run, called with the round's number; all take turns."""
    times: list[list[float]] = [[] for _ in runs]
    outcomes: list[list[Any]] = [[] for _ in runs]
    for number in range(rounds):
        for k, run in enumerate(runs):
            began = time.perf_counter()
            outcomes[k].append(run(number))
            times[k].append(time.perf_counter() - began)
            print(f"round {number + 1} of {rounds}, run {k + 1} of {len(runs)}: {times[k][-1]:.1f} s", file=sys.stderr)
    return times, outcomes


def faster(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds of how many times as long the other took."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def put(page: Path, name: str, lines: Lines) -> None:
    """Into a page of the documentation, between the marks of the section, where it has them."""
    text, begin, end = page.read_text(), f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    if begin in text:
        before, rest = text.split(begin)
        page.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1])
