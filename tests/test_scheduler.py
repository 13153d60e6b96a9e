"""Active points: each served once, in a full batch, with results of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastrobust import _backend, scheduler
from fastrobust.scheduler import in_threads, serve


class Counters:
    """Points that count to a number of their own."""

    def __init__(self, ids: Tensor, goal: Tensor) -> None:
        self.ids, self.goal, self.made = ids.clone(), goal.clone(), torch.zeros_like(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Tensor | None) -> Counters:
        part = Counters(self.ids, self.goal)
        part.made = self.made
        if rows is not None:
            part.ids, part.goal, part.made = self.ids[rows], self.goal[rows], self.made[rows]
        return part

    def put(self, rows: Tensor, part: Counters) -> None:
        self.ids[rows], self.goal[rows], self.made[rows] = part.ids, part.goal, part.made


def count(goals: list[int], slots: int, look: int, grain: int) -> tuple[list[int], list[int], int]:
    """What each point counted to, the sizes of the batches, and steps made for nothing."""
    found, sizes, wasted = [-1] * len(goals), [], 0

    def advance(state: Counters) -> Tensor:
        nonlocal wasted
        sizes.append(len(state))
        done = state.made >= state.goal
        wasted += int(done.sum())
        state.made += ~done
        return state.made >= state.goal

    def retire(state: Counters) -> None:
        for number, made in zip(state.ids.tolist(), state.made.tolist(), strict=True):
            assert found[number] == -1, "served twice"
            found[number] = made

    serve(
        len(goals), slots, lambda ids: Counters(ids, torch.tensor(goals)[ids]), advance, retire, look=look, grain=grain
    )
    return found, sizes, wasted


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=40), st.integers(1, 50), st.integers(1, 4), st.integers(1, 8))
def test_each_point_is_served_once_until_it_is_decided(goals: list[int], slots: int, look: int, grain: int) -> None:
    found, sizes, _ = count(goals, slots, look, grain)
    assert found == goals
    assert max(sizes, default=0) <= max(slots, 1)


def test_the_batch_is_full_and_nothing_is_wasted() -> None:
    goals = [1 + (7 * i) % 13 for i in range(100)]
    _, sizes, wasted = count(goals, 10, 1, 1)
    assert wasted == 0
    assert sum(sizes) == sum(goals)
    assert sizes[: len(sizes) - 13] == [10] * (len(sizes) - 13)


def test_looking_seldom_wastes_less_than_a_look_a_point() -> None:
    goals = [1 + (7 * i) % 13 for i in range(100)]
    assert count(goals, 10, 4, 1)[2] <= 3 * len(goals)


def test_a_failing_step_comes_through() -> None:
    def advance(state: Counters) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve(3, 2, lambda ids: Counters(ids, ids + 1), advance, lambda state: None)


@pytest.mark.parametrize(("threads", "each"), [(2, 1), (9, 2)])
def test_threads_share_the_work_and_leave_the_callers_alone(threads: int, each: int) -> None:
    before, own = torch.get_num_threads(), []

    def run(job: int, check: Callable[[], None]) -> int:
        check()
        own.append(torch.get_num_threads())
        return job * job

    torch.set_num_threads(threads)
    try:
        assert in_threads(range(4), run) == [0, 1, 4, 9]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert _backend.cpu is None or own == [each] * 4


def until_stopped(ended: list[int], fails: int | None = None) -> Callable[[int, Callable[[], None]], int]:
    """A job that goes on until `check` raises, and puts its number down when it ends; one of them fails."""

    def run(job: int, check: Callable[[], None]) -> int:
        if job == fails:
            raise ValueError(f"job {job}")
        try:
            while True:
                time.sleep(0.001)
                check()
        finally:
            ended.append(job)

    return run


def test_a_failing_thread_stops_the_others() -> None:
    ended: list[int] = []
    with pytest.raises(ValueError, match="job 2"):
        in_threads(range(4), until_stopped(ended, fails=2))
    assert sorted(ended) == [0, 1, 3]


def test_an_interrupt_stops_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    def interrupted(*args: Any, **keywords: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduler, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_threads(range(3), until_stopped(ended))
    assert sorted(ended) == [0, 1, 2]
