"""``python -m benchmarks.smoothing_cifar --data FOLDER [--images N] [--page]``: fixed radii on CIFAR-10.

FOLDER holds train/<class>/*.jpg and test/<class>/*.jpg. Trains `small_cnn` of width 16 with Gaussian noise (kept in
--out), then certifies images spread over the test set: with n = 100,000 copies each, by group-sequential tests at
radius 0.5, and on a grid of radii. Certified accuracies and copies used go into docs/smoothing/benchmarks.md, with
what such runs find on average: computed (`smoothing_tests`) for the probabilities that the 100,000 copies show, which
are kept in --out/cifar_fixed.tsv.
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
from benchmarks import smoothing_tests
from benchmarks.smoothing import PAGE
from benchmarks.turns import put
from fastrobust import data
from fastrobust.evaluation import smoothing_report
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


def points(found: Certificate, y: Tensor) -> list[dict[str, Any]]:
    """The lines of a log in Cohen's columns."""
    values = zip(found.prediction.tolist(), y.tolist(), found.radius.tolist(), found.samples.tolist(), strict=True)
    return [
        {"idx": i, "label": label, "predict": said, "radius": r, "correct": said == label, "seconds": 0, "samples": n}
        for i, (said, label, r, n) in enumerate(values)
    ]


def expected(log: Path) -> list[tuple[float, dict[float, float]]]:
    """Of the three rules: mean copies, and certified accuracy in percent at each radius."""
    p, correct, _ = smoothing_tests.implied(str(log), SIGMA)
    p0s = [Gaussian(SIGMA).probability(r, 1) for r in GRID]
    whole = [100 * float((smoothing_tests.fixed(p0, p) * correct).mean()) for p0 in p0s]
    one, samples = smoothing_tests.outcomes(smoothing_tests.tests(p0s[GRID.index(RADIUS)])["exact"], p)
    many, claims = smoothing_tests.simulate(p, p0s)
    each = 100 * (claims * correct[:, None]).mean(0)
    return [
        (FIXED + 100, dict(zip(GRID, whole, strict=True))),
        (float(samples.mean()), {RADIUS: 100 * float((one * correct).mean())}),
        (float(many.mean()), dict(zip(GRID, each.tolist(), strict=True))),
    ]


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
    found, fixed = list[dict[str, Any]](), None
    for name, certify in runs:
        start = time.perf_counter()
        all_of = certify(x)
        fixed = fixed or all_of
        found.append({
            "rule": name, "seconds": time.perf_counter() - start, "samples": float(all_of.samples.double().mean()),
            "certified": {r: share(all_of, y, r) for r in ((RADIUS,) if name.endswith(str(RADIUS)) else GRID)},
        })  # fmt: skip
    log = args.out / "cifar_fixed.tsv"
    log.write_text(smoothing_report.table(points(fixed, y)))
    for row, (samples, claims) in zip(found, expected(log), strict=True):
        row["expected_samples"], row["expected"] = samples, claims
    lines = [
        f"| rule | copies an image | seconds an image | {' | '.join(f'{r:g}' for r in GRID)} |",
        f"|---|---:|---:|{'---:|' * len(GRID)}",
    ]
    for row in found:
        shares = [f"{row['certified'][r]:.1f}" if r in row["certified"] else "" for r in GRID]
        seconds = row["seconds"] / args.images
        lines.append(f"| {row['rule']} | {row['samples']:,.0f} | {seconds:.3f} | {' | '.join(shares)} |")
        shares = [f"{row['expected'][r]:.2f}" if r in row["expected"] else "" for r in GRID]
        lines.append(f"| on average | {row['expected_samples']:,.0f} | | {' | '.join(shares)} |")
    print("\n".join(lines), flush=True)
    if args.page:
        put(PAGE, "cifar", lines)
    RESULTS.parent.mkdir(exist_ok=True)
    record = {"environment": environment(), "images": args.images, "rows": found}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
