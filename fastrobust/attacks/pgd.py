"""Projected gradient descent (Madry et al., ICLR 2018) and FGSM (Goodfellow et al., ICLR 2015)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastrobust import _checks, ops
from fastrobust.attacks import _graph
from fastrobust.attacks._points import AttackResult, Points
from fastrobust.attacks._victim import Victim, to_model_dtype
from fastrobust.threat import Box, Threat

__all__ = ["FGSM", "PGD", "PGDL2", "AttackResult"]

Model = Callable[[Tensor], Tensor]


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
        loss: str | Callable[[Tensor, Tensor], Tensor] = "ce",
        box: Box = (0.0, 1.0),
        early_stop: bool | int = False,
        compile: str | bool = "auto",
        seed: int = 0,
        *,
        threat: Threat | None = None,
        mode: str = "eval",
        projection: str = "exact",
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
        if not callable(loss) and loss not in ("ce", "margin", "dlr", "kl"):
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
        self.mode, self.projection, self.autocast = mode, projection, autocast
        self._victim = Victim(name, model, mode, autocast)
        self._recorded = ""  # what was said of a recording of the steps

    def __repr__(self) -> str:
        shown = ("eps", "alpha", "steps", "random_start", "norm", "restarts", "targeted", "loss", "early_stop", "seed")
        return f"{type(self).__name__}({', '.join(f'{k}={getattr(self, k)!r}' for k in shown)})"

    def explain(self) -> str:
        """What ran the model at the last call, and why."""
        compiled, reason = self._victim.compiled, self._victim.reason
        if compiled is None:
            return f"the model itself: {reason or 'no call yet'}"
        return compiled.explain() + (f"\n  {self._recorded}" if self._recorded else "")

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
        _checks.check_points(name, x, self.box, _checks.FLOATS)
        _checks.check_labels(name, "y", y, x)
        if len(y) and int(y.min()) < 0:
            raise ValueError(f"{name}: y must be >= 0, got {int(y.min())}")
        if index is not None:
            _checks.check_labels(name, "index", index, x)
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
        with self._victim.borrowed(x.device):
            # Fresh tensors: the caller's may be inference tensors, or part of a graph.
            x = x.detach().clone()
            self._victim.compile(x, self.compile, passes)
            ids = torch.arange(batch, device=x.device) if index is None else index
            work = Points(x, y, ids, self.eps, self.alpha)
            work.reference = reference
            if self.loss == "kl" and reference is None:
                with torch.no_grad():
                    work.reference = self._victim.logits(x)
            return self._restarts(work, start, judged)

    def _restarts(self, work: Points, start: Tensor | None, judged: bool) -> AttackResult:
        best = self._once(work, 0, start, judged)
        for draw in range(1, self.restarts):
            left = torch.arange(len(work.y), device=work.y.device)
            if self.early_stop:
                left = left[~best.success]
                if len(left) == 0:
                    break
            found = self._once(work.select(left), draw, None, judged)
            old = [part[left] for part in best]
            better = (found.success & ~old[1]) | ((found.success == old[1]) & (found.loss > old[2]))
            for mine, new in zip(best[:3], found[:3], strict=False):
                mine[left[better]] = new[better]
            best.steps[left] += found.steps
            best.bad_gradients[left] += found.bad_gradients
        return best

    def _once(self, whole: Points, draw: int, start: Tensor | None, judged: bool) -> AttackResult:
        """One start, and `steps` steps from there."""
        begin = self._start(whole, draw, start)
        if not self._engine_serves(whole):
            return self._in_pytorch(whole, begin, judged)
        result = self._in_engine(whole, begin.clone(), judged)
        if judged and self._victim.stands_in:
            self._confirm(whole, result, begin)
        return result

    def _in_pytorch(self, whole: Points, x_adv: Tensor, judged: bool) -> AttackResult:
        """With early stop on a shrinking batch of the points still standing."""
        count = len(whole.y)
        result = AttackResult(
            whole.x.clone(),
            torch.zeros(count, dtype=torch.bool, device=whole.x.device),
            torch.full((count,), torch.nan, dtype=torch.promote_types(whole.x.dtype, torch.float32)).to(whole.x.device),
            torch.zeros(count, dtype=torch.int64, device=whole.x.device),
            torch.zeros(count, dtype=torch.int64, device=whole.x.device),
        )
        live = whole.select(None)
        live.place = torch.arange(count, device=whole.x.device)
        live.active = torch.ones_like(live.place, dtype=torch.bool)
        live.x_adv = x_adv
        live.patience = torch.full_like(live.y, 0 if self.early_stop is True else int(self.early_stop))
        bad = self._in_graph(live)
        if bad is not None:
            result.steps.fill_(self.steps)
            result.bad_gradients.copy_(bad)
        for step in range(self.steps if bad is None else 0):
            x_in = to_model_dtype(live.x_adv, live.x).detach().requires_grad_()
            logits = self._victim.logits(x_in)
            if step == 0:
                self._check_classes(logits.shape[1], live.y)
            value, prediction, slope = self._loss(logits, live)
            keep = None
            if self.early_stop:
                fooled = self._fooled(prediction, live.y)
                done = live.active & fooled & (live.patience == 0)
                # In 16-bit passes or a compiled copy a point is let go only once the model itself agrees.
                if self._victim.stands_in and bool(done.any()):
                    done &= self._fooled(self._predict(x_in.detach()), live.y)
                live.patience -= (fooled & (live.patience > 0)).long()
                if bool(done.any()):
                    at = live.place[done]
                    result.x_adv[at], result.success[at] = x_in.detach()[done], True
                    result.loss[at] = value[done].to(result.loss.dtype)
                    live.active = live.active & ~done
                    keep = _standing(live.active, grain=max(16, count // 8))
                    if keep is not None and len(keep) == 0:
                        return result
            (gradient,) = torch.autograd.grad(logits, x_in, slope)
            if keep is not None:
                live, gradient = live.select(keep), gradient[keep]
            self._step(live, gradient)
            result.steps[live.place] += live.active
            result.bad_gradients[live.place] += live.active & (live.flags != 1)
        x_out = to_model_dtype(live.x_adv, live.x)
        place = live.place[live.active]
        result.x_adv[place] = x_out[live.active]
        if judged:
            with torch.no_grad():
                logits = self._victim.logits(x_out, exact=True)
            value, prediction, _ = self._loss(logits, live)
            result.success[place] = self._fooled(prediction, live.y)[live.active]
            result.loss[place] = value[live.active].to(result.loss.dtype)
        return result

    def _in_graph(self, live: Points) -> Tensor | None:
        """All steps as one CUDA graph: the number of each point's bad gradients; None if they are made one by one."""
        compiled, record = self._victim.compiled, _graph.recorder(live.x.device)
        self._recorded, reason = "", ""
        if compiled is None or compiled.engine is not None or record is None:
            return None
        if callable(self.loss):
            reason = "the loss is a function of yours"
        elif self.early_stop:
            reason = "early stop looks at every step's points"
        elif any(isinstance(end, Tensor) for end in self.box):
            reason = "the box is made of tensors"
        elif self.autocast is not None or torch.is_autocast_enabled(live.x.device.type):
            reason = "autocast keeps copies of its own"
        else:
            if self.targeted and self.loss == "dlr":
                self._clean(live)
            settings = (type(self), self.steps, self.loss, self.targeted, self.norm, tuple(self.box), self.projection)
            kind = _graph.kind_of(live, *settings)
            loop = _graph.loop_for(compiled, live, kind, self._one_step, self.steps, record)
            if isinstance(loop, _graph.Loop):
                self._recorded = "all steps are one CUDA graph"
                self._check_classes(loop.classes, live.y)
                return loop.run(live)
            reason = loop
        self._recorded = f"step by step, since {reason}"
        return None

    def _one_step(self, live: Points) -> int:
        """A step of all points, in place; returns the number of classes."""
        x_in = to_model_dtype(live.x_adv, live.x).detach().requires_grad_()
        logits = self._victim.logits(x_in)
        (gradient,) = torch.autograd.grad(logits, x_in, self._loss(logits, live)[2])
        self._step(live, gradient)
        return logits.shape[1]

    def _engine_serves(self, work: Points) -> bool:
        """Whether the engine has the network, and the attack asks for nothing that it lacks."""
        compiled = self._victim.compiled
        return compiled is not None and not callable(self.loss) and compiled.attackable(work.x)

    def _in_engine(self, work: Points, x_adv: Tensor, judged: bool) -> AttackResult:
        """All steps in one native call."""
        compiled = self._victim.compiled
        assert compiled is not None
        assert not callable(self.loss)
        loss, label, target = self.loss, work.y, None
        if self.targeted:
            loss = "dlr_targeted" if loss == "dlr" else loss
            label, target = (self._clean(work) if loss == "dlr_targeted" else work.y), work.y
        self._check_classes(compiled.classes, work.y)
        patience = None if not self.early_stop else 0 if self.early_stop is True else self.early_stop
        success, value, steps, bad = compiled.pgd(
            x_adv, work.centre, label, loss, target, work.reference, self.steps, work.alpha, work.eps, self.norm,
            self.box, self.projection, patience, judged,
        )  # fmt: skip
        return AttackResult(x_adv, success, value, steps, bad.long())

    def _confirm(self, work: Points, result: AttackResult, begin: Tensor) -> None:
        """The model's own word on what its compiled copy found: where early stop ends, rounding decides.

        Points that were let go and do not fool the model are attacked again, by the model's word at each step.
        """
        let_go = result.success.clone()
        with torch.no_grad():
            logits = self._victim.logits(result.x_adv, exact=True)
        value, prediction, _ = self._loss(logits, work)
        result.loss.copy_(value)
        result.success.copy_(self._fooled(prediction, work.y))
        again = torch.nonzero(let_go & ~result.success)[:, 0]
        if self.early_stop and len(again):
            found = self._in_pytorch(work.select(again), begin[again], judged=True)
            for mine, new in zip(result, found, strict=True):
                mine[again] = new.to(mine.dtype)

    def _clean(self, work: Points) -> Tensor:
        if work.clean is None:
            with torch.no_grad():
                work.clean = self._victim.logits(work.x).argmax(1)
        return work.clean

    def _start(self, work: Points, draw: int, start: Tensor | None) -> Tensor:
        centre = work.centre
        if start is not None:
            return ops.project(start.detach().to(centre.dtype), centre, work.eps, self.norm, self.box)
        if self.random_start:
            return ops.random_start(centre, work.eps, self.norm, self.box, seed=self.seed, index=work.index, draw=draw)
        return centre.clone()

    def _step(self, work: Points, gradient: Tensor) -> None:
        work.flags.zero_()
        ops.pgd_step_(
            work.x_adv, work.centre, gradient, work.alpha, work.eps, self.norm, self.box,
            projection=self.projection, flags=work.flags,
        )  # fmt: skip

    def _loss(self, logits: Tensor, work: Points) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the prediction, and d (sum of losses) / d logits."""
        z, y, kind = logits.detach(), work.y, self.loss
        if callable(kind):
            with torch.enable_grad():
                free = z.requires_grad_()
                value = kind(free, y)
                if value.shape != y.shape:
                    raise ValueError(
                        f"{type(self).__name__}: loss must return shape ({len(y)},), got {tuple(value.shape)}"
                    )
                (slope,) = torch.autograd.grad(value.sum(), free)
            nan = torch.isnan(z).any(1)
            return value.detach(), z.argmax(1).masked_fill(nan, -1), slope
        if not self.targeted:
            out = ops.logit_loss(z, y, kind, reference=_as(work.reference, z) if kind == "kl" else None)
        elif kind == "dlr":
            out = ops.logit_loss(z, self._clean(work), "dlr_targeted", target=y)
        else:
            out = ops.logit_loss(z, y, kind, target=y)
        return out.loss, out.prediction, out.grad

    def _check_classes(self, classes: int, y: Tensor) -> None:
        largest = int(y.max())
        if largest >= classes:
            name = type(self).__name__
            raise ValueError(f"{name}: y must be in 0 .. {classes - 1}, the model's classes, got {largest}")

    def _fooled(self, prediction: Tensor, y: Tensor) -> Tensor:
        return prediction == y if self.targeted else (prediction != y) & (prediction >= 0)

    def _predict(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self._victim.logits(x, exact=True)
        return logits.argmax(1).masked_fill(torch.isnan(logits).any(1), -1)


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


def _as(reference: Tensor | None, z: Tensor) -> Tensor | None:
    return None if reference is None else reference.detach().to(z.dtype)


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
