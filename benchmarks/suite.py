"""``python -m benchmarks.suite [SECTION ...] [--seeds N] [--points N]``: attacks beside their official or public code.

The network is the robust one of `make demo` (out/robust.pt: a small CNN adversarially trained on MNIST-5k, Linf 0.2),
the points the first of its test split. Both sides run in one process and take turns; each ratio is the median over the
rounds. The peers are those that import: autoattack (github.com/fra31/auto-attack), adv_lib (adversarial-library) and
foolbox. Results go to benchmarks/results/suite.json, and the tables between the marks of docs/attacks/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import fastrobust as fr
from fastrobust import data, evaluation
from fastrobust.attacks._minimum import size
from fastrobust.attacks._objective import Objective
from fastrobust.cli import model_file
from fastrobust.evaluation.environment import environment

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "suite.json", HERE.parent / "docs" / "attacks" / "benchmarks.md"
EPS, BATCH = 0.2, 250
Lines = list[str]


class Problem:
    """The network, points that it may get wrong too, and the settings of a run."""

    def __init__(self, checkpoint: Path, points: int, seeds: int, queries: list[int]) -> None:
        if not checkpoint.exists():
            sys.exit(f"{checkpoint} is missing: `make demo` trains it")
        self.model = model_file.load(checkpoint)[0]
        part = data.load("mnist5k").test
        self.x, self.y = part.images[:points], part.labels[:points]
        self.right = evaluation.predict(self.model, self.x) == self.y
        self.seeds, self.queries = seeds, [(count, seeds if count <= 1000 else 1) for count in queries]

    def robust(self, x_adv: Tensor, norm: str = "Linf", eps: float = EPS) -> float:
        """Accuracy on clean and adversarial points, in percent; outside the ball (by over 1e-6) is right."""
        inside = size(x_adv.double() - self.x.double(), norm) <= eps * (1 + 1e-6) + 1e-7
        stands = (evaluation.predict(self.model, x_adv) == self.y) | ~inside
        return 100 * (stands & self.right).double().mean().item()


def take_turns(rounds: int, *runs: Callable[[int], Any]) -> tuple[list[list[float]], list[list[Any]]]:
    """Times and outcomes of each run, called with the round's number; all take turns."""
    times: list[list[float]] = [[] for _ in runs]
    outcomes: list[list[Any]] = [[] for _ in runs]
    for number in range(rounds):
        for k, run in enumerate(runs):
            began = time.perf_counter()
            outcomes[k].append(run(number))
            times[k].append(time.perf_counter() - began)
            print(f"round {number + 1} of {rounds}, run {k + 1} of {len(runs)}: {times[k][-1]:.1f} s", file=sys.stderr)
    return times, outcomes


def faster(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds of how many times as long the other took."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def peer(name: str) -> ModuleType:
    """adv_lib imports torchvision and visdom for parts that are not used here; empty modules will do."""
    for other, part in (("torchvision", "models"), ("visdom", "Visdom")):
        try:
            __import__(other)
        except ImportError:
            sys.modules[other] = ModuleType(other)
            setattr(sys.modules[other], part, None)
    __import__(name)
    return sys.modules[name]


def quietly(run: Callable[[], Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return run()


def autoattack(p: Problem) -> tuple[Lines, Any]:
    """Standard AutoAttack with 1,000 queries of Square over the seeds, and once with 5,000."""
    official = peer("autoattack").AutoAttack

    def ours(queries: int) -> Callable[[int], Tensor]:
        def run(seed: int) -> Tensor:
            suite = fr.attacks.AutoAttack(p.model, "Linf", EPS, seed=seed, verbose=False, n_queries=queries)
            found: Tensor = suite.run_standard_evaluation(p.x, p.y, bs=BATCH)
            return found

        return run

    def theirs(queries: int) -> Callable[[int], Tensor]:
        def run(seed: int) -> Tensor:
            suite = official(p.model, norm="Linf", eps=EPS, seed=seed, verbose=False, device="cpu")
            suite.square.n_queries = queries
            found: Tensor = quietly(lambda: suite.run_standard_evaluation(p.x, p.y, bs=BATCH))
            return found

        return run

    lines = ["| queries | seeds | robust, fastrobust | robust, official | seconds | seconds, official | faster by |"]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|")
    record = []
    for queries, rounds in p.queries:
        times, found = take_turns(rounds, ours(queries), theirs(queries))
        shares = [[p.robust(x_adv) for x_adv in each] for each in found]
        row = {"queries": queries, "seconds": times, "robust": shares}
        record.append(row)
        a, b = (statistics.mean(each) for each in shares)
        s, t = (statistics.median(each) for each in times)
        lines.append(f"| {queries:,} | {rounds} | {a:.2f}% | {b:.2f}% | {s:.2f} | {t:.2f} | {faster(*times):.1f}x |")
    return lines, record


def apgd(p: Problem) -> tuple[Lines, Any]:
    """APGD with 100 steps, each loss."""
    module = __import__("autoattack.autopgd_base", fromlist=["APGDAttack"])
    lines = ["| norm, eps | loss | robust, fastrobust | robust, official | seconds | seconds, official | faster by |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    record = []
    for norm, eps, loss in (("Linf", EPS, "ce"), ("Linf", EPS, "dlr"), ("L2", 2.0, "ce"), ("L1", 10.0, "ce")):

        def ours(seed: int, norm: str = norm, eps: float = eps, loss: str = loss) -> Tensor:
            return fr.attacks.APGD(p.model, norm, eps, steps=100, loss=loss, seed=seed)(p.x, p.y)

        def theirs(seed: int, norm: str = norm, eps: float = eps, loss: str = loss) -> Tensor:
            kind = module.APGDAttack(
                p.model, n_iter=100, norm=norm, eps=eps, seed=seed, loss=loss, device="cpu", verbose=False
            )
            parts = zip(p.x.split(BATCH), p.y.split(BATCH), strict=True)
            return torch.cat([kind.perturb(a, b) for a, b in parts])

        times, found = take_turns(p.seeds, ours, theirs)
        shares = [[p.robust(x_adv, norm, eps) for x_adv in each] for each in found]
        record.append({"norm": norm, "eps": eps, "loss": loss, "seconds": times, "robust": shares})
        a, b = (statistics.mean(each) for each in shares)
        s, t = (statistics.median(each) for each in times)
        lines.append(f"| {norm}, {eps:g} | {loss} | {a:.2f}% | {b:.2f}% | {s:.2f} | {t:.2f} | {faster(*times):.1f}x |")
    return lines, record


def minimum(p: Problem) -> tuple[Lines, Any]:
    """FMN and DDN with 100 steps, on the points that the network gets right."""
    theirs = peer("adv_lib") and __import__("adv_lib.attacks", fromlist=["ddn", "fmn"])
    x, y = p.x[p.right], p.y[p.right]
    orders = {"Linf": float("inf"), "L2": 2.0, "L1": 1.0, "L0": 0.0}
    cases: list[tuple[str, str, Callable[[], Any], Callable[[], Tensor]]] = [
        ("DDN", "L2", lambda: fr.attacks.DDN(p.model, steps=100, levels=None),
         lambda: theirs.ddn(p.model, x, y, steps=100, levels=None)),
        *(
            ("FMN", norm, lambda norm=norm: fr.attacks.FMN(p.model, norm, steps=100),  # type: ignore[misc]
             lambda order=order: theirs.fmn(p.model, x, y, norm=order, steps=100))  # type: ignore[misc]
            for norm, order in orders.items()
        ),
    ]  # fmt: skip
    lines = ["| attack | norm | median, fastrobust | median, adv-lib | seconds | seconds, adv-lib | faster by |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    record = []
    for name, norm, make, run in cases:

        def reached(x_adv: Tensor, norm: str = norm) -> float:
            fooled = evaluation.predict(p.model, x_adv) != y
            return torch.where(fooled, size(x_adv.double() - x.double(), norm), torch.inf).median().item()

        times, found = take_turns(3, lambda _: make()(x, y), lambda _: run().detach())  # noqa: B023
        norms = [statistics.median(reached(x_adv) for x_adv in each) for each in found]
        record.append({"attack": name, "norm": norm, "median": norms, "seconds": times})
        s, t = (statistics.median(each) for each in times)
        lines.append(
            f"| {name} | {norm} | {norms[0]:.4g} | {norms[1]:.4g} | {s:.2f} | {t:.2f} | {faster(*times):.1f}x |"
        )
    return lines, record


def cycles(p: Problem) -> tuple[Lines, Any]:
    """PGD with 400 steps: what cycle detection and letting fooled points go save."""
    lines = ["| alpha | robust, all steps | robust, with both | evaluations | with both | fewer by | faster by |"]
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
    """Model evaluations spent on points that were decided already, counted where attacks ask the model."""
    counts = {"all": 0, "wasted": 0}
    kept = {name: getattr(Objective, name) for name in ("gradient", "combination", "predict")}

    def counted(name: str) -> Callable[..., Any]:
        def ask(self: Objective, x: Tensor, work: Any, *rest: Any) -> Any:
            counts["all"] += len(x)
            counts["wasted"] += int(work.done.sum()) if "done" in vars(work) else 0
            return kept[name](self, x, work, *rest)

        return ask

    lines = ["| path | evaluations | on decided points | share |", "|---|---:|---:|---:|"]
    record = []
    try:
        for name in kept:
            setattr(Objective, name, counted(name))
        for compile in (True, False):
            counts.update(all=0, wasted=0)
            suite = fr.attacks.AutoAttack(p.model, "Linf", EPS, seed=0, verbose=False, n_queries=1000, compile=compile)
            suite.run(p.x, p.y, BATCH)
            record.append({"compile": compile, **counts})
            path = "engine" if compile else "PyTorch's layers"
            lines.append(
                f"| {path} | {counts['all']:,} | {counts['wasted']:,} | {counts['wasted'] / counts['all']:.1%} |"
            )
    finally:
        for name, original in kept.items():
            setattr(Objective, name, original)
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


def black_box(p: Problem) -> tuple[Lines, Any]:
    """Square with 1,000 queries beside the official code."""
    module = __import__("autoattack.square", fromlist=["SquareAttack"])
    lines = ["| attack | robust, fastrobust | robust, official | seconds | seconds, official | faster by |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    record = []
    for norm, eps in (("Linf", EPS), ("L2", 2.0), ("L1", 10.0)):

        def ours(seed: int, norm: str = norm, eps: float = eps) -> Tensor:
            return fr.attacks.Square(p.model, norm, eps, n_queries=1000, seed=seed)(p.x, p.y)

        def theirs(seed: int, norm: str = norm, eps: float = eps) -> Tensor:
            attack = module.SquareAttack(
                p.model, p_init=0.8, n_queries=1000, eps=eps, norm=norm, seed=seed, verbose=False, device="cpu",
                resc_schedule=False,
            )  # fmt: skip
            parts = zip(p.x.split(BATCH), p.y.split(BATCH), strict=True)
            return torch.cat([attack.perturb(a, b) for a, b in parts])

        times, found = take_turns(min(3, p.seeds), ours, theirs)
        shares = [[p.robust(x_adv, norm, eps) for x_adv in each] for each in found]
        record.append({"norm": norm, "eps": eps, "seconds": times, "robust": shares})
        a, b = (statistics.mean(each) for each in shares)
        s, t = (statistics.median(each) for each in times)
        lines.append(f"| Square {norm}, {eps:g} | {a:.2f}% | {b:.2f}% | {s:.2f} | {t:.2f} | {faster(*times):.1f}x |")
    return lines, record


SECTIONS: dict[str, Callable[[Problem], tuple[Lines, Any]]] = {
    "autoattack": autoattack, "apgd": apgd, "minimum": minimum, "cycles": cycles, "waste": waste, "sweeps": sweeps,
    "black_box": black_box,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all if none")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--queries", type=int, nargs="+", default=[1000, 5000], help="of Square in AutoAttack")
    parser.add_argument("--checkpoint", type=Path, default=HERE.parent / "out" / "robust.pt")
    parser.add_argument("--page", action="store_true", help="replace the tables in docs/attacks/benchmarks.md")
    args = parser.parse_args(arguments)
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(unknown)}")
    problem = Problem(args.checkpoint, args.points, args.seeds, args.queries)
    RESULTS.parent.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.sections or SECTIONS:
        lines, record = SECTIONS[name](problem)
        print(f"\n{name}\n" + "\n".join(lines), flush=True)
        results[name] = {"environment": environment(), "points": args.points, "rows": record}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        if args.page:
            put(name, lines)
    return 0


def put(name: str, lines: Lines) -> None:
    """Into the page, between the marks of the section, where it has them."""
    text, begin, end = PAGE.read_text(), f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    if begin not in text:
        return
    before, rest = text.split(begin)
    PAGE.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
