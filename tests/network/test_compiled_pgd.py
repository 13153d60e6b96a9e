"""PGD in the engine is PGD."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sample_nets import native, shaken
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.network import compile


class Doubtful(nn.Module):
    """Says something else than its capture at points near the boundary, as rounding may."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 2)
        self.doubts = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(x)
        return out + torch.tensor([3.0, 0.0]) if self.doubts else out


@native
@pytest.mark.parametrize("early_stop", [True, False])
def test_success_is_the_models_own_word(early_stop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Doubtful().eval()
    x, y = torch.rand(40, 8), torch.zeros(40, dtype=torch.int64)
    copy = compile(model, x)
    model.doubts = True
    monkeypatch.setattr("fastrobust.network.trust.compiled_for", lambda *_: (copy, ""))
    attack = fr.attacks.PGD(model, 0.2, 0.05, 10, compile=True, early_stop=early_stop, cycles=False)
    result = attack.run(x, y)
    logits = model(result.x_adv)
    assert torch.equal(result.success, logits.argmax(1) != y)
    assert torch.allclose(result.loss, F.cross_entropy(logits, y, reduction="none"), atol=1e-5)
    assert bool((result.steps[~result.success] == 10).all())  # nobody is let go before the model agrees


@native
@pytest.mark.parametrize(("norm", "eps", "alpha"), [("Linf", 0.05, 0.02), ("L2", 0.7, 0.2), ("L1", 5.0, 2.0)])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"targeted": True},
        {"loss": "dlr"},
        {"loss": "margin", "restarts": 2},
        {"loss": "dlr", "targeted": True},
        {"early_stop": True},
        {"early_stop": 2},
        {"early_stop": True, "restarts": 3, "targeted": True},
    ],
)
def test_pgd_in_the_engine_is_pgd(norm: str, eps: float, alpha: float, keys: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = shaken(fr.models.small_cnn(1, 4, 12, 5))
    x, y = torch.rand(53, 1, 12, 12), torch.randint(5, (53,))
    plain, ours = (
        fr.attacks.PGD(model, eps, alpha, 6, norm=norm, compile=c, cycles=False, **keys).run(x, y)
        for c in (False, True)
    )
    off = ((plain.x_adv - ours.x_adv).abs() > 1e-4).float().mean()
    assert float(off) <= 0.02  # a sign may flip on rounding
    assert torch.allclose(plain.loss, ours.loss, rtol=1e-2, atol=1e-3)
    assert torch.equal(plain.steps, ours.steps)
    assert torch.equal(plain.bad_gradients, ours.bad_gradients)
    order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
    assert float((ours.x_adv.double() - x.double()).flatten(1).norm(order, dim=1).max()) <= eps
    assert float(ours.x_adv.min()) >= 0
    assert float(ours.x_adv.max()) <= 1


def test_a_compiled_network_is_a_model_to_attack() -> None:
    model = shaken(fr.models.small_cnn(1, 4, 12, 5))
    x, y = torch.rand(5, 1, 12, 12), torch.randint(5, (5,))
    attack = fr.attacks.PGD(compile(model, x), 0.1, 0.03, 5)
    assert "no call yet" in attack.explain()
    first = attack(x, y)
    assert "Sequential" in attack.explain()
    eager = fr.attacks.PGD(model, 0.1, 0.03, 5)
    eager(x, y)
    assert "little work" in eager.explain()
    assert torch.equal(first, attack(x, y))
    with torch.no_grad():
        next(model.parameters()).neg_()
    assert not torch.equal(first, attack(x, y))  # stale weights would give the same points
    early = fr.attacks.PGD(compile(model, x), 0.1, 0.03, 5, early_stop=True).run(x, y)
    assert bool((early.steps <= 5).all())


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=native), False])
@pytest.mark.parametrize("early_stop", [False, True])
def test_the_best_iterate_is_kept(compiled: bool, early_stop: bool) -> None:
    """Among the iterates of 1, 2, 3 ... steps it is one that fools the model with the highest loss."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).eval()
    model[0].weight.data *= 8
    x, y = torch.rand(40, 6), torch.randint(3, (40,))
    keys: dict[str, Any] = {"eps": 0.5, "alpha": 0.4, "compile": compiled}  # overshoots
    found = fr.attacks.PGD(model, steps=6, best=True, early_stop=early_stop, **keys).run(x, y)
    every = [fr.attacks.PGD(model, steps=k, early_stop=early_stop, **keys).run(x, y) for k in range(7)]
    success = torch.stack([r.success for r in every])
    loss = torch.stack([r.loss for r in every])
    assert torch.equal(found.success, success.any(0))
    highest = torch.where(success == found.success, loss, -torch.inf).amax(0)
    torch.testing.assert_close(found.loss, highest)
    torch.testing.assert_close(F.cross_entropy(model(found.x_adv), y, reduction="none").detach(), found.loss)
    if not early_stop:
        assert bool((found.loss > every[-1].loss + 1e-4).any())


@native
@pytest.mark.parametrize("early_stop", [False, True, 2])
@pytest.mark.parametrize("batch", [1, 3, 50])
def test_restarts_side_by_side_are_restarts(early_stop: bool, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = shaken(nn.Sequential(nn.Conv2d(2, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(300, 4)))
    x, y = torch.rand(batch, 2, 7, 7), torch.zeros(batch, dtype=torch.int64)
    compiled = fr.network.compile(model, x)
    attack = fr.attacks.PGD(compiled, eps=0.05, alpha=0.02, steps=4, restarts=7, early_stop=early_stop, loss="margin")
    together = attack.run(x, y)
    monkeypatch.setattr("fastrobust.attacks.pgd.LANES", 1)
    for ours, alone in zip(together, attack.run(x, y), strict=True):
        assert torch.equal(ours, alone)


@native
def test_few_points_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the engine cannot serve them one by one, by their number and the layers' size: restarts count, and who asks
    for the engine gets it."""
    monkeypatch.setattr("fastrobust.network.trust.LEAST_PASSES", 0)
    monkeypatch.setattr("fastrobust.network.trust.LEAST_WORK", 0)
    calls: list[int] = []
    original = fr.network.Compiled.pgd
    monkeypatch.setattr(
        fr.network.Compiled, "pgd", lambda self, x, *rest: (calls.append(len(x)), original(self, x, *rest))[1]
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for width, groups, few in ((4, 2, [3]), (100_000, 2, []), (100_000, 1, [3])):
            model = nn.Sequential(nn.Conv1d(2, 4, width, groups=groups), nn.Flatten())
            x, y = torch.rand(3, 2, width), torch.zeros(3, dtype=torch.int64)
            for keys, expected in (({}, few), ({"restarts": 4}, [12]), ({"compile": True}, [3])):
                calls.clear()
                fr.attacks.PGD(model, steps=2, **keys)(x, y)  # type: ignore[arg-type]
                assert calls == expected
    finally:
        torch.set_num_threads(threads)


@native
@pytest.mark.parametrize("keys", [{}, {"early_stop": True}, {"best": True}, {"early_stop": 3}, {"targeted": True}])
@pytest.mark.parametrize("divisor", [1, 2, 4, 10])
def test_points_in_a_cycle_end_where_they_would(keys: dict[str, Any], divisor: float) -> None:
    """Whatever the phase; and most points do come back."""
    torch.manual_seed(0)
    model = shaken(fr.models.small_cnn(1, 4, 8, 5))
    x, y = torch.rand(40, 1, 8, 8), torch.randint(5, (40,))
    compiled = fr.network.compile(model, x)
    whole, saved = 0, 0
    for steps in (61, 62, 63, 64):
        attacks = [fr.attacks.PGD(compiled, 0.06, 0.06 / divisor, steps, cycles=c, **keys) for c in (False, True)]
        plain, ours = (attack.run(x, y) for attack in attacks)
        for name in ("success",) if keys.get("early_stop") is True else ("x_adv", "success", "loss"):
            assert torch.equal(getattr(plain, name), getattr(ours, name)), name
        assert (ours.steps <= plain.steps).all()
        whole, saved = whole + int(plain.steps.sum()), saved + int((plain.steps - ours.steps).sum())
    assert saved * 4 > whole or keys.get("early_stop") or divisor == 10


def test_cycles_without_the_engine() -> None:
    torch.manual_seed(0)
    model = fr.models.mlp((12,), [30, 30], 4).eval()
    x = torch.rand(64, 12)
    y = model(x).argmax(1)
    keys: dict[str, Any] = {"eps": 0.02, "alpha": 0.005, "steps": 200, "early_stop": True, "compile": False}
    plain, ours = (fr.attacks.PGD(model, cycles=c, **keys).run(x, y) for c in (False, True))
    assert torch.equal(plain.success, ours.success)
    assert not plain.success.all()
    assert int(ours.steps.sum()) * 8 < int(plain.steps.sum())
    stands = ~plain.success
    assert (ours.steps[stands] < 60).all()  # every cycle is found
