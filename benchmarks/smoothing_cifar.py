"""``python -m benchmarks.smoothing_cifar --data FOLDER [--images N] [--page]``: fixed radii on CIFAR-10.

FOLDER holds train/<class>/*.jpg and test/<class>/*.jpg. Trains `small_cnn` of width 16 with Gaussian noise (kept in
--out), then certifies images spread over the test set: with n = 100,000 copies each, by group-sequential tests at
radius 0.5, and on a grid of radii. Certified accuracies and copies used go into docs/smoothing/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import fastrobust as fr
from benchmarks.smoothing import PAGE
from benchmarks.turns import put
from fastrobust import data
from fastrobust.evaluation.environment import environment
from fastrobust.smoothing import Certificate, Gaussian, Smooth

RESULTS = Path(__file__).resolve().parent / "results" / "smoothing_cifar.json"
SIGMA, RADIUS, ALPHA, FIXED = 0.5, 0.5, 0.001, 100_000
GRID = tuple(0.25 * k for k in range(1, 8))
EPOCHS, BATCH, RATE = 15, 128, 3e-3


def trained(folder: Path, out: Path) -> nn.Module:
    """A small CNN trained with noise of SIGMA and mirrored images."""
    torch.manual_seed(0)
    model, file = fr.models.small_cnn(3, 16, 32, 10), out / "cifar_gaussian.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    train = data.read_images(folder / "train")
    steps = EPOCHS * math.ceil(len(train.labels) / BATCH)
    adam = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, steps)
    with tqdm(total=steps, desc="training") as bar:
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(train.labels)).split(BATCH):
                x = train.images[rows]
                x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(3))
                loss = F.cross_entropy(model(x + SIGMA * torch.randn_like(x)), train.labels[rows])
                adam.zero_grad()
                loss.backward()
                adam.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
    out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model.eval()


def share(found: Certificate, y: Tensor, radius: float) -> float:
    """Of images for which the radius holds and g's class is the label, in percent."""
    return 100 * float(((found.radius >= radius) & (found.prediction == y)).double().mean())


def main(arguments: list[str]) -> int:
    """Train, certify, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smoothing_cifar", description=__doc__)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--page", action="store_true", help="replace the table in docs/smoothing/benchmarks.md")
    args = parser.parse_args(arguments)
    model, test = trained(args.data, args.out), data.read_images(args.data / "test")
    rows = torch.arange(args.images) * len(test.labels) // args.images
    x, y = test.images[rows], test.labels[rows]
    smooth = Smooth(model, 10, Gaussian(SIGMA), progress=True)
    runs: list[tuple[str, Any]] = [
        (f"{FIXED:,} copies", lambda part: smooth.certify(part, n=FIXED, alpha=ALPHA)),
        (f"`certify_at`, radius {RADIUS}", lambda part: smooth.certify_at(part, RADIUS, n_max=FIXED, alpha=ALPHA)),
        ("`certify_at`, the grid", lambda part: smooth.certify_at(part, GRID, n_max=FIXED, alpha=ALPHA)),
    ]
    found: list[dict[str, Any]] = []
    for name, certify in runs:
        start = time.perf_counter()
        all_of = certify(x)
        found.append({
            "rule": name, "seconds": time.perf_counter() - start, "samples": float(all_of.samples.double().mean()),
            "certified": {r: share(all_of, y, r) for r in ((RADIUS,) if name.endswith(str(RADIUS)) else GRID)},
        })  # fmt: skip
    lines = [
        f"| rule | copies an image | seconds an image | {' | '.join(f'{r:g}' for r in GRID)} |",
        f"|---|---:|---:|{'---:|' * len(GRID)}",
    ]
    for row in found:
        shares = [f"{row['certified'][r]:.1f}" if r in row["certified"] else "" for r in GRID]
        seconds = row["seconds"] / args.images
        lines.append(f"| {row['rule']} | {row['samples']:,.0f} | {seconds:.3f} | {' | '.join(shares)} |")
    print("\n".join(lines), flush=True)
    if args.page:
        put(PAGE, "cifar", lines)
    RESULTS.parent.mkdir(exist_ok=True)
    record = {"environment": environment(), "images": args.images, "rows": found}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
