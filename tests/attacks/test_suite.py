"""What holds for every attack: closed forms on linear models, the ball, no side effects, no dependence on the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks.closed_form import distance, least_norm, linear
from attacks.nets import cnn, images, predictions
from attacks.table import WITHIN, Within
from attacks.test_promises import mixed, same, snapshot
from torch import nn

EPS = {"Linf": 8 / 255, "L2": 0.6, "L1": 6.3, "L0": 20}  # float32 rounds them up, which must not show
within = pytest.mark.parametrize("case", WITHIN.values(), ids=WITHIN.keys())


@within
@pytest.mark.parametrize(("classes", "boxed"), [(2, False), (2, True), (5, True)])
def test_linear_models_are_attacked_to_the_optimum(case: Within, classes: int, boxed: bool) -> None:
    model, x, y = linear(classes)
    box = (0.0, 1.0) if boxed else (-10.0, 11.0)
    least = least_norm(model, x, y, case.norm, boxed)
    rows = torch.nonzero(torch.isfinite(least))[:, 0].tolist()[::8]
    # Towards one of several classes the loss has maxima of its own: an attack without targets may climb the wrong one.
    ratio = case.ratio if classes == 2 or case.several else 2.0
    reached = 0
    for row in rows:
        near, far = (
            bool(case.make(model, float(least[row]) * factor, box=box, compile=False).run(x[[row]], y[[row]]).success)
            for factor in (ratio, 0.995)
        )
        assert not far
        reached += near
    assert reached == len(rows) if ratio < 2 else reached >= len(rows) / 2


@within
def test_what_comes_back(case: Within) -> None:
    """In the ball and the box in float64; success is the model's word; a wrong point stays where it is."""
    model, x = cnn(), images(24)
    y = predictions(model, x)
    y[:3] = (y[:3] + 1) % 10
    found = case.make(model, EPS[case.norm]).run(x, y)
    assert (distance(found.x_adv, x, case.norm) <= EPS[case.norm]).all()
    assert (found.x_adv >= 0).all()
    assert (found.x_adv <= 1).all()
    assert torch.equal(found.success, predictions(model, found.x_adv) != y)
    assert torch.equal(found.x_adv[:3], x[:3])
    assert found.success[:3].all()
    assert (found.steps[:3] == 0).all()
    assert found.success[3:].any()
    assert found.x_adv.dtype == x.dtype


def independent_of_the_batch(make: Any) -> None:
    """Neither its size, nor its order, nor who shares it; `make` takes a model and keywords."""
    model, x = cnn(), images(23)
    y, index = predictions(model, x), torch.arange(23)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    first = make(model, batch_size=64, compile=True).run(x, y)
    for size, rows in ((5, torch.arange(23)), (64, order), (3, order[:9])):
        again = make(model, batch_size=size, compile=True).run(x[rows], y[rows], index[rows])
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a[rows], b)


@within
def test_no_dependence_on_the_batch(case: Within) -> None:
    independent_of_the_batch(lambda model, **keywords: case.make(model, EPS[case.norm] / 3, **keywords))


@within
def test_a_target_is_reached(case: Within) -> None:
    if not case.targeted:
        return
    model, x, y = linear(5)
    target = (y + 1) % 5
    found = case.make(model, 3 * EPS[case.norm], targeted=True, compile=False).run(x, target)
    assert torch.equal(found.success, predictions(model, found.x_adv) == target)
    assert found.success.any()


def changes_nothing(make: Any, failure: type[BaseException] | None) -> None:
    """No side effects, nor after an exception in the model's third call; `make` takes a model."""
    model, x = mixed(), images(5)
    y, calls = predictions(cnn(), x), 0

    def trip(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if failure is not None and calls == 3:
            raise failure("half-way")

    model[8].register_forward_hook(trip)
    before, x_before, y_before = snapshot(model), x.clone(), y.clone()
    attack = make(model)
    if failure is None:
        attack(x, y)
        assert calls >= 4
    else:
        with pytest.raises(failure, match="half-way"):
            attack(x, y)
    assert same(before, snapshot(model))
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)


@within
@pytest.mark.parametrize("failure", [None, KeyboardInterrupt])
def test_nothing_is_changed(case: Within, failure: type[BaseException] | None) -> None:
    changes_nothing(lambda model: case.make(model, EPS[case.norm] / 20), failure)


@within
def test_odd_calls(case: Within) -> None:
    model, x = cnn(), images(4)
    y = predictions(model, x)
    eps = EPS[case.norm]
    assert case.make(model, eps)(x[:0], y[:0]).shape == (0, 1, 28, 28)
    assert torch.equal(case.make(model, 0.0)(x, y), x)
    with pytest.raises(ValueError, match="x must be finite"):
        case.make(model, eps)(x.masked_fill(x > 0.9, torch.nan), y)
    with pytest.raises(ValueError, match="y must be in 0"):
        case.make(model, eps)(x, y + 10)
    with pytest.raises(ValueError, match="eps"):
        case.make(model, -1.0)
    broken = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.constant_(broken[1].weight, torch.nan)
    found = case.make(broken, eps).run(x, y)
    assert not found.success.any()
    assert torch.isfinite(found.x_adv).all()


@within
def test_draws_repeat(case: Within) -> None:
    model, x = cnn(), images(6)
    y = predictions(model, x)
    a, b, c = (case.make(model, EPS[case.norm] / 4, seed=seed).run(x, y) for seed in (0, 0, 1))
    assert torch.equal(a.x_adv, b.x_adv)
    assert case.draws != torch.equal(a.x_adv, c.x_adv)
