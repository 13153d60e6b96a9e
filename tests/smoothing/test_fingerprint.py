"""Fingerprints tell networks apart by all that they keep, and end on networks that hold themselves."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrobust.smoothing.fingerprint import digest_of, parts_of


def net(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


class Slots:
    __slots__ = ("scale",)

    def __init__(self, scale: float) -> None:
        self.scale = scale


class Keeps(nn.Module):
    """Keeps something beside parameters and buffers."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.inner, self.kept = net(), kept


def power(k: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x**k


def itself() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(3), torch.tensor([0, 0, 1e-30])),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
        (np.zeros(3), np.array([0, 0, 1.0])),
        (np.array([None, 1]), np.array([None, 2])),
        (np.float32(1), np.float32(2)),
        ({"scale": 1.0}, {"scale": 2.0}),
        ({"a", "b"}, {"a", "c"}),
        ([None, [1.0]], [None, [2.0]]),
        (deque([1]), deque([2])),
        (SimpleNamespace(scale=1.0), SimpleNamespace(scale=2.0)),
        (Slots(1.0), Slots(2.0)),
        (torch.relu, torch.tanh),
        (lambda x: x + 1, lambda x: x + 2),
        (power(2), power(3)),
        (partial(torch.clamp, min=0), partial(torch.clamp, min=1)),
        ([net(0)], [net(1)]),
        (torch.float32, torch.float64),
    ],
)
def test_the_fingerprint_covers_what_modules_keep(one: Any, other: Any) -> None:
    first, again, second = (digest_of(parts_of(Keeps(kept)), "") for kept in (one, copy.deepcopy(one), other))
    assert first == again
    assert first != second


def test_fingerprints_of_loops_end() -> None:
    assert parts_of(Keeps(itself())) == parts_of(Keeps(itself()))
    found = []
    for seed in (0, 1):
        first, second = Keeps([]), Keeps([net(seed)])
        first.kept.append(second)
        second.kept.append(first)
        assert parts_of(first) == parts_of(first)
        found.append(parts_of(first))
    assert found[0] != found[1]
