"""The steps of an attack as one CUDA graph: recorded at the second attack of a kind, replayed from then on.

The first runs step by step, so that a lone batch or a radius that changes from call to call costs no recording.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastrobust.attacks._points import Points
from fastrobust.network import Compiled

__all__ = ["Loop", "kind_of", "loop_for", "recorder"]

MOST = 4  # kinds of attack remembered for a network; each recorded one keeps its memory
WARM_UP = 3  # steps before a recording, as PyTorch's documentation has it: libraries set themselves up
SEEN = "attacks of this kind are recorded from the second on"
# What a step reads or writes, of a `Points`.
HELD = ("x", "centre", "y", "eps", "alpha", "reference", "clean", "x_adv", "flags")

Step = Callable[[Points], int]  # makes one step in place; returns the number of classes
Recorder = Callable[[Callable[[], None], Callable[[], None], torch.device], Callable[[], None]]


class Loop:
    """All steps of an attack, recorded over memory that stays.

    Args:
        points: an attack of the kind; only its shapes and layouts matter later.
        step: one step; nothing of it is kept if `record` keeps nothing.
        steps: how many.
        record: takes a step and the loop, on a device, makes the step and returns what repeats the loop.

    Attributes:
        classes: how many logits a sample has.
    """

    def __init__(self, points: Points, step: Step, steps: int, record: Recorder) -> None:
        copies: dict[int, Tensor] = {}
        self._held = mine = points.select(None)
        for name in HELD:
            value = getattr(points, name)
            if isinstance(value, Tensor):
                setattr(mine, name, copies.setdefault(id(value), value.detach().clone()))
        self._bad = torch.zeros_like(points.y)
        self._lock = Lock()
        self.classes = 0

        def once() -> None:
            self.classes = step(mine)

        def loop() -> None:
            self._bad.zero_()
            for _ in range(steps):
                step(mine)
                self._bad.add_(mine.flags != 1)

        self._replay = record(once, loop, points.x.device)

    def run(self, points: Points) -> Tensor:
        """All steps on points.x_adv, in place; returns how many gradients of each were zero or not finite."""
        with self._lock:
            for name in HELD:
                value = getattr(points, name)
                if isinstance(value, Tensor):
                    getattr(self._held, name).copy_(value)
            self._replay()
            points.x_adv.copy_(self._held.x_adv)
            return self._bad.clone()


# For each network its kinds of attack: the loop, or why there is none.
_known: WeakKeyDictionary[Compiled, dict[Any, Loop | str]] = WeakKeyDictionary()


def kind_of(points: Points, *settings: Any) -> tuple[Any, ...]:
    """What one recording serves: everything but the values of tensors."""
    shown = (getattr(points, name) for name in HELD)
    laid = ((v.shape, v.stride(), v.dtype, v.device) if isinstance(v, Tensor) else v for v in shown)
    return (*laid, *settings)


def loop_for(compiled: Compiled, points: Points, kind: Any, step: Step, steps: int, record: Recorder) -> Loop | str:
    """The recorded loop for an attack of this kind, or why its steps are made one by one."""
    known = _known.setdefault(compiled, {})
    if kind not in known:
        while len(known) >= MOST:
            del known[next(iter(known))]
        known[kind] = SEEN
    elif known[kind] is SEEN:
        try:
            compiled.pin()
            known[kind] = Loop(points, step, steps, record)
        except Exception as error:  # whatever a model may do that a recording cannot hold
            line = str(error).strip().partition("\n")[0]
            known[kind] = f"the recording failed: {type(error).__name__}: {line}"
    return known[kind]


def recorder(device: torch.device) -> Recorder | None:
    """What records on a device, if anything does."""
    return _on_cuda if device.type == "cuda" else None


def _on_cuda(once: Callable[[], None], loop: Callable[[], None], device: torch.device) -> Callable[[], None]:
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                once()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            loop()
    replay: Callable[[], None] = graph.replay
    return replay
