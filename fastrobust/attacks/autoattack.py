"""AutoAttack (Croce and Hein, ICML 2020): attacks in a row, each on the points that stood those before."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fastrobust import _checks
from fastrobust.attacks import _doubts
from fastrobust.attacks._attack import Attack, check_call
from fastrobust.attacks._rows import size
from fastrobust.attacks._shards import Shard
from fastrobust.attacks._state import State, fingerprint
from fastrobust.attacks._victim import Model, Victim
from fastrobust.attacks.apgd import APGD, APGDT
from fastrobust.attacks.fab import FAB, FABT
from fastrobust.attacks.square import Square
from fastrobust.threat import Box, Threat

__all__ = ["AutoAttack", "Evaluation"]

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
PROVEN, CLEAN, STANDS = -3, -2, -1

Proof = Callable[[Tensor, Tensor], Tensor]
"""(x, y) -> (batch,) bool: points of whose ball a sound bound shows that the model is right on all of it."""


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        x_adv: (n, ...) adversarial points; clean ones where nothing was found.
        robust: (n,) bool: classified correctly, and fooled by no attack.
        fooled_by: (n,) int64: number of the attack in the order of `accuracy`'s keys after "clean"; -1 robust, -2 a
            clean error, -3 proven robust and never attacked.
        accuracy: "clean", then each attack: the share of points that stand after it.
        seconds: each attack's time in this and all resumed runs.
        evaluations: each attack's gradient steps or queries, summed over points.
        doubts: reasons to distrust the number, each with what to try.
    """

    x_adv: Tensor
    robust: Tensor
    fooled_by: Tensor
    accuracy: dict[str, float]
    seconds: dict[str, float]
    evaluations: dict[str, int]
    doubts: list[str]


class AutoAttack:
    """The ensemble, with the signatures, constants and order of the reference code (fra31/auto-attack).

    Each point leaves as soon as it is fooled, and its result depends on the seed and its own index alone. Under
    `torchrun` the points are shared out over the processes, with the same answer.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        norm: "Linf", "L2" or "L1".
        eps: radius of the ball, in x's units.
        seed: of the random draws; None draws one.
        verbose: print robust accuracies and show progress.
        attacks_to_run: for version "custom": names among "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square".
        version: "standard", "plus", "rand" (random models: gradients averaged over 20 draws) or "custom".
        device: accepted for compatibility; points and model stay where they are.
        log_path: a text file that gets what is printed.
        box: (lo, hi), numbers or tensors of a sample's shape.
        compile: "auto", True or False, as in `PGD`.
        n_queries: of Square.
        threat: `fastrobust.Linf(eps)` and the like, in place of norm, eps and box.
        autocast: as in `PGD`: torch.bfloat16 or torch.float16 for the forward passes, but those of Square, whose small
            gains 16 bits would hide.
        proof: a sound bound, ``proof(x, y)`` -> (batch,) bool: points that it proves robust are not attacked.

    Attributes:
        attacks: name -> the attack object, whose settings may be changed before a run.
    """

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: list[str] | tuple[str, ...] = (),
        version: str = "standard",
        device: Any = None,
        log_path: str | Path | None = None,
        *,
        box: Box = (0.0, 1.0),
        compile: str | bool = "auto",
        n_queries: int = 5000,
        threat: Threat | None = None,
        autocast: torch.dtype | None = None,
        proof: Proof | None = None,
    ) -> None:
        if threat is not None:
            norm, eps, box = threat.norm, threat.eps, threat.box
        _checks.check_norm("AutoAttack", norm)
        if version not in (*VERSIONS, "custom"):
            raise ValueError(f"AutoAttack: version must be 'standard', 'plus', 'rand' or 'custom', got {version!r}")
        if attacks_to_run and version != "custom":
            raise ValueError('AutoAttack: attacks_to_run needs version="custom"')
        names = tuple(attacks_to_run) if version == "custom" else VERSIONS[version]
        unknown = [name for name in names if name not in ATTACKS]
        if unknown or not names:
            raise ValueError(f"AutoAttack: attacks_to_run must be among {', '.join(ATTACKS)}, got {list(names)}")
        self.model, self.norm, self.eps, self.box, self.version = model, norm, float(eps), box, version
        self.seed = int(torch.seed()) if seed is None else seed
        self.verbose, self.log_path, self.compile, self.n_queries = verbose, log_path, compile, n_queries
        self.attacks_to_run, self.autocast, self.proof = list(names), autocast, proof
        self._victim = Victim("AutoAttack", model, "eval", None)
        self.attacks: dict[str, Attack] = {name: self._make(name) for name in ATTACKS}

    def _make(self, name: str) -> Attack:
        wide = self.norm == "L1" and self.version == "standard"
        keys: dict[str, Any] = {
            "box": self.box, "compile": self.compile, "seed": self.seed, "autocast": self.autocast,
        }  # fmt: skip
        if name.startswith("apgd"):
            keys.update(norm=self.norm, eps=self.eps, large_radii=wide, eot=20 if self.version == "rand" else 1)
            if name == "apgd-t":
                return APGDT(self.model, targets=5 if wide else 9, **keys)
            restarts = 5 if wide or self.version in ("plus", "custom") else 1
            return APGD(self.model, restarts=restarts, loss=name.removeprefix("apgd-"), **keys)
        if name == "square":
            del keys["autocast"]
            return Square(self.model, self.norm, self.eps, n_queries=self.n_queries, **keys)
        keys.update(norm=self.norm, eps=self.eps)
        return FABT(self.model, targets=9, **keys) if name == "fab-t" else FAB(self.model, restarts=5, **keys)

    # --- the reference code's calls ---

    def run_standard_evaluation(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Any:  # fmt: skip
        """Adversarial points, or with `return_labels` (points, the model's answers there)."""
        found = self.run(x_orig, y_orig, bs, state_path)
        return (found.x_adv, self._answers(found.x_adv, bs)) if return_labels else found.x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Each attack alone on all points: name -> as `run_standard_evaluation` returns."""
        found = {}
        for name in self.attacks_to_run:
            x_adv = self._run(x_orig, y_orig, bs, None, [name]).x_adv
            found[name] = (x_adv, self._answers(x_adv, bs)) if return_labels else x_adv
        return found

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """The share of points that the model gets right."""
        return _share(self._answers(x_orig, bs) == y_orig)

    # --- ours ---

    def run(self, x: Tensor, y: Tensor, bs: int = 250, state_path: str | Path | None = None) -> Evaluation:
        """Evaluate, and say all that was found.

        Args:
            x: (n, ...) points in the box.
            y: (n,) int64 labels.
            bs: points at a time, in the engine by each processor; the state is written every four times as many.
            state_path: a file from which a killed run resumes; one a process under `torchrun`.
        """
        return self._run(x, y, bs, state_path, self.attacks_to_run)

    def _run(self, x: Tensor, y: Tensor, bs: int, state_path: str | Path | None, names: list[str]) -> Evaluation:
        check_call("AutoAttack", x, y, None, self.box)
        shard = Shard.of(len(x))
        mine = shard.rows.to(x.device)
        weights = list(self.model.state_dict().values()) if isinstance(self.model, torch.nn.Module) else []
        given = [{k: v for k, v in vars(self.attacks[n]).items() if k[0] != "_"} for n in names]
        settings = [{k: v for k, v in each.items() if k not in ("model", "batch_size")} for each in given]
        mark = (
            fingerprint(x, y, names, settings, self.proof is None, shard.rank, shard.world, *weights)
            if state_path is not None
            else ""
        )
        state = State(shard.path(state_path), mark, x[mine])
        doubts = [] if len(x) == 0 else _doubts.of_model(self._logits, x[: min(bs, 64)], self.version == "rand")
        if not state.restored:
            wrong = (self._answers(x[mine], bs) != y[mine]).cpu()
            state.fooled_by[wrong] = CLEAN
            if self.proof is not None:
                state.fooled_by[self._proven(x[mine], y[mine], bs) & ~wrong] = PROVEN
            state.write()
        bad = 0
        with tqdm(total=len(mine) * len(names), unit="point", disable=not self.verbose or shard.rank > 0) as bar:
            for number, name in enumerate(names):
                bad += self._one(number, name, x[mine], y[mine], mine, bs, state, bar)
                self._say(f"robust accuracy after {name}: {self._accuracy(state, number):.2%}", shard.rank)
        x_adv, fooled_by = shard.gather(state.x_adv.to(x.dtype), len(x)), shard.gather(state.fooled_by, len(x))
        accuracy = {"clean": _share(fooled_by != CLEAN)}
        for number, name in enumerate(names):
            accuracy[name] = _share(_stands(fooled_by, number))
        doubts += _doubts.of_result(accuracy, shard.total(bad), len(x))
        for doubt in doubts:
            self._say(f"warning: {doubt}", shard.rank)
        return Evaluation(
            x_adv.to(x.device), _stands(fooled_by, len(names)).to(x.device), fooled_by.to(x.device), accuracy,
            {name: shard.total(state.seconds.get(name, 0.0)) for name in names},
            {name: shard.total(state.evaluations.get(name, 0)) for name in names}, doubts,
        )  # fmt: skip

    def _one(
        self, number: int, name: str, x: Tensor, y: Tensor, index: Tensor, bs: int, state: State, bar: tqdm[Any]
    ) -> int:
        """One attack on the points that stand, chunk by chunk; how many points met a bad gradient."""
        attack, bad, chunk = self.attacks[name], 0, 4 * bs
        attack.batch_size = bs
        through = state.done.get(name, 0)
        bar.update(min(through, len(x)))
        while through < len(x):
            rows = through + torch.nonzero(state.fooled_by[through:] == STANDS)[:chunk, 0]
            end = int(rows[-1]) + 1 if len(rows) == chunk else len(x)
            if len(rows):
                began, at = time.perf_counter(), rows.to(x.device)
                found = attack.run(x[at], y[at], index[at])
                hit = found.success & self._inside(found.x_adv, x[at])
                state.x_adv[rows[hit.cpu()]] = found.x_adv[hit].cpu().to(state.x_adv.dtype)
                state.fooled_by[rows[hit.cpu()]] = number
                state.seconds[name] = state.seconds.get(name, 0.0) + time.perf_counter() - began
                state.evaluations[name] = state.evaluations.get(name, 0) + int(found.steps.sum())
                bad += int((found.bad_gradients > 0).sum())
            bar.update(end - through)
            through = state.done[name] = end
            bar.set_postfix_str(f"{name}, robust {self._accuracy(state, number):.2%}")
            state.write()
        return bad

    def _proven(self, x: Tensor, y: Tensor, bs: int) -> Tensor:
        assert self.proof is not None
        parts = [self.proof(a, b) for a, b in zip(x.split(bs), y.split(bs), strict=True)] if len(x) else []
        flags = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)
        if flags.shape != y.shape or flags.dtype != torch.bool:
            raise ValueError(f"AutoAttack: proof must return ({len(y)},) bool, got {tuple(flags.shape)} {flags.dtype}")
        return flags.cpu()

    def _inside(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Points within the ball, in float64: minimum-norm attacks may find some only outside."""
        return size(x_adv.double() - x.double(), self.norm) <= self.eps

    def _accuracy(self, state: State, number: int) -> float:
        return _share(_stands(state.fooled_by, number))

    def _logits(self, x: Tensor) -> Tensor:
        with self._victim.borrowed(x.device), torch.no_grad():
            return self._victim.logits(x, exact=True)

    def _answers(self, x: Tensor, bs: int) -> Tensor:
        parts = [self._logits(part).argmax(1) for part in x.split(bs)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=x.device)

    def _say(self, line: str, rank: int) -> None:
        if rank > 0:
            return
        if self.verbose:
            tqdm.write(line)
        if self.log_path is not None:
            with Path(self.log_path).open("a") as file:
                file.write(line + "\n")


def _stands(fooled_by: Tensor, number: int) -> Tensor:
    """Which points stand after attack `number`."""
    return (fooled_by == STANDS) | (fooled_by == PROVEN) | (fooled_by > number)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean()) if len(flags) else math.nan
