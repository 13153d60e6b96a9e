"""Projected gradient descent (Madry et al., ICLR 2018) and FGSM (Goodfellow et al., ICLR 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrobust import _checks, ops
from fastrobust.attacks._attack import check_call
from fastrobust.attacks._descent import Descent
from fastrobust.attacks._objective import LOSSES, Loss, Objective
from fastrobust.attacks._points import AttackResult, Points
from fastrobust.attacks._victim import Model, Victim
from fastrobust.threat import Box, Threat

__all__ = ["FGSM", "PGD", "PGDL2", "AttackResult"]

LANES = 128  # samples that keep the engine's blocks full


class PGD:
    """Projected gradient descent. ``PGD(model, eps=8/255)(x, y)`` returns adversarial examples.

    Each step moves along the steepest ascent direction of the norm and projects onto the ball and the box
    (`fastrobust.ops.pgd_step`). Drop-in for ``torchattacks.PGD``.

    Args:
        model: maps (batch, ...) to logits (batch, classes). Its modes, buffers, gradients and hooks are left as they
            were, also after an exception.
        eps: radius of the ball, in x's units.
        alpha: step length, in x's units.
        steps: number of gradient steps.
        random_start: start uniformly in the ball instead of at x.
        norm: "Linf", "L2" or "L1".
        restarts: independent random starts; each point keeps its best (fooled first, then highest loss).
        targeted: the labels given are targets to reach.
        loss: "ce", "margin", "dlr", "kl" (see `fastrobust.ops.logit_loss`) or a callable (logits, y) -> (batch,)
            losses to raise.
        box: (lo, hi), numbers or tensors of a sample's shape.
        early_stop: True: a point keeps the iterate that fooled the model and costs nothing more. An integer k: k more
            steps after that (friendly adversarial training, Zhang et al., 2020).
        compile: "auto" runs a compiled copy of the model (`fastrobust.network.compile`) where its gradients are those
            of the model and the attack is long enough to pay for making it; True makes it however short the attack;
            False runs the model itself. A model that is compiled already is used as it is.
        seed: key of the random draws, 0 .. 2^64 - 1; a repeated call repeats its draws.
        threat: `fastrobust.Linf(eps)` and the like, in place of eps, norm and box.
        mode: "eval", or "train" to attack with batch statistics (running ones are restored).
        projection: "exact", or for L2 "sequential": rescale to the ball, then clip (torchattacks' PGDL2).
        cycles: a point whose iterates repeat makes no more steps than change its result: it has seen all that it would
            reach. (In PyTorch's layers only with early_stop=True.)
        best: keep each point's best iterate (one that fools the model, then the highest loss) instead of the last.
        autocast: torch.bfloat16 or torch.float16 to run the steps' forward passes in 16 bits; success is always
            decided without it.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
        norm: str = "Linf",
        restarts: int = 1,
        targeted: bool = False,
        loss: Loss = "ce",
        box: Box = (0.0, 1.0),
        early_stop: bool | int = False,
        compile: str | bool = "auto",
        seed: int = 0,
        *,
        threat: Threat | None = None,
        mode: str = "eval",
        projection: str = "exact",
        best: bool = False,
        cycles: bool = True,
        autocast: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        if threat is not None:
            eps, norm, box = threat.eps, threat.norm, threat.box
        for key, number in (("eps", eps), ("alpha", alpha)):
            if not isinstance(number, Tensor) and not 0.0 <= float(number) < float("inf"):
                raise ValueError(f"{name}: {key} must be finite and >= 0, got {number!r}")
        _checks.check_norm(name, norm)
        _checks.check_box(name, box)
        for key, count, least in (("steps", steps, 0), ("restarts", restarts, 1), ("early_stop", early_stop, 0)):
            if not isinstance(count, int) or count < least:
                raise ValueError(f"{name}: {key} must be an integer >= {least}, got {count!r}")
        if not callable(loss) and loss not in LOSSES:
            raise ValueError(f"{name}: loss must be 'ce', 'margin', 'dlr', 'kl' or a callable, got {loss!r}")
        if targeted and loss == "kl":
            raise ValueError(f"{name}: loss must not be 'kl' when targeted is True")
        if compile not in ("auto", True, False):
            raise ValueError(f"{name}: compile must be 'auto', True or False, got {compile!r}")
        if projection not in ("exact", "sequential"):
            raise ValueError(f"{name}: projection must be 'exact' or 'sequential', got {projection!r}")
        if restarts > 1 and not random_start:
            raise ValueError(f"{name}: restarts must be 1 without random_start, got {restarts}")
        self.model, self.eps, self.alpha, self.steps = model, eps, alpha, steps
        self.random_start, self.norm, self.restarts, self.targeted = random_start, norm, restarts, targeted
        self.loss, self.box, self.early_stop, self.compile, self.seed = loss, box, early_stop, compile, seed
        self.mode, self.projection, self.best, self.cycles, self.autocast = mode, projection, best, cycles, autocast
        self._victim = Victim(name, model, mode, autocast)
        self._set_out()

    def _set_out(self) -> None:
        """Read the settings, which may have been changed since the last call."""
        self._objective = Objective(type(self).__name__, self._victim, self.loss, self.targeted)
        self._descent = Descent(self, self._objective)

    def __repr__(self) -> str:
        shown = ("eps", "alpha", "steps", "random_start", "norm", "restarts", "targeted", "loss", "early_stop", "seed")
        return f"{type(self).__name__}({', '.join(f'{k}={getattr(self, k)!r}' for k in shown)})"

    def explain(self) -> str:
        """What ran the model at the last call, and why."""
        recorded = self._descent.recorded
        return self._victim.explain() + (f"\n  {recorded}" if recorded else "")

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        start: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Tensor:
        """Adversarial examples for x (batch, ...) with labels y (batch,) int64: `run` without its last look at them."""
        return self._run(x, y, index, start, reference, judged=self.restarts > 1).x_adv

    def run(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        start: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> AttackResult:
        """Attack, and say what was reached.

        Args:
            x: (batch, ...) points in the box; float32, float64, or 16-bit for a 16-bit model (the iterate is then
                kept in float32 and returned rounded towards x).
            y: (batch,) int64 labels, or targets.
            index: (batch,) int64 sample ids that key the random draws; 0 .. batch - 1 if None.
            start: explicit starting points, projected onto ball and box first; replaces the random start.
            reference: clean logits for loss "kl"; computed when None.
        """
        return self._run(x, y, index, start, reference, judged=True)

    def _run(
        self, x: Tensor, y: Tensor, index: Tensor | None, start: Tensor | None, reference: Tensor | None, judged: bool
    ) -> AttackResult:
        name = type(self).__name__
        check_call(name, x, y, index, self.box)
        if start is not None:
            _checks.check_tensor(name, "start", start, _checks.FLOATS)
            _checks.check_same(name, "start", start, "x", x)
            if self.restarts > 1:
                raise ValueError(f"{name}: start must be None when restarts > 1, got restarts={self.restarts}")
        batch = x.shape[0]
        if x.numel() == 0:
            none = torch.zeros(batch, dtype=torch.int64, device=x.device)
            return AttackResult(x.detach().clone(), none.bool(), none.float(), none, none.clone())
        passes = self.steps * self.restarts
        self._set_out()
        with self._victim.borrowed(x.device):
            # Fresh tensors: the caller's may be inference tensors, or part of a graph.
            x = x.detach().clone()
            self._victim.compile(x, self.compile, passes)
            if index is None and self.restarts > 1:
                index = torch.arange(batch, device=x.device)
            work = Points(x, y, index, self.eps, self.alpha)
            work.reference = reference
            if self.loss == "kl" and reference is None:
                with torch.no_grad():
                    work.reference = self._victim.logits(x)
            return self._within_memory(work, start, judged)

    def _within_memory(self, work: Points, start: Tensor | None, judged: bool) -> AttackResult:
        """All starts; on halves of the points, one after the other, where memory runs out."""
        try:
            return self._restarts(work, start, judged)
        except torch.OutOfMemoryError:
            if len(work) == 1 or self.mode == "train":  # batch statistics are of the whole batch
                raise
        torch.cuda.empty_cache()
        rows = torch.arange(len(work), device=work.y.device)
        work.index = rows if work.index is None else work.index
        halves = [(work.select(at), None if start is None else start[at]) for at in rows.chunk(2)]
        return AttackResult(*map(torch.cat, zip(*(self._within_memory(*h, judged) for h in halves), strict=True)))

    def _restarts(self, work: Points, start: Tensor | None, judged: bool) -> AttackResult:
        """The best over the starts: fooled first, then the highest loss, then the earliest start."""
        if self.restarts == 1:
            return self._once(work, range(1), start, judged, self._engine_serves(work, len(work.y)))
        count = len(work.y)
        # The engine runs several starts of a small batch side by side; what each finds does not depend on that.
        together = min(self.restarts, max(1, LANES // count))
        native = self._engine_serves(work, count * together)
        together = together if native else 1
        best: AttackResult | None = None
        for first in range(0, self.restarts, together):
            draws = range(first, min(first + together, self.restarts))
            left = torch.arange(count, device=work.y.device)
            if self.early_stop and best is not None:
                left = left[~best.success]
                if len(left) == 0:
                    break
            whole = work if len(draws) == 1 and len(left) == count else work.select(left.repeat(len(draws)))
            every = self._once(whole, draws, start, judged, native)
            for found in map(AttackResult._make, zip(*(values.chunk(len(draws)) for values in every), strict=True)):
                if best is None:
                    best = found
                    continue
                rows = left
                if self.early_stop:  # as if it had not started where an earlier one was through
                    standing = torch.nonzero(~best.success[left])[:, 0]
                    rows, found = left[standing], AttackResult(*(values[standing] for values in found))
                best.improve(rows, found.x_adv, found.success, found.loss)
                best.steps[rows] += found.steps
                best.bad_gradients[rows] += found.bad_gradients
        assert best is not None
        return best

    def _once(self, whole: Points, draws: range, start: Tensor | None, judged: bool, native: bool) -> AttackResult:
        """These starts of all points, start by start, and `steps` steps from there."""
        parts = zip(whole.split(len(draws)), draws, strict=True)
        starts = [self._start(part, draw, start) for part, draw in parts]
        begin = starts[0] if len(starts) == 1 else torch.cat(starts)
        if not native:
            return self._descent.run(whole, begin, judged)
        if not (judged and self._victim.stands_in):
            return self._in_engine(whole, begin, judged)
        result = self._in_engine(whole, begin.clone(), judged)
        self._confirm(whole, result, begin)
        return result

    def _engine_serves(self, work: Points, points: int) -> bool:
        """Whether the engine has the network, the attack asks for nothing that it lacks, and there is enough to do."""
        compiled = self._victim.compiled
        if compiled is None or callable(self.loss) or (self.best and work.x.is_cuda):
            return False
        if not compiled.attackable(work.x):
            return False
        return self.compile is True or not self._victim.stands_in or compiled.worthwhile(points)

    def _in_engine(self, work: Points, x_adv: Tensor, judged: bool) -> AttackResult:
        """All steps in one native call."""
        compiled = self._victim.compiled
        assert compiled is not None
        assert not callable(self.loss)
        loss, label, target = self._objective.terms(work, compiled.classes)
        self._objective.check_classes(compiled.classes, work.y)
        patience = None if not self.early_stop else 0 if self.early_stop is True else self.early_stop
        success, value, steps, bad = compiled.pgd(
            x_adv, work.centre, label, loss, target, work.reference, self.steps, work.alpha, work.eps, self.norm,
            self.box, self.projection, patience, self.best, self.cycles, judged,
        )  # fmt: skip
        return AttackResult(x_adv, success, value, steps, bad.long())

    def _confirm(self, work: Points, result: AttackResult, begin: Tensor) -> None:
        """The model's own word on what its compiled copy found: where early stop ends, rounding decides.

        Points that were let go and do not fool the model are attacked again, by the model's word at each step.
        """
        let_go = result.success.clone()
        result.judge(*self._objective.verdict(result.x_adv, work))
        again = torch.nonzero(let_go & ~result.success)[:, 0]
        if self.early_stop and len(again):
            found = self._descent.run(work.select(again), begin[again], judged=True)
            for mine, new in zip(result, found, strict=True):
                mine[again] = new.to(mine.dtype)

    def _start(self, work: Points, draw: int, start: Tensor | None) -> Tensor:
        centre = work.centre
        if start is not None:
            return ops.project(start.detach().to(centre.dtype), centre, work.eps, self.norm, self.box)
        if self.random_start:
            return ops.random_start(centre, work.eps, self.norm, self.box, seed=self.seed, index=work.index, draw=draw)
        return centre.clone()


class FGSM(PGD):
    """The fast gradient sign method: one step of length eps from x (Goodfellow et al., ICLR 2015).

    Drop-in for ``torchattacks.FGSM``; takes PGD's other keywords.
    """

    def __init__(self, model: Model, eps: float = 8 / 255, **keywords: Any) -> None:
        threat = keywords.get("threat")
        super().__init__(model, eps, threat.eps if threat else eps, **{"steps": 1, "random_start": False, **keywords})


class PGDL2(PGD):
    """Drop-in for ``torchattacks.PGDL2``: L2 steps, rescaled to the ball and then clipped to the box.

    ``PGD(norm="L2")`` projects onto ball and box together and so uses the whole radius. `eps_for_division` is accepted
    and not needed: a zero gradient moves nothing.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        random_start: bool = True,
        eps_for_division: float = 1e-10,
        **keywords: Any,
    ) -> None:
        super().__init__(
            model, eps, alpha, steps, random_start, **{"norm": "L2", "projection": "sequential", **keywords}
        )
