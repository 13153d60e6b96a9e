"""What attacks save by doing nothing twice: cycles, points that are decided, radii that need no attack."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastrobust as fr
from benchmarks.turns import BATCH, EPS, Lines, Problem, faster, take_turns
from fastrobust import evaluation
from fastrobust.attacks import _attack
from fastrobust.attacks._victim import Victim
from fastrobust.network import Compiled


def cycles(p: Problem) -> tuple[Lines, Any]:
    """PGD with 400 steps: what cycle detection and letting fooled points go save."""
    lines = ["| alpha | robust, no cycles | robust, with both | evaluations | with both | fewer by | faster by |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    record = []
    for part in (4, 10, 30):
        keys = {"eps": EPS, "alpha": EPS / part, "steps": 400, "compile": True}

        def run(keys: dict[str, Any], **more: Any) -> Callable[[int], Any]:
            return lambda seed: fr.attacks.PGD(p.model, **keys, **more, seed=seed).run(p.x, p.y)

        times, found = take_turns(
            3, run(keys, early_stop=True), run(keys, early_stop=True, cycles=False), run(keys, cycles=False)
        )
        shares = [[p.robust(each.x_adv) for each in some] for some in found]
        steps = [statistics.median(int(each.steps.sum()) for each in some) for some in found]
        # A last iterate that the model gets right may have fooled it on the way: compare with early stop alone.
        same = all(torch.equal(a.success, b.success) for a, b in zip(found[0], found[1], strict=True))
        record.append({"alpha": f"eps/{part}", "robust": shares, "evaluations": steps, "seconds": times, "same": same})
        lines.append(
            f"| eps/{part} | {statistics.mean(shares[1]):.2f}% | {statistics.mean(shares[0]):.2f}%"
            f"{'' if same else ' (differs)'} | {steps[2]:,.0f} | {steps[0]:,.0f} | {steps[2] / steps[0]:.1f}x "
            f"| {faster(times[0], times[2]):.1f}x |"
        )
    return lines, record


def waste(p: Problem) -> tuple[Lines, Any]:
    """Evaluations of the model (passes of single points) that AutoAttack spends on points which are decided already."""
    counts, decided = {"all": 0, "wasted": 0}, 0.0  # the share of the rows of the step under way
    serve, threads = _attack.serve, torch.get_num_threads()
    kept = [(Victim, "logits"), (Compiled, "gradient")]
    originals = [getattr(owner, name) for owner, name in kept]

    def watched(total: int, slots: int, admit: Any, advance: Any, retire: Any, **keys: Any) -> None:
        def step(points: Any) -> Tensor:
            nonlocal decided
            decided = points.done.double().mean().item()
            done: Tensor = advance(points)
            decided = 0.0
            return done

        serve(total, slots, admit, step, retire, **keys)

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def ask(self: Any, x: Tensor, *rest: Any, **keys: Any) -> Any:
            counts["all"] += len(x)
            counts["wasted"] += round(len(x) * decided)
            return original(self, x, *rest, **keys)

        return ask

    lines = ["| path | evaluations | on decided points | share |", "|---|---:|---:|---:|"]
    record = []
    try:
        torch.set_num_threads(1)  # one batch at a time
        _attack.serve = watched
        for (owner, name), original in zip(kept, originals, strict=True):
            setattr(owner, name, counted(original))
        for compile in (True, False):
            counts.update(all=0, wasted=0)
            suite = fr.attacks.AutoAttack(p.model, "Linf", EPS, seed=0, verbose=False, n_queries=1000, compile=compile)
            suite.run(p.x, p.y, BATCH)
            record.append({"compile": compile, **counts})
            path, share = "engine" if compile else "PyTorch's layers", counts["wasted"] / counts["all"]
            lines.append(f"| {path} | {counts['all']:,} | {counts['wasted']:,} | {share:.1%} |")
    finally:
        torch.set_num_threads(threads)
        _attack.serve = serve
        for (owner, name), original in zip(kept, originals, strict=True):
            setattr(owner, name, original)
    return lines, record


def sweeps(p: Problem) -> tuple[Lines, Any]:
    """Eight radii by bisection, one after another with dropping, each on its own; and one radius."""
    radii = [round(0.05 * k, 2) for k in range(1, 9)]

    def attack_at(e: float) -> Any:
        return fr.attacks.APGD(p.model, "Linf", e, steps=100)

    def one(_: int) -> Any:
        return evaluation.sweep(p.model, p.x, p.y, attack_at, [EPS])

    def every(_: int) -> Any:
        return [evaluation.sweep(p.model, p.x, p.y, attack_at, [e]).accuracy[0] for e in radii]

    def by(method: str) -> Callable[[int], Any]:
        return lambda _: evaluation.sweep(p.model, p.x, p.y, attack_at, radii, method=method)

    times, found = take_turns(3, one, by("bisect"), by("ascend"), every)
    names = [f"one eps, {EPS:g}", "8 eps, bisect", "8 eps, ascend", "8 eps, each on its own"]
    accuracies = [found[0][0].accuracy, found[1][0].accuracy, found[2][0].accuracy, tuple(found[3][0])]
    lines = ["| sweep | seconds | times one eps | accuracy at " + ", ".join(map(str, radii)) + " |"]
    lines.append("|---|---:|---:|---|")
    record = []
    for name, seconds, shares in zip(names, times, accuracies, strict=True):
        ratio = faster(times[0], seconds)
        record.append({"sweep": name, "seconds": seconds, "times one": ratio, "accuracy": shares})
        shown = ", ".join(f"{100 * s:.1f}" for s in shares)
        lines.append(f"| {name} | {statistics.median(seconds):.2f} | {ratio:.1f} | {shown} |")
    return lines, record
