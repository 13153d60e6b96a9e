"""Clean accuracy and accuracy under attack.

Two rules keep the numbers honest. A point counts as robust only if the model is right on the point itself
and on what the attack returned, re-evaluated here and not taken from the attack's own flags. And a logit
that is NaN is a wrong answer, never a right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Attack = Callable[[Tensor, Tensor], Tensor]
"""Maps (x, y) to adversarial points of x's shape; an attack of this library also has ``run``."""

Progress = Callable[[int, int], None]
"""Called as ``progress(points done, points in all)``."""

Found = Callable[[Tensor, Tensor], None]
"""Called as ``found(rows, x_adv)`` with points that an attack has just broken."""


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
    check_points("accuracy", x, y)
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
    check_points("robust_accuracy", x, y)
    correct = predict(model, x, batch_size) == y
    return survive(model, x, y, attack, correct, batch_size, progress).double().mean().item()


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


def survive(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    correct: Tensor,
    batch_size: int,
    progress: Progress | None,
    found: Found | None = None,
) -> Tensor:
    """Which of the points that are right now are still right after the attack: a new (batch,) bool.

    ``found(rows, x_adv)`` is called with the points that are not, per batch.
    """
    alive = correct.nonzero().squeeze(1)
    survived = correct.clone()
    done = 0
    for index in alive.split(batch_size) if len(alive) else ():
        x_adv = perturb(attack, x[index], y[index], index)
        right = predict(model, x_adv, batch_size) == y[index]
        survived[index] = right
        if found is not None:
            found(index[~right], x_adv[~right])
        done += len(index)
        if progress is not None:
            progress(done, len(alive))
    return survived


def _decide(logits: Tensor) -> Tensor:
    return torch.where(logits.isnan().any(dim=1), -1, logits.argmax(dim=1))


def check_points(name: str, x: Tensor, y: Tensor) -> None:
    if y.shape != x.shape[:1]:
        raise ValueError(f"{name}: y must have shape ({len(x)},), got {tuple(y.shape)}")
    if not len(x):
        raise ValueError(f"{name}: x must have at least 1 point, got 0")


def _check_batch_size(name: str, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"{name}: batch_size must be at least 1, got {batch_size}")
