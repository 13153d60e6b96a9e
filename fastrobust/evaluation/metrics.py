"""Clean accuracy, accuracy under attack, and the curve of accuracy against eps.

Three rules keep the numbers honest. A point counts as robust only if the model is right on the point itself
and on what the attack returned, re-evaluated here and not taken from the attack's own flags. A point broken
at a small eps is broken at every larger one, because the small ball lies inside the large one. And a logit
that is NaN is a wrong answer, never a right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

Attack = Callable[[Tensor, Tensor], Tensor]
"""Maps (x, y) to adversarial points of x's shape; an attack of this library also has ``run``."""

Progress = Callable[[int, int], None]
"""Called as ``progress(points done, points in all)``."""


@dataclass(frozen=True)
class Sweep:
    """Accuracy against eps: ``eps`` ascending, ``correct`` (len(eps), n) bool: what is still right."""

    eps: tuple[float, ...]
    correct: Tensor

    @property
    def accuracy(self) -> tuple[float, ...]:
        """The share of right answers in [0, 1] for each eps; it never rises."""
        return tuple(row.double().mean().item() for row in self.correct)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of ``model`` in eval mode and give each its own mode back, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def predict(model: nn.Module, x: Tensor, batch_size: int = 250) -> Tensor:
    """The predicted classes of x (batch, ...) in eval mode: (batch,) int64, and -1 where a logit is NaN."""
    _check_batch_size("predict", batch_size)
    with eval_mode(model), torch.no_grad():
        parts = [_decide(model(part)) for part in x.split(batch_size)] if len(x) else []
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=x.device)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 250) -> float:
    """The share of x (batch, ...) that the model classifies as y (batch,), in [0, 1].

    Raises ValueError if x and y differ in length or there is no point at all.
    """
    _check_points("accuracy", x, y)
    return (predict(model, x, batch_size) == y).double().mean().item()


def robust_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> float:
    """The share of x (batch, ...) classified as y (batch,) both as it is and after ``attack``, in [0, 1].

    An upper bound on the true robust accuracy: a better attack can only lower it. Points that are wrong
    before the attack are not attacked. Raises ValueError if x and y differ in length, there is no point, or
    the attack returns another shape or NaN.
    """
    _check_points("robust_accuracy", x, y)
    correct = predict(model, x, batch_size) == y
    return _survive(model, x, y, attack, correct, batch_size, progress).double().mean().item()


def sweep(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack_at: Callable[[float], Attack],
    eps: Sequence[float],
    batch_size: int = 250,
    progress: Callable[[float, int, int], None] | None = None,
    method: str = "ascend",
) -> Sweep:
    """Accuracy under ``attack_at(e)`` for every e of ``eps``; at e = 0 it is the clean accuracy.

    Shapes as in `robust_accuracy`. The curve cannot rise: a point broken at one radius is broken at all larger ones.
    With method "ascend" each radius attacks the points that withstood the smaller ones. "bisect" looks for the radius
    at which a point breaks by halving, so that k radii cost a point at most log2(k + 1) attacks, rounded up; it takes
    a point that withstands a radius to withstand the smaller ones, where "ascend" tries them all.
    ``progress(e, points done, points in all)`` is called per batch. Raises ValueError if ``eps`` is empty, negative or
    not strictly ascending, or the method another.
    """
    _check_points("sweep", x, y)
    radii = tuple(float(e) for e in eps)
    if not radii or radii[0] < 0 or any(b <= a for a, b in pairwise(radii)):
        raise ValueError(f"sweep: eps must be ascending and at least 0, got {list(eps)}")
    if method not in ("ascend", "bisect"):
        raise ValueError(f"sweep: method must be 'ascend' or 'bisect', got {method!r}")
    correct = predict(model, x, batch_size) == y
    if method == "bisect":
        return Sweep(radii, _bisect(model, x, y, attack_at, radii, correct, batch_size, progress))
    rows = []
    for e in radii:
        if e > 0:
            report = None if progress is None else _bind(progress, e)
            correct = _survive(model, x, y, attack_at(e), correct, batch_size, report)
        rows.append(correct)
    return Sweep(radii, torch.stack(rows))


def _bisect(
    model: nn.Module, x: Tensor, y: Tensor, attack_at: Callable[[float], Attack], radii: tuple[float, ...],
    correct: Tensor, batch_size: int, progress: Callable[[float, int, int], None] | None,
) -> Tensor:  # fmt: skip
    """(radii, n) bool: what is still right. Each point lies between a radius it withstands and one that breaks it."""
    stands = torch.where(correct, 0 if radii[0] == 0 else -1, -2)  # the largest radius known to be withstood
    breaks = torch.where(correct, len(radii), stands + 1)  # the smallest known to break it
    while bool((breaks - stands > 1).any()):
        middle = (stands + breaks) // 2
        for number, e in enumerate(radii):
            group = (middle == number) & (breaks - stands > 1)
            if bool(group.any()):
                report = None if progress is None else _bind(progress, e)
                alive = _survive(model, x, y, attack_at(e), group, batch_size, report)
                stands[alive], breaks[group & ~alive] = number, number
    return torch.arange(len(radii), device=x.device)[:, None] < breaks[None] if len(x) else correct[None]


def perturb(attack: Attack, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """``attack`` on x, telling an attack of this library which samples these are.

    Its random draws are keyed by sample, so a point starts at the same place whatever else is in the batch.
    """
    run = getattr(attack, "run", None)
    x_adv: Tensor = attack(x, y) if run is None else run(x, y, index=index).x_adv
    if x_adv.shape != x.shape:
        raise ValueError(f"attack: result must have the shape of x {tuple(x.shape)}, got {tuple(x_adv.shape)}")
    if not bool(torch.isfinite(x_adv).all()):
        raise ValueError("attack: result must be finite, got NaN or infinity")
    return x_adv.detach()


def _survive(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    correct: Tensor,
    batch_size: int,
    progress: Progress | None,
) -> Tensor:
    """Which of the points that are right now are still right after the attack: a new (batch,) bool."""
    alive = correct.nonzero().squeeze(1)
    survived = correct.clone()
    done = 0
    for index in alive.split(batch_size) if len(alive) else ():
        x_adv = perturb(attack, x[index], y[index], index)
        survived[index] = predict(model, x_adv, batch_size) == y[index]
        done += len(index)
        if progress is not None:
            progress(done, len(alive))
    return survived


def _decide(logits: Tensor) -> Tensor:
    return torch.where(logits.isnan().any(dim=1), -1, logits.argmax(dim=1))


def _bind(progress: Callable[[float, int, int], None], e: float) -> Progress:
    return lambda done, total: progress(e, done, total)


def _check_points(name: str, x: Tensor, y: Tensor) -> None:
    if y.shape != x.shape[:1]:
        raise ValueError(f"{name}: y must have shape ({len(x)},), got {tuple(y.shape)}")
    if not len(x):
        raise ValueError(f"{name}: x must have at least 1 point, got 0")


def _check_batch_size(name: str, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"{name}: batch_size must be at least 1, got {batch_size}")
