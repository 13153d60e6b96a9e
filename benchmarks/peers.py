"""Attacks beside their official or public code."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import statistics
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastrobust as fr
from benchmarks.turns import BATCH, EPS, Lines, Problem, faster, take_turns
from fastrobust import evaluation
from fastrobust.attacks._rows import size


def peer(name: str) -> ModuleType:
    """A public library; empty modules will do for what adv_lib and auto_LiRPA import for parts not used here."""
    for other, held in (("torchvision", "models"), ("visdom", "Visdom"), ("graphviz", "Digraph")):
        if other not in sys.modules and importlib.util.find_spec(other) is None:
            sys.modules[other] = ModuleType(other)
            setattr(sys.modules[other], held, None)
    return importlib.import_module(name)


class Case(NamedTuple):
    """Two runs to compare: each maps a seed to adversarial points."""

    name: str
    norm: str
    eps: float
    rounds: int
    ours: Callable[[int], Tensor]
    theirs: Callable[[int], Tensor]


def compare(p: Problem, cases: list[Case]) -> tuple[Lines, Any]:
    """Robust accuracies (means over the rounds) and times of each case."""
    lines = ["| attack | rounds | robust, fastrobust | robust, official | seconds | seconds, official | faster by |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    record = []
    for case in cases:
        times, found = take_turns(case.rounds, case.ours, case.theirs)
        shares = [[p.robust(x_adv, case.norm, case.eps) for x_adv in each] for each in found]
        record.append({"attack": case.name, "seconds": times, "robust": shares})
        a, b = (statistics.mean(each) for each in shares)
        s, t = (statistics.median(each) for each in times)
        lines.append(
            f"| {case.name} | {case.rounds} | {a:.2f}% | {b:.2f}% | {s:.2f} | {t:.2f} | {faster(*times):.1f}x |"
        )
    return lines, record


def autoattack(p: Problem) -> tuple[Lines, Any]:
    """Standard AutoAttack: over the seeds with up to 1,000 queries of Square, once with more."""
    official = peer("autoattack").AutoAttack

    def case(queries: int) -> Case:
        def ours(seed: int) -> Tensor:
            suite = fr.attacks.AutoAttack(p.model, "Linf", EPS, seed=seed, verbose=False, n_queries=queries)
            found: Tensor = suite.run_standard_evaluation(p.x, p.y, bs=BATCH)
            return found

        def theirs(seed: int) -> Tensor:
            suite = official(p.model, norm="Linf", eps=EPS, seed=seed, verbose=False, device="cpu")
            suite.square.n_queries = queries
            with contextlib.redirect_stdout(io.StringIO()):
                found: Tensor = suite.run_standard_evaluation(p.x, p.y, bs=BATCH)
            return found

        return Case(f"{queries:,} queries", "Linf", EPS, p.seeds if queries <= 1000 else 1, ours, theirs)

    return compare(p, [case(queries) for queries in p.queries])


def apgd(p: Problem) -> tuple[Lines, Any]:
    """APGD with 100 steps."""
    official = peer("autoattack.autopgd_base").APGDAttack

    def case(norm: str, eps: float, loss: str) -> Case:
        def ours(seed: int) -> Tensor:
            return fr.attacks.APGD(p.model, norm, eps, steps=100, loss=loss, seed=seed)(p.x, p.y)

        def theirs(seed: int) -> Tensor:
            keys = {"n_iter": 100, "norm": norm, "eps": eps, "seed": seed, "loss": loss}
            return p.in_batches(official(p.model, **keys, device="cpu", verbose=False).perturb)

        return Case(f"{loss}, {norm} {eps:g}", norm, eps, p.seeds, ours, theirs)

    return compare(
        p, [case("Linf", EPS, "ce"), case("Linf", EPS, "dlr"), case("L2", 2.0, "ce"), case("L1", 10.0, "ce")]
    )


def minimum(p: Problem) -> tuple[Lines, Any]:
    """FMN and DDN with 100 steps, on the points that the network gets right."""
    public = peer("adv_lib.attacks")
    x, y = p.x[p.right], p.y[p.right]

    def reached(x_adv: Tensor, norm: str) -> float:
        fooled = evaluation.predict(p.model, x_adv) != y
        return torch.where(fooled, size(x_adv.double() - x.double(), norm), torch.inf).median().item()

    def row(name: str, norm: str, ours: Callable[[int], Tensor], theirs: Callable[[int], Tensor]) -> tuple[str, Any]:
        times, found = take_turns(3, ours, theirs)
        norms = [statistics.median(reached(x_adv, norm) for x_adv in each) for each in found]
        s, t = (statistics.median(each) for each in times)
        shown = f"| {name} | {norm} | {norms[0]:.4g} | {norms[1]:.4g} | {s:.2f} | {t:.2f} | {faster(*times):.1f}x |"
        return shown, {"attack": name, "norm": norm, "median": norms, "seconds": times}

    def fmn(norm: str, order: float) -> tuple[str, Any]:
        def ours(_: int) -> Tensor:
            return fr.attacks.FMN(p.model, norm, steps=100)(x, y)

        def theirs(_: int) -> Tensor:
            found: Tensor = public.fmn(p.model, x, y, norm=order, steps=100)
            return found

        return row("FMN", norm, ours, theirs)

    rows = [
        row(
            "DDN", "L2", lambda _: fr.attacks.DDN(p.model, steps=100, levels=None)(x, y),
            lambda _: public.ddn(p.model, x, y, steps=100, levels=None),
        ),
        *(fmn(norm, order) for norm, order in (("Linf", torch.inf), ("L2", 2.0), ("L1", 1.0), ("L0", 0.0))),
    ]  # fmt: skip
    lines = ["| attack | norm | median, fastrobust | median, adv-lib | seconds | seconds, adv-lib | faster by |"]
    return [*lines, "|---|---|---:|---:|---:|---:|---:|", *(line for line, _ in rows)], [entry for _, entry in rows]
