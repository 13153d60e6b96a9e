"""Adversarial patches beside ART's (adversarial-robustness-toolbox)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastrobust as fr
from benchmarks.peers import peer
from benchmarks.turns import Lines, Problem
from fastrobust import data, evaluation

SIDE, EDGE, TURN, SCALES = 8, 28, 22.5, (0.8, 1.0, 1.2)
DIAMETER = 9  # of ART's patch, which is round: as many pixels as a square of 8
IMAGES, PASSES = 128, 60  # that ART fits on; ours makes steps on as many images in all


def patches(p: Problem) -> tuple[Lines, Any]:
    """Share of the right images that are fooled, in percent, with each patch as its library applies it."""
    art = peer("art.estimators.classification").PyTorchClassifier
    theirs = peer("art.attacks.evasion.adversarial_patch.adversarial_patch_numpy").AdversarialPatchNumpy
    train = data.load("mnist5k").train
    x, y = train.images[:IMAGES], train.labels[:IMAGES]
    lines = ["| target | fastrobust | ART | grey | seconds | seconds, ART |", "|---|---:|---:|---:|---:|---:|"]
    record = []
    for target in (None, 3, 8):
        shares: dict[str, list[float]] = {"ours": [], "art": [], "grey": []}
        seconds: dict[str, list[float]] = {"ours": [], "art": []}
        rows = p.right if target is None else p.right & (p.y != target)
        images, labels = p.x[rows], p.y[rows]

        def fooled(placed: Tensor, labels: Tensor = labels, target: int | None = target) -> float:
            said = evaluation.predict(p.model, placed)
            return 100 * (said != labels if target is None else said == target).double().mean().item()

        for seed in range(p.seeds):
            began = time.perf_counter()
            ours = fr.attacks.AdversarialPatch(
                p.model, SIDE, target, steps=IMAGES * PASSES // 32, batch_size=32, seed=seed
            ).fit(x, y)
            seconds["ours"].append(time.perf_counter() - began)
            shares["ours"] += [fooled(ours.apply(images, seed=seed + 100, draw=k)) for k in range(len(SCALES))]
            ours.patch = torch.full_like(ours.patch, 0.5) if ours.patch is not None else None
            shares["grey"] += [fooled(ours.apply(images, seed=seed + 100, draw=k)) for k in range(len(SCALES))]
            np.random.seed(seed)  # ART draws from it
            net = art(p.model, nn.CrossEntropyLoss(), (1, EDGE, EDGE), 10, clip_values=(0.0, 1.0), device_type="cpu")
            widths = [s * DIAMETER / EDGE for s in SCALES]
            other = theirs(net, TURN, widths[0], widths[-1], 5.0, PASSES, IMAGES, target is not None, False)
            began = time.perf_counter()
            other.generate(x.numpy(), (y if target is None else torch.full_like(y, target)).numpy())
            seconds["art"].append(time.perf_counter() - began)
            shares["art"] += [fooled(torch.from_numpy(other.apply_patch(images.numpy(), w)).float()) for w in widths]
        found = {key: float(np.mean(each)) for key, each in shares.items()}
        took = {key: float(np.median(each)) for key, each in seconds.items()}
        record.append({"target": target, "fooled": found, "seconds": took})
        cells = (*(found[key] for key in ("ours", "art", "grey")), took["ours"], took["art"])
        lines.append(f"| {'none' if target is None else target} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    return lines, record
