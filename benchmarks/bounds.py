"""``python -m benchmarks.bounds [--rounds N] [--page]``: bounds beside auto_LiRPA, in one process, taking turns.

auto_LiRPA (github.com/Verified-Intelligence/auto_LiRPA) must import. Weights are torch's own, batch-norm statistics
drawn at random, the sets boxes around random images; alpha-CROWN is left out of the two largest networks. For each
network and method: the medians of the times of a call after the first, how the mean widths of the outputs' bounds
compare, and the largest difference. Ours are measured without rounding terms (`sound=False`), as auto_LiRPA has none,
and sound. A second table has IBP of many samples beside a forward pass of the engine. Results go to
benchmarks/results/bounds.json, with --page into docs/bounds/benchmarks.md. ``--large`` takes one image through sound
CROWN on a `cnn7` of width 64 instead: seconds and peak memory (Linux only).
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastrobust as fr
from benchmarks.peers import peer
from benchmarks.turns import faster, put, take_turns
from fastrobust.evaluation.environment import environment

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "bounds.json", HERE.parent / "docs" / "bounds" / "benchmarks.md"
METHODS: dict[str, tuple[Callable[..., fr.bounds.Bounds], str]] = {
    "IBP": (fr.bounds.ibp, "IBP"),
    "CROWN-IBP": (fr.bounds.crown_ibp, "CROWN-IBP"),
    "CROWN": (fr.bounds.crown, "CROWN"),
    "alpha-CROWN": (fr.bounds.alpha_crown, "alpha-CROWN"),
}
STEPS, RATE = 20, 0.1  # of alpha-CROWN, on both sides
MANY = 256
EVALUATED = ("MLP 784-256-256-10", "small_cnn 28x28, width 16", "cnn7 32x32, width 16")


def chain(activation: type[nn.Module], *sizes: int) -> nn.Module:
    """Flatten, then Linear layers with an activation between."""
    parts: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), activation()]
    return nn.Sequential(*parts[:-1])


class Residual(nn.Module):
    """Two convolutions, the second with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        out: Tensor = self.last(torch.relu(self.second(h) + h).flatten(1))
        return out


# name -> (network, a sample's shape, batch, eps)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, float]] = {
    "MLP 784-256-256-10": (lambda: chain(nn.ReLU, 784, 256, 256, 10), (1, 28, 28), 16, 0.02),
    "CNN 12x12, width 4": (lambda: fr.models.small_cnn(1, 4, 12, 10), (1, 12, 12), 8, 0.05),
    "residual, 12x12": (Residual, (2, 12, 12), 8, 0.05),
    "average pool": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 36, 10)
        ), (2, 12, 12), 8, 0.05,
    ),
    "max pool": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 36, 10)
        ), (2, 12, 12), 8, 0.05,
    ),
    "small_cnn 28x28, width 16": (lambda: fr.models.small_cnn(1, 16, 28, 10), (1, 28, 28), 2, 2 / 255),
    "cnn7 32x32, width 16": (lambda: fr.models.cnn7(3, 32, 10, 16), (3, 32, 32), 1, 2 / 255),
    "tanh 64-64-64-10": (lambda: chain(nn.Tanh, 64, 64, 64, 10), (64,), 16, 0.05),
    "sigmoid 64-64-64-10": (lambda: chain(nn.Sigmoid, 64, 64, 64, 10), (64,), 16, 0.05),
}  # fmt: skip


def network(name: str) -> tuple[nn.Module, Tensor, float]:
    """With its points and eps."""
    torch.manual_seed(0)
    make, shape, batch, eps = NETWORKS[name]
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model, torch.rand(batch, *shape), eps


def compare(name: str, method: str, rounds: int) -> dict[str, Any]:
    """One network, one method."""
    lirpa, (model, x, eps) = peer("auto_LiRPA"), network(name)
    options = {"conv_mode": "patches", "optimize_bound_args": {"iteration": STEPS, "lr_alpha": RATE}}
    bounded = lirpa.BoundedModule(model, torch.zeros_like(x), bound_opts=options)
    low, high = x - eps, x + eps
    point = lirpa.BoundedTensor(x, lirpa.PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high))
    ours, theirs = METHODS[method]

    def other() -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(method == "alpha-CROWN"):
            lower, upper = bounded.compute_bounds(x=(point,), method=theirs)
        return lower.detach(), upper.detach()

    def mine(sound: bool) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            found = ours(model, x, (low, high), sound)
        return found.lower, found.upper

    runs = (lambda _: mine(False), lambda _: other(), lambda _: mine(True))
    found = [run(0) for run in runs]
    times, _ = take_turns(rounds, *runs)
    widths = [(upper - lower).mean().item() for lower, upper in found]
    apart = max(float((a - b).abs().max()) for a, b in zip(found[0], found[1], strict=True))
    return {
        "network": name, "method": method, "seconds": [statistics.median(t) for t in times],
        "faster": faster(times[0], times[1]),
        "widths": widths, "difference": apart,
    }  # fmt: skip


def evaluate(name: str, rounds: int) -> dict[str, Any]:
    """IBP of many samples: a forward pass of the engine, ours without and with rounding terms, auto_LiRPA's."""
    lirpa, (model, x, eps) = peer("auto_LiRPA"), network(name)
    x = torch.rand(MANY, *x.shape[1:])
    low, high, compiled = x - eps, x + eps, fr.network.compile(model, x)
    bounded = lirpa.BoundedModule(model, torch.zeros_like(x[:2]))
    point = lirpa.BoundedTensor(x, lirpa.PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high))

    def ours(sound: bool | str) -> fr.bounds.Bounds:
        with torch.no_grad():
            return fr.bounds.ibp(model, x, (low, high), sound)

    def theirs() -> Any:
        with torch.no_grad():
            return bounded.compute_bounds(x=(point,), method="IBP")

    runs = (lambda _: compiled(x), lambda _: ours(False), lambda _: ours("exact"), lambda _: ours(True),
            lambda _: theirs())  # fmt: skip
    for run in runs:
        run(0)
    times, _ = take_turns(rounds, *runs)
    ratios = [statistics.median(a / b for a, b in zip(t, times[0], strict=True)) for t in times]
    return {"network": name, "seconds": [statistics.median(t) for t in times], "ratios": ratios}


def evaluated(row: dict[str, Any]) -> str:
    """A row of the second table."""
    cells = [f"{1e3 * s:.1f} ({r:.1f}x)" for s, r in zip(row["seconds"], row["ratios"], strict=True)]
    return f"| {row['network']} | {cells[0].split(' ')[0]} | {' | '.join(cells[1:])} |"


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    s, w = row["seconds"], row["widths"]
    return (
        f"| {row['network']} | {row['method']} | {1e3 * s[0]:.1f} | {1e3 * s[1]:.1f} | {row['faster']:.1f}x "
        f"| {w[0] / w[1]:.4f} | {row['difference']:.0e} | {1e3 * s[2]:.1f} | {w[2] / w[0]:.4f} |"
    )


def large() -> str:
    """Every neuron of a network of 229,888 ReLUs, one image."""
    torch.manual_seed(0)
    model, x = fr.models.cnn7().eval(), torch.rand(1, 3, 32, 32)
    start = time.perf_counter()
    fr.bounds.crown(model, x, fr.Linf(8 / 255))
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"cnn7 32x32, width 64, CROWN, sound, eps 8/255: {seconds:.0f} s, {peak:.1f} GiB at most"


def main(arguments: list[str]) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bounds", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", action="store_true", help="replace the table in docs/bounds/benchmarks.md")
    parser.add_argument("--large", action="store_true", help="only the large network")
    args = parser.parse_args(arguments)
    if args.large:
        print(large())
        return 0
    rows = []
    lines = [
        "| network | method | ms | ms, auto_LiRPA | faster by | width, ours/theirs | largest difference | ms, sound "
        "| width, sound/not |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in NETWORKS:
        for method in METHODS:
            if method == "alpha-CROWN" and "cnn" in name:
                continue
            rows.append(compare(name, method, args.rounds))
            lines.append(line(rows[-1]))
            print(lines[-1], flush=True)
    many = [evaluate(name, args.rounds) for name in EVALUATED]
    second = [
        "| network | engine, forward, ms | IBP, no rounding terms | IBP, exact | IBP, float32 | IBP, auto_LiRPA |",
        "|---|---:|---:|---:|---:|---:|",
        *map(evaluated, many),
    ]
    print("\n".join(second))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": environment(), "rows": rows, "many": many}, indent=1) + "\n")
    if args.page:
        put(PAGE, "table", lines)
        put(PAGE, "evaluation", second)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
