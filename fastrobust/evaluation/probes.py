"""What `diagnose` measures, a function a probe: numbers that JSON can hold, and no judgement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fastrobust import ops
from fastrobust.attacks import APGD, PGD, AttackResult, Square, _doubts
from fastrobust.attacks._rows import size
from fastrobust.attacks._victim import Victim
from fastrobust.data.keys import key
from fastrobust.threat import Threat

from . import directions as ways
from .metrics import predict

__all__ = [
    "Numbers",
    "Subject",
    "attacks",
    "derivative",
    "gradients",
    "passes",
    "radii",
    "restarts",
    "steps",
    "unbounded",
]

Numbers = dict[str, Any]

LOOKED_AT = 64  # points in the passes that look for chance
WHITE_STEPS, RESTART_STEPS, RADIUS_STEPS, FREE_STEPS = 50, 10, 20, 100
NOISES = 10  # uniform draws a point
MULTIPLES = (0.5, 1.0, 2.0, 4.0)  # radii, in eps
SCALES = (1 / 1024, 1 / 128, 1 / 16, 1 / 4)  # finite differences: half their width, in eps
SIGNS = 4  # random directions
ROUNDING = 16  # what the rounding of a forward pass may be, in ulps of its largest logit


@dataclass
class Subject:
    """A model, points, and what is known of them.

    Attributes:
        right: (n,) bool: the points that the model gets right, and that are attacked.
        standing: (n,) bool: those that no attack within eps has broken.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    index: Tensor
    seed: int
    batch_size: int
    compile: str | bool
    right: Tensor
    standing: Tensor

    def rows(self) -> tuple[Tensor, ...]:
        """The rows of the points that are right, a batch at a time."""
        parts: tuple[Tensor, ...] = self.right.nonzero()[:, 0].split(self.batch_size)
        return parts

    def pgd(self, steps: int, eps: float, **keywords: Any) -> PGD:
        """PGD that may walk 2.5 times the radius (Madry et al., 2018); one step is FGSM's."""
        alpha = eps if steps == 1 else 2.5 * eps / steps
        threat = replace(self.threat, eps=eps)
        given = {"early_stop": True, "compile": self.compile, "seed": self.seed, **keywords}
        return PGD(self.model, alpha=alpha, steps=steps, random_start=steps > 1, threat=threat, **given)

    def attack(self, attack: Any) -> tuple[Tensor, Tensor]:
        """Which points stand an attack, by the model's word on what it returned, and which met a bad gradient: (n,)."""
        stands, bad = self.right.clone(), torch.zeros_like(self.right)
        for rows in self.rows():
            found: AttackResult = attack.run(self.x[rows], self.y[rows], index=self.index[rows])
            stands[rows] = self.says(found.x_adv) == self.y[rows]
            bad[rows] = found.bad_gradients > 0
        if attack.eps <= self.threat.eps:
            self.standing &= stands
        return stands, bad

    def says(self, x: Tensor) -> Tensor:
        return predict(self.model, x, self.batch_size)

    def share(self, points: Tensor) -> float:
        """Of all points."""
        return float(points.double().mean())


def passes(subject: Subject, victim: Victim) -> Numbers:
    """What a few forward passes show."""
    x = subject.x[:LOOKED_AT]
    with victim.borrowed(x.device), torch.no_grad():
        seen = _doubts.look(lambda x: victim.logits(x, exact=True), x)
        logits = victim.logits(x, exact=True)
    low, high = (float(end) if math.isfinite(end) else None for end in torch.aminmax(logits))
    return {**seen._asdict(), "classes": logits.shape[1], "lowest": low, "highest": high}


def gradients(subject: Subject, victim: Victim) -> Numbers:
    """Shares of the points that are right: where a loss's gradient is zero or not finite, where the loss is 0."""
    names = ("zero", "not_finite", "saturated", "margin_zero")
    counts = dict.fromkeys(names, 0)
    for rows in subject.rows():
        with victim.borrowed(subject.x.device):
            x, y = subject.x[rows], subject.y[rows]
            value, slope = ways.gradient(victim, x, y, "ce")
            _, margin = ways.gradient(victim, x, y, "margin")
        largest = slope.flatten(1).abs().amax(1)
        counts["zero"] += int((largest == 0).sum())
        counts["not_finite"] += int((~torch.isfinite(slope.flatten(1)).all(1)).sum())
        counts["saturated"] += int((value == 0).sum())
        counts["margin_zero"] += int((margin.flatten(1).abs().amax(1) == 0).sum())
    return {name: count / int(subject.right.sum()) for name, count in counts.items()}


def derivative(subject: Subject, victim: Victim) -> Numbers:
    """The gradient of the margin to the runner-up against central differences of it.

    Along the steepest direction and a few random ones, the change from x - h d to x + h d (both in the box) is compared
    with what the gradient at x says. A point's error is |change - said| / (|change| + |said|): 0 where they agree, 1
    where one is zero or the sign is wrong. Rounding is taken off first. Each point uses the smallest h at which the
    change is well above the rounding; one without such an h is flat, and left out.
    """
    errors: dict[str, list[Tensor]] = {"along": [], "random": []}
    for rows in subject.rows():
        x, y, index = subject.x[rows], subject.y[rows], subject.index[rows]
        with victim.borrowed(x.device):
            free = x.detach().clone().requires_grad_()
            logits = victim.logits(free, exact=True)
            # The runner-up stays the same, so that its margin is smooth where the logits are.
            pair = torch.stack([logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1), y], 1)
            (slope,) = torch.autograd.grad(_margin(logits, pair).sum(), free)
        rounding = ROUNDING * torch.finfo(x.dtype).eps * logits.detach().abs().amax(1).double()
        norm = subject.threat.norm
        random = [ways.unit(ways.rademacher(x, subject.seed, index, draw), norm) for draw in range(SIGNS)]
        for name, directions in (("along", [ways.steepest(slope, norm)]), ("random", random)):
            error = torch.full_like(rounding, torch.nan)
            for scale in SCALES:
                pairs = [_change(subject, victim, x, h, slope, pair) for h in _steps(subject, directions, scale)]
                change, said = (torch.stack(each) for each in zip(*pairs, strict=True))
                whole = change.norm(dim=0) + said.norm(dim=0)
                off = ((change - said).norm(dim=0) - rounding).clamp_min(0) / whole
                error = torch.where(error.isnan() & (whole > 10 * rounding), off, error)
            errors[name].append(error)
    every = {name: torch.cat(parts) for name, parts in errors.items()}
    worst = torch.fmax(every["along"], every["random"])
    found = {name: _mean(values) for name, values in (*every.items(), ("error", worst))}
    return {**found, "compared": float((~worst.isnan()).double().mean())}


def _steps(subject: Subject, directions: Sequence[Tensor], scale: float) -> list[Tensor]:
    return [scale * subject.threat.eps * direction for direction in directions]


def _change(
    subject: Subject, victim: Victim, x: Tensor, step: Tensor, slope: Tensor, pair: Tensor
) -> tuple[Tensor, Tensor]:
    """How the margin changes from x - step to x + step, and what the gradient says to that: (batch,) each."""
    down, up = (ways.clip(x + sign * step, subject.threat.box) for sign in (-1, 1))
    with victim.borrowed(x.device), torch.no_grad():
        change = _margin(victim.logits(up, exact=True), pair) - _margin(victim.logits(down, exact=True), pair)
    said = (slope.double() * (up.double() - down.double())).flatten(1).sum(1)
    return change, torch.where(torch.isfinite(said), said, 0)


def _margin(logits: Tensor, pair: Tensor) -> Tensor:
    other, own = logits.double().gather(1, pair).unbind(1)
    return other - own


def _mean(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None


def steps(subject: Subject, counts: Sequence[int]) -> Numbers:
    """Accuracy under PGD with so many steps, each run on its own; the share of points that met a bad gradient."""
    found: Numbers = {"steps": list(counts), "accuracy": []}
    for count in counts:
        stands, bad = subject.attack(subject.pgd(count, subject.threat.eps))
        found["accuracy"].append(subject.share(stands))
        found["bad_gradients"] = float(bad[subject.right].double().mean())
    return found


def restarts(subject: Subject, counts: Sequence[int]) -> Numbers:
    """Accuracy at the best point of so many random starts, which the model is asked about anew each time."""
    found: Numbers = {"restarts": list(counts), "accuracy": [], "steps": RESTART_STEPS}
    best, stands = subject.x.clone(), subject.right.clone()
    for before, count in pairwise((0, *counts)):
        keywords = {"restarts": count - before, "seed": key(subject.seed, count)}
        attack = subject.pgd(RESTART_STEPS, subject.threat.eps, **keywords)
        for rows in stands.nonzero()[:, 0].split(subject.batch_size):
            best[rows] = attack.run(subject.x[rows], subject.y[rows], index=subject.index[rows]).x_adv
        stands = subject.right & (subject.says(best) == subject.y)
        subject.standing &= stands
        found["accuracy"].append(subject.share(stands))
    return found


def attacks(subject: Subject, queries: int) -> Numbers:
    """APGD with two losses, Square, and noise alone, on the same points."""
    keywords: Numbers = {"threat": subject.threat, "seed": subject.seed, "compile": subject.compile}
    keywords["batch_size"] = subject.batch_size
    ce, dlr = (
        subject.attack(APGD(subject.model, steps=WHITE_STEPS, loss=loss, **keywords))[0] for loss in ("ce", "dlr")
    )
    square = subject.attack(Square(subject.model, n_queries=queries, **keywords))[0]
    noise, white = _noise(subject), ce & dlr
    found: Numbers = {"steps": WHITE_STEPS, "queries": queries, "draws": NOISES}
    for name, stands in (("apgd-ce", ce), ("apgd-dlr", dlr), ("white", white), ("square", square), ("noise", noise)):
        found[name] = subject.share(stands)
    return {**found, "only_square": subject.share(white & ~square), "only_noise": subject.share(white & ~noise)}


def _noise(subject: Subject) -> Tensor:
    """Which points stand draws from the ball."""
    threat, stands = subject.threat, subject.right.clone()
    for draw in range(NOISES):
        for rows in stands.nonzero()[:, 0].split(subject.batch_size):
            x = ops.random_start(
                subject.x[rows], threat.eps, threat.norm, threat.box,
                seed=key(subject.seed, NOISES), index=subject.index[rows], draw=draw,
            )  # fmt: skip
            stands[rows] = subject.says(x) == subject.y[rows]
    subject.standing &= stands
    return stands


def radii(subject: Subject) -> Numbers:
    """Accuracy under PGD at growing radii, each attacked on its own."""
    sizes = [multiple * subject.threat.eps for multiple in MULTIPLES]
    found = [subject.share(subject.attack(subject.pgd(RADIUS_STEPS, eps))[0]) for eps in sizes]
    return {"eps": sizes, "accuracy": found, "steps": RADIUS_STEPS}


def unbounded(subject: Subject) -> Numbers:
    """Accuracy under PGD when all of the box is allowed; where it has no end, all that the points span."""
    lo, hi = (torch.as_tensor(end, dtype=torch.float64, device=subject.x.device) for end in subject.threat.box)
    width = torch.where(torch.isfinite(hi - lo), hi - lo, float(subject.x.max() - subject.x.min()))
    eps = float(size(width.expand(subject.x.shape[1:])[None], subject.threat.norm))
    stands, _ = subject.attack(subject.pgd(FREE_STEPS, max(eps, subject.threat.eps)))
    return {"eps": eps, "accuracy": subject.share(stands), "steps": FREE_STEPS}
