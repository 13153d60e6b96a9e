"""Active points: a full batch in which each point is served until it is decided, and the next takes its slot.

On a CPU several batches go side by side (`in_threads`): the small operations of one then run beside the large ones of
another, instead of keeping all processors but one waiting.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fastrobust import _backend

__all__ = ["Rows", "in_threads", "serve"]


class Rows(Protocol):
    """The state of a batch: something whose rows can be picked and replaced."""

    def __len__(self) -> int: ...

    def select(self: State, rows: Tensor | None) -> State:
        """These rows, in this order; all of them if None."""
        ...

    def put(self: State, rows: Tensor, part: State) -> None:
        """Replace these rows by those of `part`, in place."""
        ...


State = TypeVar("State", bound=Rows)


def serve(
    total: int,
    slots: int,
    admit: Callable[[Tensor], State],
    advance: Callable[[State], Tensor],
    retire: Callable[[State], None],
    *,
    device: torch.device | str = "cpu",
    look: int = 1,
    grain: int = 1,
) -> None:
    """Serve the points 0 .. total - 1, at most `slots` at a time.

    A point's results depend on its own rows alone as long as `advance` works row by row, so they do not depend on who
    shares its batch.

    Args:
        admit: makes the state of the points with these numbers, (n,) int64.
        advance: makes one step of all rows, in place; says which are decided, (rows,) bool.
        retire: takes over the results of rows that are decided.
        device: where the state lives.
        look: steps between looks at who is decided. A look waits for a GPU; rows decided between two looks are
            stepped on for nothing, so `advance` must leave what is decided as it is.
        grain: once no point is waiting the batch shrinks to multiples of this, filled up with points that are done.
            Libraries below keep memory for every batch size they have seen (oneDNN some 9 MB a size on a small CNN).
    """
    first = min(slots, total)
    if first <= 0:
        return
    state = admit(torch.arange(first, device=device))
    live = torch.ones(first, dtype=torch.bool, device=device)
    decided = torch.zeros_like(live)
    for step in itertools.count(1):
        decided |= advance(state)
        if step % look or not bool((decided & live).any()):
            continue
        rows = torch.nonzero(decided & live)[:, 0]
        retire(state.select(rows))
        fresh = rows[: total - first]
        if len(fresh):
            state.put(fresh, admit(torch.arange(first, first + len(fresh), device=device)))
            first += len(fresh)
        live[rows] = False
        live[fresh] = True
        decided = ~live
        left = int(live.sum())
        size = -(-left // grain) * grain
        if size < len(live):
            filler = torch.nonzero(~live)[: size - left, 0]
            keep = torch.cat([torch.nonzero(live)[:, 0], filler]).sort().values
            state, live, decided = state.select(keep), live[keep], decided[keep]
        if left == 0:
            return


Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


class _Stopped(Exception):
    """Another thread failed, or the caller was interrupted."""


def in_threads(jobs: Sequence[Job], run: Callable[[Job, Callable[[], None]], Outcome]) -> list[Outcome]:
    """``run(job, check)`` for all jobs at once, each in a thread with its share of the processors; their outcomes.

    ``check()`` raises once another job has failed or the caller was interrupted: `run` calls it now and then. The first
    failure is raised here when all threads have ended. Modes of the caller's thread (`torch.no_grad`, autocast) do not
    hold in the new ones.
    """
    stop, share = threading.Event(), max(1, torch.get_num_threads() // len(jobs))

    def check() -> None:
        if stop.is_set():
            raise _Stopped

    def alone(job: Job) -> Outcome:
        torch.get_num_threads()  # makes PyTorch set up this thread, which it would otherwise do after the next line
        if _backend.cpu is not None:
            _backend.cpu.own_threads(share)
        return run(job, check)

    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(alone, job) for job in jobs]
        try:
            if any(future.exception() for future in wait(futures, return_when=FIRST_EXCEPTION).done):
                stop.set()
        except BaseException:  # an interrupt
            stop.set()
            raise
    failures = [error for future in futures if (error := future.exception()) is not None]
    for error in failures:
        if not isinstance(error, _Stopped):
            raise error
    return [future.result() for future in futures]
