"""``python -m benchmarks.smoothing [--rounds N] [--fixed-alone] [--page]``: beside Cohen's sequence of operations.

The peer does what the published code does for each batch of 1,000 copies: repeat, randn, scale, add, forward, argmax,
copy to the host, count in a loop of Python. Three tables: certifying one image with a fixed number of copies; the
group-sequential test at one radius against 100,000 copies, on a small CNN trained with noise on MNIST-5k; how many
samples the test expects. Results go to benchmarks/results/smoothing.json, with --page to docs/smoothing/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrobust as fr
from benchmarks.bounds import chain
from benchmarks.turns import Lines, faster, put, take_turns
from fastrobust import data
from fastrobust.evaluation.environment import environment
from fastrobust.smoothing import Gaussian, Smooth
from fastrobust.smoothing.sequential import looks_until, sequential
from fastrobust.smoothing.statistics import lower_bound

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "smoothing.json", HERE.parent / "docs" / "smoothing" / "benchmarks.md"
SIGMA, COPIES, BATCH = 0.5, 10_000, 1000
IMAGES, RADIUS = 10, 0.5  # of the second table


def lenet() -> nn.Module:
    """As LeCun's, with ReLU and max pools, for 3 x 32 x 32."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear, 3x32x32": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), (3, 32, 32)),
    "MLP 5-50x6-5": (lambda: chain(nn.ReLU, 5, *[50] * 6, 5), (1, 1, 5)),
    "MLP 64-128-128-10": (lambda: chain(nn.ReLU, 64, 128, 128, 10), (1, 8, 8)),
    "MLP 784-256-256-10": (lambda: chain(nn.ReLU, 784, 256, 256, 10), (1, 28, 28)),
    "LeNet, 3x32x32": (lenet, (3, 32, 32)),
    "small_cnn 28x28, width 16": (lambda: fr.models.small_cnn(1, 16, 28, 10), (1, 28, 28)),
    "ResNet-18, width 16": (lambda: fr.models.resnet18(width=16), (3, 32, 32)),
}


def sequence(model: nn.Module, x: Tensor, n: int) -> np.ndarray[Any, Any]:
    """Counts of one image as Cohen's code makes them."""
    counts = np.zeros(10, dtype=int)
    with torch.no_grad():
        for begin in range(0, n, BATCH):
            batch = x.repeat((min(BATCH, n - begin), 1, 1, 1))
            noise = torch.randn_like(batch) * SIGMA
            for said in model(batch + noise).argmax(1).cpu().numpy():
                counts[said] += 1
    return counts


def fixed(name: str, rounds: int) -> dict[str, Any]:
    """One image, a fixed number of copies."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.rand(1, *shape)
    smooth, compiled = Smooth(model, model(x).shape[1], Gaussian(SIGMA), seed=0), fr.network.compile(model, x)
    batch = x.repeat(BATCH, 1, 1, 1)

    def forward(_: int) -> None:
        for _ in range(COPIES // BATCH):
            compiled(batch)

    runs = (lambda r: smooth.sampler.votes(x, COPIES, r), forward, lambda _: sequence(model, x, COPIES))
    for run in runs:
        run(0)
    times, _ = take_turns(rounds, *runs)
    return {
        "network": name, "seconds": [statistics.median(t) for t in times], "of_forward": faster(times[1], times[0]),
        "faster": faster(times[0], times[2]),
    }  # fmt: skip


def noisy_cnn() -> nn.Module:
    """A small CNN trained on MNIST-5k with noise of SIGMA, three passes."""
    torch.manual_seed(0)
    train = data.load("mnist5k").train
    model = fr.models.small_cnn(1, 16, 28, 10)
    adam = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(3):
        for rows in torch.randperm(len(train.labels)).split(64):
            x = train.images[rows]
            loss = F.cross_entropy(model(x + SIGMA * torch.randn_like(x)), train.labels[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
    return model.eval()


def at_radius() -> dict[str, Any]:
    """Some images certified at one radius: Cohen's way, and with as many samples as that takes."""
    model, test = noisy_cnn(), data.load("mnist5k").test
    x, y = test.images[:IMAGES], test.labels[:IMAGES]
    many, count = test.images[:200], test.labels[:200]
    smooth = Smooth(model, 10, Gaussian(SIGMA), seed=0)
    smooth.sampler.votes(x, 100, 0)

    def cohen(_: int) -> Any:
        held = []
        for one, label in zip(x, y, strict=True):
            chosen = int(sequence(model, one[None], 100).argmax())
            p = float(lower_bound(int(sequence(model, one[None], 100_000)[chosen]), 100_000, 0.001))
            held.append(chosen == int(label) and float(smooth.noise.radius(np.asarray(p), one.numel())) >= RADIUS)
        return sum(held)

    times, _ = take_turns(1, cohen, lambda _: smooth.certify_at(x, RADIUS))
    found, whole = smooth.certify_at(many, RADIUS), smooth.certify(many)
    ours = (found.certified[:, 0] & (found.prediction == count)).double().mean()
    theirs = ((whole.radius >= RADIUS) & (whole.prediction == count)).double().mean()
    return {
        "cohen": times[0][0] / IMAGES, "ours": times[1][0] / IMAGES, "faster": times[0][0] / times[1][0],
        "samples": float(found.samples.double().mean()), "certified": 100 * float(ours), "fixed": 100 * float(theirs),
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smoothing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", action="store_true", help="replace the tables in docs/smoothing/benchmarks.md")
    parser.add_argument(
        "--fixed-alone", action="store_true", help="leave the second table, which takes most of the time"
    )
    args = parser.parse_args(arguments)
    rows = [fixed(name, args.rounds) for name in NETWORKS]
    tables: dict[str, Lines] = {"fixed": [
        "| network | ms | of the compiled forward pass | Cohen's sequence, ms | faster by |",
        "|---|---:|---:|---:|---:|",
        *(f"| {r['network']} | {1e3 * r['seconds'][0]:.0f} | {r['of_forward']:.2f}x | {1e3 * r['seconds'][2]:.0f} "
          f"| {r['faster']:.1f}x |" for r in rows),
    ]}  # fmt: skip
    one = None if args.fixed_alone else at_radius()
    if one is not None:
        tables["radius"] = [
            "| | 100,000 copies | `certify_at` |", "|---|---:|---:|",
            f"| seconds an image (Cohen's sequence, ours) | {one['cohen']:.2f} | {one['ours']:.4f} |",
            f"| samples an image | 100,100 | {one['samples']:,.0f} |",
            f"| certified, % of 200 images | {one['fixed']:.1f} | {one['certified']:.1f} |",
            f"| faster by | | {one['faster']:.0f}x |",
        ]  # fmt: skip
    test = sequential(Gaussian(SIGMA).probability(RADIUS, 1), 0.001, looks_until(100_000))
    tables["expected"] = ["| probability of the class | claims, % | samples |", "|---:|---:|---:|"]
    for p in (0.5, 0.7, 0.8, 0.83, 0.84, 0.8445, 0.85, 0.87, 0.9, 0.95, 0.99):
        claim, samples = test.outcome(p)
        tables["expected"].append(f"| {p} | {100 * claim:.2f} | {samples:,.0f} |")
    for name, lines in tables.items():
        print("\n" + "\n".join(lines), flush=True)
        if args.page:
            put(PAGE, name, lines)
    RESULTS.parent.mkdir(exist_ok=True)
    record = {"environment": environment(), "fixed": rows, "radius": one}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
