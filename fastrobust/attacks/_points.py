"""What an attack works on, and what it hands back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastrobust import _checks

__all__ = ["AttackResult", "Points"]


class AttackResult(NamedTuple):
    """What an attack found, per sample.

    Attributes:
        x_adv: (batch, ...) the returned points, dtype and shape of x.
        success: (batch,) bool: the model, in its own precision, misclassifies x_adv (targeted: predicts the target).
        loss: (batch,) the attack's loss at x_adv.
        steps: (batch,) int64, gradient steps spent.
        bad_gradients: (batch,) int64, steps at which the gradient was zero throughout or held a NaN or Inf.
    """

    x_adv: Tensor
    success: Tensor
    loss: Tensor
    steps: Tensor
    bad_gradients: Tensor

    @classmethod
    def empty(cls, x: Tensor) -> AttackResult:
        """Nothing found yet: x itself, a loss of NaN."""
        steps, bad = (torch.zeros(len(x), dtype=torch.int64, device=x.device) for _ in range(2))
        loss = torch.full((len(x),), torch.nan, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return cls(x.clone(), torch.zeros_like(steps, dtype=torch.bool), loss, steps, bad)

    def improve(self, rows: Tensor, x: Tensor, success: Tensor, loss: Tensor, among: Tensor | None = None) -> None:
        """Take over, among these rows, the points that are better: fooled first, then the higher loss."""
        was, had = self.success[rows], self.loss[rows]
        better = (success & ~was) | ((success == was) & ((loss > had) | torch.isnan(had)))
        if among is not None:
            better &= among
        at = rows[better]
        self.x_adv[at], self.success[at], self.loss[at] = x[better], success[better], loss[better].to(had.dtype)

    def judge(self, loss: Tensor, success: Tensor) -> None:
        """Put down a verdict on all points."""
        self.loss.copy_(loss)
        self.success.copy_(success)


class Points:
    """The points being attacked, and what belongs to each."""

    def __init__(self, x: Tensor, y: Tensor, index: Tensor | None, eps: float | Tensor, alpha: float | Tensor) -> None:
        self.x, self.y, self.index = x, y, index
        self.centre = x if x.dtype in _checks.ITERATES else x.float()
        self.eps, self.alpha = (_each(v, x) for v in (eps, alpha))
        self.flags = torch.zeros(len(y), dtype=torch.int32, device=y.device)
        self.reference: Tensor | None = None  # clean logits, for "kl"
        self.clean: Tensor | None = None  # clean predictions, for the targeted dlr
        self.target: Tensor | None = None  # classes to move towards, where the labels are still those to leave

    if TYPE_CHECKING:  # an attack keeps what it must remember of each point in attributes of its own, a row a point

        def __getattr__(self, name: str) -> Tensor: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def select(self, rows: Tensor | None) -> Points:
        """A copy that holds these rows of everything, or all of them."""
        part = Points.__new__(Points)
        for key, value in self.__dict__.items():
            by_row = isinstance(value, Tensor) and value.shape[:1] == self.y.shape
            setattr(part, key, value[rows] if by_row and rows is not None else value)
        return part

    def __len__(self) -> int:
        return len(self.y)

    def put(self, rows: Tensor, part: Points) -> None:
        """Replace these rows by those of `part`, in place."""
        for key, value in self.__dict__.items():
            if isinstance(value, Tensor) and value.shape[:1] == self.y.shape:
                value[rows] = getattr(part, key)

    def split(self, parts: int) -> list[Points]:
        """As many parts of equal size, in order."""
        if parts == 1:
            return [self]
        return [self.select(rows) for rows in torch.arange(len(self.y), device=self.y.device).chunk(parts)]


def _each(value: float | Tensor, x: Tensor) -> float | Tensor:
    return value.expand(len(x)) if isinstance(value, Tensor) else float(value)
