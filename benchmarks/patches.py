"""Adversarial patches beside ART's (adversarial-robustness-toolbox)."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastrobust as fr
from benchmarks.peers import peer
from benchmarks.turns import Lines, Problem, faster, take_turns
from fastrobust import data, evaluation

EDGE, TURN, SCALES = 28, 22.5, (0.8, 1.0, 1.2)
SIDE = 10  # of ours, which is square; ART's is round and as large
DIAMETER = 2 * SIDE / math.pi**0.5
IMAGES, PASSES = 512, 40  # for both: 20,480 images seen
RATES = (0.2, 1.0, 5.0)  # learning rates of ART's (5.0 is its default), of which the best counts


def patches(p: Problem) -> tuple[Lines, Any]:
    """Share of the right images that say the target, in percent, with each patch as its library places it."""
    train = data.load("mnist5k").train
    x, y = train.images[:IMAGES], train.labels[:IMAGES]
    lines = [
        "| network | target | fastrobust | ART | its learning rate | grey | fastrobust, s | times faster than ART |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    record = []
    for name, model in (("plain", p.plain), ("robust", p.model)):
        right = evaluation.predict(model, p.x) == p.y
        for target in (3, 8):
            images = p.x[right & (p.y != target)]

            def said(placed: Tensor, model: nn.Module = model, target: int = target) -> float:
                return 100 * (evaluation.predict(model, placed) == target).double().mean().item()

            def ours(seed: int, model: nn.Module = model, target: int = target) -> fr.attacks.AdversarialPatch:
                attack = fr.attacks.AdversarialPatch(
                    model, SIDE, target, steps=IMAGES * PASSES // 32, batch_size=32, seed=seed
                )
                attack.fit(x, y)
                return attack

            def placed(attack: fr.attacks.AdversarialPatch, images: Tensor = images) -> list[Tensor]:
                return [attack.apply(images, seed=99, draw=k) for k in range(len(SCALES))]

            runs = [ours, *(_theirs(model, target, rate, x) for rate in RATES)]
            times, found = take_turns(p.seeds, *runs)
            share = fmean(said(each) for attack in found[0] for each in placed(attack))
            others = []
            for column in found[1:]:
                all_placed = (attack.apply_patch(images.numpy(), w) for attack in column for w in _widths())
                others.append(fmean(said(torch.from_numpy(each).float()) for each in all_placed))
            best = int(np.argmax(others))
            blank = found[0][0]
            blank.patch = torch.full_like(blank.patch, 0.5)
            grey = fmean(said(each) for each in placed(blank))
            took, ratio = fmean(times[0]), faster(times[0], times[1 + best])
            record.append(
                {"network": name, "target": target, "ours": share, "art": dict(zip(RATES, others, strict=True)),
                 "grey": grey, "seconds": took, "faster": ratio}
            )  # fmt: skip
            lines.append(
                f"| {name} | {target} | {share:.1f} | {others[best]:.1f} | {RATES[best]:g} | {grey:.1f} "
                f"| {took:.1f} | {ratio:.1f} |"
            )
    return lines, record


def _widths() -> list[float]:
    return [scale * DIAMETER / EDGE for scale in SCALES]  # shares of an image's edge


def _theirs(model: nn.Module, target: int, rate: float, x: Tensor) -> Callable[[int], Any]:
    classifier = peer("art.estimators.classification").PyTorchClassifier
    attack = peer("art.attacks.evasion.adversarial_patch.adversarial_patch_numpy").AdversarialPatchNumpy

    class Mended(attack):
        def reset_patch(self, initial_patch_value: Any) -> None:
            super().reset_patch(float(initial_patch_value))  # else a NumPy scalar, which it refuses

    def run(seed: int) -> Any:
        np.random.seed(seed)  # ART draws from it
        net = classifier(model, nn.CrossEntropyLoss(), (1, EDGE, EDGE), 10, clip_values=(0.0, 1.0), device_type="cpu")
        found = Mended(net, target, TURN, _widths()[0], _widths()[-1], rate, PASSES, None, IMAGES, True, False)
        found.generate(x.numpy(), np.full(len(x), target))
        return found

    return run
