"""What an attack wants: a loss to raise, and when a point counts as fooled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastrobust import ops
from fastrobust.attacks._points import Points
from fastrobust.attacks._victim import Victim

__all__ = ["LOSSES", "Loss", "Objective"]

LOSSES = ("ce", "margin", "dlr", "kl")
Loss = str | Callable[[Tensor, Tensor], Tensor]


class Objective:
    """A loss of an attack on a model.

    Args:
        name: the attack, for error messages.
        victim: the model.
        loss: one of `LOSSES`, or a callable (logits, y) -> (batch,).
        targeted: whether labels are targets to reach.
    """

    def __init__(self, name: str, victim: Victim, loss: Loss, targeted: bool) -> None:
        self.name, self.victim, self.loss, self.targeted = name, victim, loss, targeted

    def __call__(self, logits: Tensor, work: Points) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the prediction, and d (sum of losses) / d logits."""
        z, y, kind = logits.detach(), work.y, self.loss
        if callable(kind):
            with torch.enable_grad():
                free = z.requires_grad_()
                value = kind(free, y)
                if value.shape != y.shape:
                    raise ValueError(f"{self.name}: loss must return shape ({len(y)},), got {tuple(value.shape)}")
                (slope,) = torch.autograd.grad(value.sum(), free)
            nan = torch.isnan(z).any(1)
            return value.detach(), z.argmax(1).masked_fill(nan, -1), slope
        if not self.targeted:
            reference = work.reference if kind == "kl" else None
            out = ops.logit_loss(z, y, kind, reference=None if reference is None else reference.detach().to(z.dtype))
        elif kind == "dlr":
            out = ops.logit_loss(z, self.clean(work), "dlr_targeted", target=y)
        else:
            out = ops.logit_loss(z, y, kind, target=y)
        return out.loss, out.prediction, out.grad

    def fooled(self, prediction: Tensor, y: Tensor) -> Tensor:
        """A prediction of -1 (NaN among the logits) fools nobody."""
        return prediction == y if self.targeted else (prediction != y) & (prediction >= 0)

    def verdict(self, x: Tensor, work: Points) -> tuple[Tensor, Tensor]:
        """The loss and whether a point is fooled, by the model's own word."""
        with torch.no_grad():
            logits = self.victim.logits(x, exact=True)
        value, prediction, _ = self(logits, work)
        return value, self.fooled(prediction, work.y)

    def clean(self, work: Points) -> Tensor:
        """Predictions at the clean points, computed once."""
        if work.clean is None:
            with torch.no_grad():
                work.clean = self.victim.logits(work.x).argmax(1)
        return work.clean

    def check_classes(self, classes: int, y: Tensor) -> None:
        largest = int(y.max())
        if largest >= classes:
            raise ValueError(f"{self.name}: y must be in 0 .. {classes - 1}, the model's classes, got {largest}")
