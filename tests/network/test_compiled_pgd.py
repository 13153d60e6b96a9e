"""PGD in the engine is PGD."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import native, shaken
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
    result = fr.attacks.PGD(model, 0.2, 0.05, 10, compile=True, early_stop=early_stop).run(x, y)
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
    plain = fr.attacks.PGD(model, eps, alpha, 6, norm=norm, compile=False, **keys).run(x, y)
    ours = fr.attacks.PGD(model, eps, alpha, 6, norm=norm, compile=True, **keys).run(x, y)
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
