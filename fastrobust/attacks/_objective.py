"""What an attack wants: a loss to raise, and when a point counts as fooled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastrobust import ops
from fastrobust.attacks._points import Points
from fastrobust.attacks._victim import Victim, to_model_dtype

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
        eot: forward passes of a random model over which a gradient is averaged. It predicts the class of largest mean
            probability over them.
    """

    def __init__(self, name: str, victim: Victim, loss: Loss, targeted: bool, eot: int = 1) -> None:
        self.name, self.victim, self.loss, self.targeted, self.eot = name, victim, loss, targeted, eot

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
            return value.detach(), self.predicted(z.detach()), slope
        kind, label, target = self.terms(work, z.shape[1])
        reference = work.reference if kind == "kl" else None
        reference = None if reference is None else reference.detach().to(z.dtype)
        out = ops.logit_loss(z, label, kind, target=target, reference=reference)
        return out.loss, out.prediction, out.grad

    def terms(self, work: Points, classes: int) -> tuple[str, Tensor, Tensor | None]:
        """The loss as `ops.logit_loss` knows it: its name, labels and targets.

        The DLR loss has no meaning for fewer than 3 classes, with a target than 4: then it is the margin.
        """
        kind, target = str(self.loss), work.y if self.targeted else work.target
        if kind != "dlr" or classes < (3 if target is None else 4):
            return "margin" if kind == "dlr" else kind, work.y, target
        if target is None:
            return kind, work.y, None
        return "dlr_targeted", self.clean(work) if self.targeted else work.y, target

    def native(self, x: Tensor) -> bool:
        """Whether the engine gives losses and gradients at points like x."""
        compiled = self.victim.compiled
        return compiled is not None and not callable(self.loss) and self.eot == 1 and compiled.attackable(x)

    def gradient(self, x: Tensor, work: Points) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the prediction, and d (sum of losses) / d x, in the dtype of x; means over `eot` passes."""
        if self.native(x):
            assert self.victim.compiled is not None
            kind, label, target = self.terms(work, self.victim.compiled.classes)
            reference = work.reference if kind == "kl" else None
            _, value, prediction, slope = self.victim.compiled.gradient(x, label, kind, target, reference)
            return value, prediction, slope
        x_in = to_model_dtype(x, work.x).detach()
        total: tuple[Tensor, Tensor] | None = None
        seen = []
        for _ in range(self.eot):
            x_in = x_in.detach().requires_grad_()
            logits = self.victim.logits(x_in)
            value, prediction, slope = self(logits, work)
            (slope,) = torch.autograd.grad(logits, x_in, slope)
            slope = slope.to(x.dtype)
            total = (value, slope) if total is None else (total[0] + value, total[1] + slope)
            seen.append(logits.detach())
        assert total is not None
        return total[0] / self.eot, _agreed(seen, prediction), total[1] / self.eot

    def combination(self, x: Tensor, work: Points, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, classes), and the gradients of k combinations of them, (n, k, ...); means over `eot` passes.

        Args:
            coefficients: (n, k, classes): combination i of point r is sum_j coefficients[r, i, j] z_j.
        """
        count = coefficients.shape[1]
        if self.native(x):
            assert self.victim.compiled is not None
            rows, y = (x, work.y) if count == 1 else (x.repeat_interleave(count, 0), work.y.repeat_interleave(count))
            logits, _, _, slope = self.victim.compiled.gradient(rows, y, "linear", None, coefficients.flatten(0, 1))
            return logits[::count], slope.view(len(x), count, *x.shape[1:])
        x_in = to_model_dtype(x, work.x).detach()
        total: tuple[Tensor, Tensor] | None = None
        for _ in range(self.eot):
            x_in = x_in.detach().requires_grad_()
            logits = self.victim.logits(x_in)
            wanted = coefficients.to(logits.dtype).unbind(1)
            slopes = [torch.autograd.grad(logits, x_in, c, retain_graph=c is not wanted[-1])[0] for c in wanted]
            slope = torch.stack(slopes, 1).to(x.dtype)
            logits = logits.detach()
            total = (logits, slope) if total is None else (total[0] + logits, total[1] + slope)
        assert total is not None
        return total[0] / self.eot, total[1] / self.eot

    def predict(self, x: Tensor, work: Points) -> Tensor:
        """Predictions by whatever runs the model; -1 where a logit is NaN."""
        with torch.no_grad():
            return self.predicted(self.victim.logits(to_model_dtype(x, work.x)))

    @staticmethod
    def predicted(logits: Tensor) -> Tensor:
        return logits.argmax(1).masked_fill(torch.isnan(logits).any(1), -1)

    def fooled(self, prediction: Tensor, y: Tensor) -> Tensor:
        """A prediction of -1 (NaN among the logits) fools nobody."""
        return prediction == y if self.targeted else (prediction != y) & (prediction >= 0)

    def verdict(self, x: Tensor, work: Points) -> tuple[Tensor, Tensor]:
        """The loss and whether a point is fooled, by the model's own word: the mean of `eot` passes."""
        seen, total = [], torch.zeros((), device=x.device)
        for _ in range(self.eot):
            with torch.no_grad():
                seen.append(self.victim.logits(x, exact=True))
            self.check_classes(seen[0].shape[1], work.y)
            value, prediction, _ = self(seen[-1], work)
            total = total + value
        return total / self.eot, self.fooled(_agreed(seen, prediction), work.y)

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


def _agreed(seen: list[Tensor], prediction: Tensor) -> Tensor:
    """The class of largest mean probability over passes; a lone pass's own prediction. -1 where a logit is NaN."""
    if len(seen) == 1:
        return prediction
    share = torch.stack([logits.softmax(1) for logits in seen]).mean(0)
    return share.argmax(1).masked_fill(share.isnan().any(1), -1)
