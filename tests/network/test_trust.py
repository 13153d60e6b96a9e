"""Attacks use a compiled network where its gradients are the user's, and say why where they do not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sample_nets import Odd
from torch import Tensor, nn

from fastrobust.network import compile
from fastrobust.network.trust import compiled_for, watched, work_of


def test_parameters_of_another_kind_are_captured_anew() -> None:
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    x = torch.rand(4, 6)
    kept = compile(model, x)
    assert compiled_for(model, x)[0] is not None
    model[0].weight, model[0].bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4))
    with pytest.raises(ValueError, match="refresh: a parameter now gives"):
        kept.refresh()
    compiled, reason = compiled_for(model, x)
    assert compiled is not None, reason
    assert torch.allclose(compiled(x), model(x), atol=1e-6)
    model.double()  # the same modules, memory of another width: nothing may be read as float32
    with pytest.raises(ValueError, match="float64"):
        compiled.refresh()


@pytest.mark.parametrize("register", ["register_full_backward_pre_hook", "register_full_backward_hook"])
def test_hooks_are_noticed_after_the_capture(register: str) -> None:
    model = Odd("").eval()
    x = torch.rand(4, 6)
    assert compiled_for(model, x)[0] is not None
    getattr(model.line, register)(lambda *_: None)
    assert "hooks" in compiled_for(model, x)[1]
    plain = Odd("").eval()
    handle = getattr(nn.modules.module, register.replace("register", "register_module"))(lambda *_: None)
    try:
        assert "global" in compiled_for(plain, x)[1]
    finally:
        handle.remove()
    assert compiled_for(plain, x)[0] is not None


@pytest.mark.parametrize(
    ("kind", "words"),
    [("custom", "Step"), ("random", "random"), ("branch", "cannot be exported"), ("pair", "one tensor")],
)
def test_what_is_not_provably_the_users_runs_eagerly(kind: str, words: str) -> None:
    compiled, reason = compiled_for(Odd(kind).eval(), torch.rand(4, 6))
    assert compiled is None
    assert words in reason


def test_hooks_run_eagerly() -> None:
    model = Odd("").eval()
    x = torch.rand(4, 6)
    assert compiled_for(model, x)[0] is not None
    model.line.register_full_backward_hook(lambda *_: None)
    compiled, reason = compiled_for(model, x)  # noticed although the capture was cached
    assert compiled is None
    assert "hooks" in reason


def test_changed_modules_are_captured_anew() -> None:
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    x = torch.rand(4, 6)
    first = compiled_for(model, x)[0]
    model.append(nn.ReLU())
    second = compiled_for(model, x)[0]
    assert first is not None
    assert second is not None
    assert torch.allclose(second(x), model(x), atol=1e-6)


def test_the_cache_keeps_no_model_alive() -> None:
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    gone = weakref.ref(model)
    assert compiled_for(model, torch.rand(4, 6))[0] is not None
    del model
    gc.collect()
    assert gone() is None


def test_a_model_that_keeps_changing_is_not_captured_for_ever() -> None:
    model = Odd("").eval()
    x = torch.rand(4, 6)
    for k in range(8):
        model.label = object()  # type: ignore[assignment]
        compiled, reason = compiled_for(model, x)
        assert (compiled is None) == (k >= 4), reason
    assert "change from call to call" in reason


def test_looking_at_a_model_draws_no_random_numbers() -> None:
    model, noisy, x = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3)).eval(), Odd("random").eval(), torch.rand(4, 6)
    state = torch.random.get_rng_state()
    assert work_of(model, x) == 2 * (6 * 3 + 3 * 3)
    work_of(noisy, x)
    assert compiled_for(model, x)[0] is not None
    assert compiled_for(noisy, x)[0] is None
    assert torch.equal(state, torch.random.get_rng_state())


class Weighs(nn.Module):
    """Reads a number from something that can change without being replaced."""

    def __init__(self, kept: Any, read: Callable[[Any], float]) -> None:
        super().__init__()
        self.line, self.kept, self.read = nn.Linear(6, 3), kept, read

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.line(x) * self.read(self.kept)
        return found


class Slots:
    __slots__ = ("scale",)

    def __init__(self, scale: float) -> None:
        self.scale = scale


def put(kept: Any, value: float) -> None:
    if isinstance(kept, (SimpleNamespace, Slots)):
        kept.scale = value
    else:
        kept["scale" if isinstance(kept, dict) else 0] = value


@pytest.mark.parametrize(
    ("kept", "read"),
    [
        ([1.0], lambda kept: kept[0]),
        ({"scale": 1.0}, lambda kept: kept["scale"]),
        (np.ones(1), lambda kept: float(kept[0])),
        (SimpleNamespace(scale=1.0), lambda kept: kept.scale),
        (Slots(1.0), lambda kept: kept.scale),
    ],
)
def test_attributes_that_change_in_place_are_noticed(kept: Any, read: Callable[[Any], float]) -> None:
    model = Weighs(kept, read).eval()
    x = torch.rand(4, 6)
    first = compiled_for(model, x)[0]
    assert first is not None
    assert compiled_for(model, x)[0] is first
    put(kept, -1.0)
    second = compiled_for(model, x)[0]
    assert second is not None
    assert second is not first
    torch.testing.assert_close(second(x), model(x))


def nested() -> list[Any]:
    found: list[Any] = [1.0]
    for _ in range(5000):
        found = [1.0, found]
    return found


@pytest.mark.parametrize("kept", [[1.0] * 20_000, nested()], ids=["long", "deep"])
def test_attributes_too_large_to_watch_are_not_trusted(kept: Any) -> None:
    model = Weighs(kept, lambda kept: kept[0]).eval()
    compiled, reason = compiled_for(model, torch.rand(4, 6))
    assert compiled is None
    assert "more than 10,000 plain values" in reason


def test_sets_of_objects_are_the_same_from_call_to_call() -> None:
    model = Weighs({nn.ReLU, torch.tanh, "a", 2.0}, lambda kept: float(len(kept))).eval()
    x = torch.rand(4, 6)
    first = compiled_for(model, x)[0]
    assert first is not None
    assert compiled_for(model, x)[0] is first
    model.kept.remove(torch.tanh)
    second = compiled_for(model, x)[0]
    assert second is not None
    torch.testing.assert_close(second(x), model(x))


def test_pytorchs_own_modules_are_not_watched() -> None:
    assert not watched(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)))
