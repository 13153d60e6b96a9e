"""Black-box attacks beside their official or public code."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn

import fastrobust as fr
from benchmarks.peers import Case, compare, peer
from benchmarks.turns import EPS, Lines, Problem
from fastrobust import data, evaluation
from fastrobust.attacks._rows import size
from fastrobust.training import TrainConfig, fit


def square(p: Problem) -> tuple[Lines, Any]:
    """Square with 1,000 queries."""
    official = peer("autoattack.square").SquareAttack

    def case(norm: str, eps: float) -> Case:
        def ours(seed: int) -> Tensor:
            return fr.attacks.Square(p.model, norm, eps, n_queries=1000, resc_schedule=False, seed=seed)(p.x, p.y)

        def theirs(seed: int) -> Tensor:
            keys = {"p_init": 0.8, "n_queries": 1000, "eps": eps, "norm": norm, "seed": seed, "resc_schedule": False}
            return p.in_batches(official(p.model, **keys, device="cpu", verbose=False).perturb)

        return Case(f"Square, {norm} {eps:g}", norm, eps, p.seeds, ours, theirs)

    return compare(p, [case("Linf", EPS), case("L2", 2.0), case("L1", 10.0)])


class Counted(nn.Module):
    """A model that counts the samples it sees."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        out: Tensor = self.model(x)
        return out


def hopskipjump(p: Problem, points: int = 20) -> tuple[Lines, Any]:
    """HopSkipJump from one image of each class, with as many queries as foolbox takes in so many of its steps.

    foolbox takes norms over the whole batch, so it gets one point at a time.
    """
    foolbox = peer("foolbox")
    rows = torch.nonzero(p.right)[:points, 0]
    x, y = p.x[rows], p.y[rows]
    starts = torch.stack([p.x[(p.y == c) & p.right][0] for c in p.y[p.right].unique()])
    wrong = evaluation.predict(p.model, starts)
    lines = ["| norm | foolbox's steps | queries | median, fastrobust | median, foolbox | seconds | seconds, foolbox |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    record = []
    for norm, order in (("L2", "l2"), ("Linf", "linf")):
        for steps in (5, 16):
            counted = Counted(p.model).eval()
            other = foolbox.PyTorchModel(counted, bounds=(0, 1))
            hop = foolbox.attacks.HopSkipJumpAttack(steps=steps, constraint=order)
            began, reached = time.perf_counter(), []
            for one, label in zip(x.split(1), y.split(1), strict=True):
                begin = starts[wrong != label][:1]
                found = hop(other, one, foolbox.criteria.Misclassification(label), epsilons=None, starting_points=begin)
                reached.append(size(found[0] - one, norm).item())
            took, queries = time.perf_counter() - began, counted.seen // points
            began = time.perf_counter()
            ours = fr.attacks.HopSkipJump(p.model, norm, n_queries=queries, starts=starts).run(x, y)
            seconds = time.perf_counter() - began
            norms = [ours.loss.median().item(), statistics.median(reached)]
            record.append({"norm": norm, "steps": steps, "queries": queries, "median": norms, "s": [seconds, took]})
            lines.append(
                f"| {norm} | {steps} | {queries:,} | {norms[0]:.4g} | {norms[1]:.4g} | {seconds:.2f} | {took:.2f} |"
            )
    return lines, record


def transfer(p: Problem) -> tuple[Lines, Any]:
    """Share of points, right before, that PGD (20 steps) on another network fools; torchattacks' PGD for comparison."""
    torchattacks = peer("torchattacks")
    splits = data.load("mnist5k")
    others = {}
    torch.manual_seed(0)
    for name, net in {"MLP": fr.models.mlp((1, 28, 28), (128,), 10), "CNN": fr.models.small_cnn()}.items():
        with tempfile.TemporaryDirectory() as folder:
            fit(net, splits, TrainConfig(objective="standard", epochs=3), folder, progress=False)
        others[name] = net.eval()
    x, y = p.x[p.right], p.y[p.right]
    lines = ["| eps | surrogate | fooled, fastrobust | fooled, torchattacks | both surrogates | white box |"]
    lines.append("|---:|---|---:|---:|---:|---:|")
    record = []

    def fooled(x_adv: Tensor) -> float:
        return 100 * (evaluation.predict(p.model, x_adv) != y).double().mean().item()

    for eps in (0.1, 0.2, 0.3):
        keys = {"eps": eps, "alpha": eps / 8, "steps": 20}
        both = fooled(fr.attacks.Transfer(p.model, list(others.values()), **keys)(x, y))
        white = fooled(fr.attacks.PGD(p.model, **keys)(x, y))
        for name, other in others.items():
            ours = fooled(fr.attacks.Transfer(p.model, [other], **keys)(x, y))
            theirs = fooled(torchattacks.PGD(other, **keys)(x, y))
            record.append({"eps": eps, "surrogate": name, "fooled": [ours, theirs, both, white]})
            lines.append(f"| {eps:g} | {name} | {ours:.1f}% | {theirs:.1f}% | {both:.1f}% | {white:.1f}% |")
    return lines, record
