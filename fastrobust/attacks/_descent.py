"""The steps of PGD through PyTorch: the model's own passes, or those of its lowered graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastrobust import ops
from fastrobust.attacks import _graph
from fastrobust.attacks._points import AttackResult, Points
from fastrobust.attacks._victim import to_model_dtype

if TYPE_CHECKING:
    from fastrobust.attacks._objective import Objective
    from fastrobust.attacks.pgd import PGD

__all__ = ["Descent"]


class Descent:
    """An attack's steps.

    Attributes:
        recorded: what was said of recording the steps as one CUDA graph.
    """

    def __init__(self, attack: PGD, objective: Objective) -> None:
        self._attack, self._objective, self._victim = attack, objective, objective.victim
        self.recorded = ""

    def run(self, whole: Points, x_adv: Tensor, judged: bool) -> AttackResult:
        """All steps from x_adv, which is overwritten; with early stop on a shrinking batch of the points standing."""
        count, attack, objective = len(whole.y), self._attack, self._objective
        result = AttackResult.empty(whole.x)
        live = whole.select(None)
        live.place = torch.arange(count, device=whole.x.device)
        live.active = torch.ones_like(live.place, dtype=torch.bool)
        live.x_adv, live.earlier = x_adv, x_adv
        live.cycled = torch.zeros_like(live.active)
        live.patience = torch.full_like(live.y, 0 if attack.early_stop is True else int(attack.early_stop))
        kept, bad = 0, self._recording(live)
        if bad is not None:
            result.steps.fill_(attack.steps)
            result.bad_gradients.copy_(bad)
        for step in range(attack.steps if bad is None else 0):
            x_in = to_model_dtype(live.x_adv, live.x).detach().requires_grad_()
            logits = self._victim.logits(x_in)
            if step == 0:
                objective.check_classes(logits.shape[1], live.y)
            value, prediction, slope = objective(logits, live)
            keep = None
            fooled = objective.fooled(prediction, live.y)
            if attack.best:
                result.improve(live.place, x_in.detach(), fooled, value, live.active)
            if attack.early_stop:
                through = live.active & fooled & (live.patience == 0)
                done = live.active & (through | live.cycled)
                # In 16-bit passes or a compiled copy a point is let go only once the model itself agrees.
                if self._victim.stands_in and bool(done.any()):
                    value, agreed = objective.verdict(x_in.detach(), live)
                    through &= agreed
                    done = live.active & (through | live.cycled)
                live.patience -= (fooled & (live.patience > 0)).long()
                if bool(done.any()):
                    if not attack.best:
                        at = live.place[done]
                        result.x_adv[at], result.success[at] = x_in.detach()[done], through[done]
                        result.loss[at] = value[done].to(result.loss.dtype)
                    live.active = live.active & ~done
                    keep = _standing(live.active, grain=max(16, count // 8))
                    if keep is not None and len(keep) == 0:
                        return result
            (gradient,) = torch.autograd.grad(logits, x_in, slope)
            if keep is not None:
                live, gradient = live.select(keep), gradient[keep]
            self._step(live, gradient)
            if attack.cycles and attack.early_stop is True:
                kept = self._look_back(live, step + 1, kept)
            result.steps[live.place] += live.active
            result.bad_gradients[live.place] += live.active & (live.flags != 1)
        x_out = to_model_dtype(live.x_adv, live.x)
        place = live.place[live.active]
        if not attack.best:
            result.x_adv[place] = x_out[live.active]
        if judged or attack.best:
            value, fooled = objective.verdict(x_out, live)
            if attack.best:
                result.improve(live.place, x_out, fooled, value, live.active)
            else:
                result.success[place] = fooled[live.active]
                result.loss[place] = value[live.active].to(result.loss.dtype)
        if judged and attack.best and self._victim.stands_in:
            result.judge(*objective.verdict(result.x_adv, whole))
        return result

    @staticmethod
    def _look_back(live: Points, made: int, kept: int) -> int:
        """Marks points whose iterate is back where it was after `kept` steps: what follows has been seen.

        The iterate compared with is put down after 1, 2, 4, 8, 16 steps, then every 16, later less often, as in the
        engine. Returns after how many it was last.
        """
        if kept:
            live.cycled = (live.x_adv == live.earlier).flatten(1).all(1)
        if made - kept < max(min(kept, 16), kept // 8):
            return kept
        live.earlier = live.x_adv.clone()
        return made

    def _recording(self, live: Points) -> Tensor | None:
        """All steps as one CUDA graph: the number of each point's bad gradients; None if they are made one by one."""
        attack, compiled, record = self._attack, self._victim.compiled, _graph.recorder(live.x.device)
        if compiled is None or compiled.engine is not None or record is None:
            return None
        if callable(attack.loss):
            reason = "the loss is a function of yours"
        elif attack.early_stop:
            reason = "early stop looks at every step's points"
        elif attack.best:
            reason = "every step's points are compared with the best"
        elif any(isinstance(end, Tensor) for end in attack.box):
            reason = "the box is made of tensors"
        elif self._victim.autocast is not None or torch.is_autocast_enabled(live.x.device.type):
            reason = "autocast keeps copies of its own"
        else:
            if attack.targeted and attack.loss == "dlr":
                self._objective.clean(live)
            settings = (attack.steps, attack.loss, attack.targeted, attack.norm, tuple(attack.box), attack.projection)
            kind = _graph.kind_of(live, *settings)
            loop = _graph.loop_for(compiled, live, kind, self._one, attack.steps, record)
            if isinstance(loop, _graph.Loop):
                self.recorded = "all steps are one CUDA graph"
                self._objective.check_classes(loop.classes, live.y)
                return loop.run(live)
            reason = loop
        self.recorded = f"step by step, since {reason}"
        return None

    def _one(self, live: Points) -> int:
        """A step of all points, in place; returns the number of classes."""
        x_in = to_model_dtype(live.x_adv, live.x).detach().requires_grad_()
        logits = self._victim.logits(x_in)
        (gradient,) = torch.autograd.grad(logits, x_in, self._objective(logits, live)[2])
        self._step(live, gradient)
        return logits.shape[1]

    def _step(self, work: Points, gradient: Tensor) -> None:
        attack = self._attack
        work.flags.zero_()
        ops.pgd_step_(
            work.x_adv, work.centre, gradient, work.alpha, work.eps, attack.norm, attack.box,
            projection=attack.projection, flags=work.flags,
        )  # fmt: skip


def _standing(active: Tensor, grain: int) -> Tensor | None:
    """The rows of a smaller batch that holds all active points, or None where the batch would stay as large.

    Its size is a multiple of `grain`, filled up with points that are done: libraries below keep memory for every batch
    size they have seen (oneDNN some 9 MB a size on a small CNN).
    """
    left = int(active.sum())
    size = -(-left // grain) * grain
    if size >= len(active):
        return None
    filler = torch.nonzero(~active)[: size - left, 0]
    return torch.cat([torch.nonzero(active)[:, 0], filler]).sort().values
