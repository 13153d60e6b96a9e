"""The attacks that `fastrobust attack` offers, and how each answers: which points are still right at which radius."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastrobust import attacks, evaluation
from fastrobust.attacks import AttackResult
from fastrobust.attacks._rows import size

from .errors import UserError

__all__ = ["ATTACKS", "OPTIONS", "Found", "Watch", "options_of", "run"]

OPTIONS = ("steps", "alpha", "restarts", "loss", "queries")


@dataclass(frozen=True)
class Kind:
    """An attack of the command line: its class, its norms, the options it has with their defaults."""

    make: Callable[..., Any]
    norms: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    minimum_norm: bool = False  # looks for the nearest point, and so answers all radii at once


BALLS = ("Linf", "L2", "L1")
ATTACKS = {
    "pgd": Kind(attacks.PGD, BALLS, {"steps": 20, "alpha": None, "restarts": 1, "loss": "ce"}),
    "apgd": Kind(attacks.APGD, BALLS, {"steps": 100, "restarts": 1, "loss": "ce"}),
    "apgd-t": Kind(attacks.APGDT, BALLS, {"steps": 100, "restarts": 1}),
    "square": Kind(attacks.Square, BALLS, {"queries": 5000, "restarts": 1}),
    "autoattack": Kind(attacks.AutoAttack, BALLS, {"queries": 5000}),
    "fab": Kind(attacks.FAB, BALLS, {"steps": 100, "restarts": 1}, True),
    "fmn": Kind(attacks.FMN, (*BALLS, "L0"), {"steps": 100}, True),
    "ddn": Kind(attacks.DDN, ("L2",), {"steps": 100}, True),
    "deepfool": Kind(attacks.DeepFool, ("Linf", "L2"), {"steps": 50}, True),
}


class Found(NamedTuple):
    """What an evaluation found of n points.

    Attributes:
        correct: (radii, n) bool: what is still right.
        broken_at: (n,) float64: the smallest eps that broke it, for an attack that minimises a norm the smallest
            norm found; 0 for clean errors, inf for points that stand.
        x_adv: (n, ...) the points that broke the model; clean ones where there is none.
        notes: further entries of results.json.
    """

    correct: Tensor
    broken_at: Tensor
    x_adv: Tensor
    notes: dict[str, Any]


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The attack's options, as given or by default. UserError for one it does not have, or a norm it cannot have."""
    kind = ATTACKS[args.attack]
    for name in OPTIONS:
        if getattr(args, name) is not None and name not in kind.options:
            has = ", ".join(f"--{option}" for option in kind.options)
            raise UserError(f"--{name}: {args.attack} has no such option; it has {has}")
    if args.norm not in kind.norms:
        raise UserError(f"--norm: {args.attack} is for {', '.join(kind.norms)}, got {args.norm}")
    if args.state is not None and (args.attack != "autoattack" or len(set(args.eps) - {0.0}) != 1):
        raise UserError("--state: needs --attack autoattack and a single --eps")
    return {name: default if getattr(args, name) is None else getattr(args, name)
            for name, default in kind.options.items()}  # fmt: skip


class Watch:
    """A bar on stderr: points done over all radii, the accuracy that is left so far, the time to go."""

    def __init__(self, points: int, radii: int, quiet: bool) -> None:
        self.points, self.passed, self.broken = points, -1, 0
        hide = True if quiet else None  # None: where stderr is no terminal
        self.bar = tqdm(total=points * radii, unit="point", disable=hide, file=sys.stderr)

    def start(self) -> None:
        """The next radius begins."""
        self.passed, self.broken = self.passed + 1, 0

    def at(self, eps: float, done: int, total: int) -> None:
        """So many of the `total` points that are right at all smaller radii are attacked at this one."""
        postfix = f"eps {eps:.4g}, accuracy so far {(total - self.broken) / self.points:.1%}"
        self.bar.set_postfix_str(postfix, refresh=False)
        self.bar.update(self.passed * self.points + self.points - total + done - self.bar.n)


def run(
    network: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace, options: Mapping[str, Any], radii: list[float]
) -> Found:
    """Attack x (n, ...) with labels y (n,) at all radii, ascending from 0.

    Args:
        args: the command's arguments; `options` are the attack's own.
    """
    kind = ATTACKS[args.attack]
    if kind.minimum_norm:
        return _nearest(network, _attack(network, args, options, None), x, y, args, radii)
    if args.attack == "autoattack" and len(radii) == 2:
        return _autoattack(network, x, y, args, options, radii)
    watch, x_adv = Watch(len(x), len(radii) - 1, args.quiet), x.clone()

    def attack_at(eps: float) -> _Watched:
        attack = _attack(network, args, options, eps)
        return _Watched(_Ensemble(attack) if args.attack == "autoattack" else attack, x_adv, watch)

    with watch.bar:
        correct = evaluation.sweep(network, x, y, attack_at, radii, args.batch_size, watch.at).correct
    broken_at = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for eps, row in reversed(list(zip(radii, correct.cpu(), strict=True))):
        broken_at[~row] = eps
    x_adv[correct[-1] | ~correct[0]] = x[correct[-1] | ~correct[0]]
    return Found(correct.cpu(), broken_at, x_adv.cpu(), {})


def _attack(network: nn.Module, args: argparse.Namespace, options: Mapping[str, Any], eps: float | None) -> Any:
    keys = {"n_queries" if name == "queries" else name: value for name, value in options.items()}
    keys |= {"box": tuple(args.box), "seed": args.seed}
    if args.attack != "ddn":
        keys["norm"] = args.norm
    if eps is not None:
        keys["eps"] = eps
    if args.attack == "pgd":  # steps that can cross the ball and still settle (Madry et al., ICLR 2018)
        assert eps is not None
        keys["alpha"] = 2.5 * eps / options["steps"] if options["alpha"] is None else options["alpha"]
        keys["early_stop"] = True
    if args.attack == "autoattack":
        keys["verbose"] = not args.quiet
    elif args.attack != "pgd":
        keys["batch_size"] = args.batch_size
    return ATTACKS[args.attack].make(network, **keys)


class _Watched:
    """An attack whose points are kept, and counted."""

    def __init__(self, attack: Any, x_adv: Tensor, watch: Watch) -> None:
        self.attack, self.x_adv, self.watch = attack, x_adv, watch
        watch.start()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.run(x, y, torch.arange(len(x), device=x.device)).x_adv

    def run(self, x: Tensor, y: Tensor, index: Tensor) -> AttackResult:
        found: AttackResult = self.attack.run(x, y, index)
        self.x_adv[index] = found.x_adv
        self.watch.broken += int(found.success.sum())
        return found


class _Ensemble:
    """AutoAttack's attacks in their order on a batch, with the draws that each sample has in AutoAttack itself."""

    def __init__(self, auto: attacks.AutoAttack) -> None:
        self.auto = auto

    def run(self, x: Tensor, y: Tensor, index: Tensor) -> AttackResult:
        whole = AttackResult.empty(x)
        for name in self.auto.attacks_to_run:
            rows = torch.nonzero(~whole.success)[:, 0]
            if len(rows):
                found = self.auto.attacks[name].run(x[rows], y[rows], index[rows])
                # Attacks that minimise a norm may find points outside the ball.
                hit = found.success & (size(found.x_adv.double() - x[rows].double(), self.auto.norm) <= self.auto.eps)
                whole.x_adv[rows[hit]], whole.success[rows[hit]] = found.x_adv[hit], True
        return whole


def _nearest(
    network: nn.Module, attack: Any, x: Tensor, y: Tensor, args: argparse.Namespace, radii: list[float]
) -> Found:
    """One run of an attack that minimises a norm: the norms that it finds are the whole curve."""
    right, x_adv = evaluation.predict(network, x, args.batch_size) == y, x.clone()
    distance = torch.where(right, torch.inf, 0.0).double()
    alive, done = torch.nonzero(right)[:, 0], 0
    watch = Watch(len(x), 1, args.quiet)
    watch.start()
    with watch.bar:
        for rows in alive.split(args.batch_size) if len(alive) else ():
            points = attack.run(x[rows], y[rows], rows).x_adv
            wrong = evaluation.predict(network, points, args.batch_size) != y[rows]
            x_adv[rows[wrong]] = points[wrong]
            distance[rows[wrong]] = size(points[wrong].double() - x[rows[wrong]].double(), args.norm)
            done += len(rows)
            watch.broken = int((distance[alive] <= radii[-1]).sum())
            watch.at(radii[-1], done, len(alive))
    distance = distance.cpu()
    correct = torch.stack([distance > eps for eps in radii])
    return Found(correct, distance, x_adv.cpu(), {"median_norm": _median(distance[right.cpu()])})


def _median(distance: Tensor) -> float | None:
    """Of the points that the model gets right; None where that is infinite, or there are none."""
    middle = distance.quantile(0.5).item() if len(distance) else torch.inf
    return middle if middle < torch.inf else None


def _autoattack(
    network: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace, options: Mapping[str, Any], radii: list[float]
) -> Found:
    """The ensemble itself, which writes its state and says its doubts."""
    auto = _attack(network, args, options, radii[-1])
    try:
        found = auto.run(x, y, args.batch_size, args.state)
    except (ValueError, OSError) as error:
        if args.state is not None and (isinstance(error, OSError) or str(error).startswith("state_path")):
            raise UserError(str(error).replace("state_path", "--state")) from error
        raise
    right = evaluation.predict(network, x, args.batch_size) == y
    stands = right & (evaluation.predict(network, found.x_adv, args.batch_size) == y)
    broken_at = torch.where(stands, torch.inf, torch.where(right, radii[-1], 0.0)).double()
    x_adv = torch.where((right & ~stands).view(-1, *[1] * (x.dim() - 1)), found.x_adv, x)
    notes = {"after": found.accuracy, "seconds_of": found.seconds, "doubts": found.doubts}
    return Found(torch.stack([right, stands]).cpu(), broken_at.cpu(), x_adv.cpu(), notes)
