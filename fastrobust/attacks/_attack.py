"""What iterative attacks share: the model borrowed, points served until decided, successes confirmed by the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fastrobust import _checks
from fastrobust.attacks._objective import LOSSES, Loss, Objective
from fastrobust.attacks._points import AttackResult, Points
from fastrobust.attacks._victim import Model, Victim, to_model_dtype
from fastrobust.scheduler import in_threads, serve
from fastrobust.threat import Box

__all__ = ["Attack", "check_call"]

SLOTS = {"cpu": 128, "cuda": 512}  # points in a batch
ENGINE_SLOTS = 256  # in a batch of the engine, whose time for each is the same; what a step costs besides is shared
LEAST, MOST = 16, 8  # points for which a thread of its own pays; such threads, as Python lets one run at a time
LOOK = {"cpu": 1, "cuda": 10}  # steps between looks at who is decided: each makes the host wait for the device

Part = TypeVar("Part")


class Attack:
    """An attack made of steps on a batch; each point leaves as soon as it is decided and the next takes its place.

    A subclass makes the state of points (`begin`) and one step of all of them (`step`). Per-point state is a tensor
    with a row a point, an attribute of `Points`; a step works row by row, so no result depends on who shares the batch.

    Args:
        model: maps (batch, ...) to logits (batch, classes); left as it was.
        targeted: labels are targets to reach.
        loss: one of `LOSSES`, or a callable (logits, y) -> (batch,). "kl" is the divergence from the predictions at x,
            and has no targets.
        restarts: independent runs; a point fooled in one needs no other.
        box: (lo, hi), numbers or tensors of a sample's shape.
        compile: "auto", True or False, as in `PGD`.
        seed: key of the random draws.
        batch_size: points attacked at a time; None: 256 for each processor in the engine, else 128 on a CPU, 512 on a
            GPU. Halved when memory runs out.
        eot: draws of a random model over which a gradient is averaged (expectation over transformation, Athalye et
            al., ICML 2018). Its mean probabilities over as many draws say what fools it.
        autocast: torch.bfloat16 or torch.float16 to run forward passes in 16 bits; what fools the model is decided
            without it, and a point that only seemed to is attacked again in full precision.
    """

    starts_at_x = False  # a further run from there would be the same: such attacks take no restarts

    def __init__(
        self,
        model: Model,
        *,
        targeted: bool = False,
        loss: Loss = "ce",
        restarts: int = 1,
        box: Box = (0.0, 1.0),
        compile: str | bool = "auto",
        seed: int = 0,
        batch_size: int | None = None,
        eot: int = 1,
        autocast: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        _checks.check_box(name, box)
        if not callable(loss) and loss not in LOSSES:
            raise ValueError(f"{name}: loss must be one of {', '.join(LOSSES)} or a callable, got {loss!r}")
        if targeted and loss == "kl":
            raise ValueError(f"{name}: loss must not be 'kl' when targeted is True")
        if compile not in ("auto", True, False):
            raise ValueError(f"{name}: compile must be 'auto', True or False, got {compile!r}")
        for key, count in (("restarts", restarts), ("batch_size", batch_size), ("eot", eot)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{name}: {key} must be an integer >= 1, got {count!r}")
        if self.starts_at_x and restarts != 1:
            raise ValueError(f"{name}: restarts must be 1, since it starts at x itself, got {restarts}")
        self.model, self.targeted, self.loss, self.restarts, self.box = model, targeted, loss, restarts, box
        self.compile, self.seed, self.batch_size, self.eot = compile, seed, batch_size, eot
        self._victim = Victim(name, model, "eval", autocast)
        self._room: int | None = None  # points for which there was memory
        self._objective = Objective(name, self._victim, loss, targeted, eot)

    # --- what a subclass gives ---

    def passes(self) -> int:
        """Forward-backward passes that a point may take: tells whether compiling pays."""
        raise NotImplementedError

    def begin(self, points: Points, draw: int) -> None:
        """Make the state of points that start their run number `draw`."""
        raise NotImplementedError

    def step(self, points: Points) -> Tensor:
        """One step of all points, in place; says which are decided, (n,) bool. Those of `points.done` stay as they are.

        The result is in `points.kept`, `points.fooled`, `points.value`, `points.steps`, `points.bad`.
        """
        raise NotImplementedError

    # --- calls ---

    def __call__(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
        """Adversarial examples for x (batch, ...) with labels, or targets, y (batch,) int64."""
        return self.run(x, y, index).x_adv

    def run(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> AttackResult:
        """Attack, and say what was reached. A point that the model gets wrong already is returned as it is.

        Args:
            x: (batch, ...) points in the box; float32, float64, or 16-bit for a 16-bit model.
            y: (batch,) int64 labels, or targets.
            index: (batch,) int64 sample ids that key the random draws; 0 .. batch - 1 if None.
        """
        name = type(self).__name__
        check_call(name, x, y, index, self.box)
        result = AttackResult.empty(x.detach())
        if x.numel() == 0:
            return result
        self._objective = Objective(name, self._victim, self.loss, self.targeted, self.eot)
        with self._victim.borrowed(x.device):
            x = x.detach().clone()  # the caller's may be an inference tensor, or part of a graph
            ids = torch.arange(len(x), device=x.device) if index is None else index
            work = Points(x, y, ids, 0.0, 0.0)
            self._victim.compile(x, self.compile, self.passes())
            if self.loss == "kl":
                work.reference = self._logits(work.x)
            self._judge(result, work)
            self.prepare(work)
            self._attack(work, result)
            if self._victim.stands_in:
                self._confirm(work, result)
        return result

    def explain(self) -> str:
        """What ran the model at the last call, and why."""
        return self._victim.explain()

    def prepare(self, work: Points) -> None:
        """Before any point is served: whatever belongs to the points in all runs."""

    def _slots(self, x: Tensor, native: bool = False) -> int:
        """Points in a batch of PyTorch's layers, or of the engine."""
        most = self.batch_size or (ENGINE_SLOTS if native else SLOTS.get(x.device.type, SLOTS["cuda"]))
        return most if self._room is None else min(most, self._room)

    def _halve(self, slots: int) -> None:
        """After memory ran out for so many points."""
        self._room = max(1, slots // 2)
        torch.cuda.empty_cache()

    def _in_parts(self, x: Tensor, look: Callable[[Tensor], Part]) -> list[Part]:
        """look(rows) over all rows of x, a batch at a time."""
        rows, parts = torch.arange(len(x), device=x.device), []
        while len(rows):
            slots = self._slots(x)
            try:
                parts.append(look(rows[:slots]))
            except torch.OutOfMemoryError:
                if slots == 1:
                    raise
                self._halve(slots)
                continue
            rows = rows[slots:]
        return parts

    def _verdict(self, x: Tensor, work: Points) -> tuple[Tensor, Tensor]:
        """The losses and what is fooled, by the model's own word."""
        parts = self._in_parts(x, lambda at: self._objective.verdict(x[at], work.select(at)))
        return torch.cat([value for value, _ in parts]), torch.cat([fooled for _, fooled in parts])

    def _judge(self, result: AttackResult, work: Points) -> None:
        result.judge(*self._verdict(result.x_adv, work))

    def _logits(self, x: Tensor) -> Tensor:
        """Clean logits."""
        with torch.no_grad():
            return torch.cat(self._in_parts(x, lambda at: self._victim.logits(x[at])))

    def _attack(self, work: Points, result: AttackResult) -> None:
        """Runs of the points that stand, one after another; what is better is put down in `result`."""
        for draw in range(self.runs()):
            rows = torch.nonzero(self._standing(result))[:, 0]
            if len(rows) == 0:
                return
            found = self._serve(work.select(rows), draw)
            result.improve(rows, found.x_adv, found.success, found.loss)
            result.steps[rows] += found.steps
            result.bad_gradients[rows] += found.bad_gradients

    def _standing(self, result: AttackResult) -> Tensor:
        """Which points a further run may help, (batch,) bool."""
        return ~result.success

    def runs(self) -> int:
        """How many runs a point may take."""
        return self.restarts

    def _serve(self, work: Points, draw: int) -> AttackResult:
        """One run of all these points; in the engine each processor serves a part of them."""
        spread = work.x.device.type == "cpu" and self._objective.native(work.x)
        workers = min(torch.get_num_threads(), len(work) // LEAST, MOST) if spread else 1
        if workers < 2:
            return self._serve_part(work, draw, lambda: None)
        parts = [torch.arange(k, len(work), workers) for k in range(workers)]
        found = AttackResult.empty(work.x)
        outcomes = in_threads(parts, lambda rows, check: self._serve_part(work.select(rows), draw, check))
        for rows, outcome in zip(parts, outcomes, strict=True):
            for into, values in zip(found, outcome, strict=True):
                into[rows] = values
        return found

    def _serve_part(self, work: Points, draw: int, check: Callable[[], None]) -> AttackResult:
        found, kind = AttackResult.empty(work.x), work.x.device.type
        open_ = torch.arange(len(work), device=work.x.device)  # not yet retired

        def admit(ids: Tensor) -> Points:
            part = work.select(open_[ids])
            part.number, part.done = open_[ids], torch.zeros_like(ids, dtype=torch.bool)
            part.kept, part.fooled = part.centre.clone(), torch.zeros_like(ids, dtype=torch.bool)
            part.value, part.steps, part.bad = found.loss[part.number], torch.zeros_like(ids), torch.zeros_like(ids)
            self.begin(part, draw)
            return part

        def advance(part: Points) -> Tensor:
            check()
            decided: Tensor = part.done | self.step(part)
            part.done = decided
            return decided

        def retire(part: Points) -> None:
            at = part.number
            found.x_adv[at], found.success[at] = to_model_dtype(part.kept, part.x), part.fooled
            found.loss[at], found.steps[at] = part.value.to(found.loss.dtype), part.steps
            found.bad_gradients[at] = part.bad
            retired[at] = True

        retired = torch.zeros_like(found.success)
        while len(open_):
            native = self._objective.native(work.x)
            slots = self._slots(work.x, native)
            grain = 1 if native else max(1, slots // 8)
            try:
                serve(len(open_), slots, admit, advance, retire, device=work.x.device,
                      look=LOOK.get(kind, LOOK["cuda"]), grain=grain)  # fmt: skip
            except torch.OutOfMemoryError:
                if slots == 1:
                    raise
                self._halve(slots)
            open_ = torch.nonzero(~retired)[:, 0]
        return found

    def _confirm(self, work: Points, result: AttackResult) -> None:
        """The model's own word on what its compiled copy found; points let go wrongly are attacked on the model."""
        let_go = result.success.clone()
        self._judge(result, work)
        wrong = torch.nonzero(let_go & ~result.success)[:, 0]
        if len(wrong) == 0:
            return
        victim = self._victim
        stand_in, victim.compiled, victim.autocast = (victim.compiled, victim.autocast), None, None
        part = AttackResult(*(values[wrong] for values in result))
        self._attack(work.select(wrong), part)
        for mine, new in zip(result, part, strict=True):
            mine[wrong] = new
        victim.compiled, victim.autocast = stand_in


def check_call(name: str, x: Tensor, y: Tensor, index: Tensor | None, box: Box) -> None:
    """The arguments of a call: finite points in the box, labels >= 0, ids."""
    _checks.check_points(name, x, box, _checks.FLOATS)
    _checks.check_labels(name, "y", y, x)
    if len(y) and int(y.min()) < 0:
        raise ValueError(f"{name}: y must be >= 0, got {int(y.min())}")
    if index is not None:
        _checks.check_labels(name, "index", index, x)
