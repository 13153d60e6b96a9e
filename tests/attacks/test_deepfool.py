"""DeepFool: the paper's steps, one at a time, and what it stops at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks.closed_form import least_norm, linear
from attacks.nets import cnn, images, predictions
from torch import Tensor

from fastrobust.attacks import DeepFool


def by_the_paper(model: Any, x: Tensor, label: int, norm: str, overshoot: float, steps: int) -> Tensor:
    """Algorithm 2 of the paper for one point, in float64, with the 1e-4 of the authors' code."""
    total = torch.zeros_like(x)
    for _ in range(steps):
        at = (x + (1 + overshoot) * total).clamp(0, 1).requires_grad_()
        logits = model(at[None])[0]
        if int(logits.argmax()) != label:
            break
        best = None
        for other in set(range(len(logits))) - {label}:
            (w,) = torch.autograd.grad(logits[other] - logits[label], at, retain_graph=True)
            lead = float((logits[other] - logits[label]).detach())
            steepness = float(w.norm() if norm == "L2" else w.abs().sum())
            if best is None or abs(lead) / steepness < best[0]:
                best = (abs(lead) / steepness, w / w.norm() if norm == "L2" else w.sign())
        assert best is not None
        total = total + (best[0] + 1e-4) * best[1]
    return (x + (1 + overshoot) * total).clamp(0, 1)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_it_makes_the_steps_of_the_paper(norm: str) -> None:
    model, x = cnn().double(), images(6).double()
    y = predictions(model, x)
    found = DeepFool(model, norm, overshoot=0.02, steps=20).run(x, y)
    assert found.success.all()
    assert (found.steps < 20).all()
    for row in range(6):
        assert torch.allclose(found.x_adv[row], by_the_paper(model, x[row], int(y[row]), norm, 0.02, 20), atol=1e-9)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_one_step_on_a_linear_model(norm: str) -> None:
    model, x, y = linear(5)
    found = DeepFool(model, norm, box=(-10.0, 11.0), compile=False).run(x, y)
    least = least_norm(model, x, y, norm, boxed=False)
    assert (found.steps == 1).all()
    assert torch.allclose(found.loss.double(), 1.02 * (least + 1e-4), rtol=1e-4)
    exact = DeepFool(model, norm, box=(-10.0, 11.0), compile=False, final_search=20).run(x, y)
    assert torch.allclose(exact.loss.double(), least, rtol=1e-4)


def test_all_candidates_is_never_less_than_two_of_them() -> None:
    model, x = cnn(), images(8)
    y = predictions(model, x)
    first = DeepFool(model, candidates=2, steps=1, overshoot=50.0).run(x, y)
    assert first.success.any()
    assert DeepFool(model, candidates=None).run(x, y).success.all()
    assert torch.equal(DeepFool(model, candidates=None)(x, y), DeepFool(model, candidates=10)(x, y))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"norm": "L1"}, "norm"), ({"overshoot": -0.1}, "overshoot"), ({"candidates": 1}, "candidates"),
        ({"steps": 0}, "steps"), ({"final_search": 1.5}, "final_search"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"DeepFool: {message} must be"):
        DeepFool(cnn(), **keywords)
