"""What holds for every attack that looks for the least norm: that of `test_suite`, and how near its points are."""

from __future__ import annotations

import pytest
import torch
from attacks.closed_form import distance, least_norm, linear
from attacks.nets import cnn, images, predictions
from attacks.table import MINIMUM, Minimum
from attacks.test_suite import changes_nothing, independent_of_the_batch
from torch import Tensor, nn

minimum = pytest.mark.parametrize("case", MINIMUM.values(), ids=MINIMUM.keys())


@minimum
@pytest.mark.parametrize(("classes", "boxed"), [(2, False), (2, True), (5, True)])
def test_linear_models_are_attacked_to_the_optimum(case: Minimum, classes: int, boxed: bool) -> None:
    if not boxed and not case.wide:
        return
    model, x, y = linear(classes)
    least = least_norm(model, x, y, case.norm, boxed)
    found = case.make(model, box=(0.0, 1.0) if boxed else (-10.0, 11.0), compile=False).run(x, y)
    norms, can = distance(found.x_adv, x, case.norm), torch.isfinite(least)
    assert not found.success[~can].any()
    assert (norms >= 0.9999 * least)[found.success].all()
    ratio = case.ratio if classes == 2 else case.several
    near = (found.success & (norms <= ratio * least + case.extra))[can]
    # With several classes the way to the wrong one may be taken.
    assert near.all() if classes == 2 else near.double().mean() >= 0.5


@minimum
def test_what_comes_back(case: Minimum) -> None:
    """In the box; success is the model's word, the loss is the norm; a wrong point stays where it is."""
    model, x = cnn(), images(24)
    y = predictions(model, x)
    y[:3] = (y[:3] + 1) % 10
    found = case.make(model, **case.quick).run(x, y)
    assert (found.x_adv >= 0).all()
    assert (found.x_adv <= 1).all()
    assert torch.equal(found.success, predictions(model, found.x_adv) != y)
    norms = distance(found.x_adv, x, case.norm)
    assert torch.allclose(found.loss.double()[found.success], norms[found.success], rtol=1e-5)
    assert torch.equal(found.x_adv[:3], x[:3])
    assert (found.loss[:3] == 0).all()
    assert (found.steps[:3] == 0).all()
    assert found.success[3:].any()
    assert (found.steps[3:] > 0).all()
    assert found.x_adv.dtype == x.dtype


@minimum
def test_16_bit(case: Minimum) -> None:
    """The points are those that the model was shown, rounded towards x: none is lost."""
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(784, 3)).bfloat16(), images(8).bfloat16()
    y = predictions(model, x)
    found = case.make(model, **case.quick).run(x, y)
    assert found.success.any()
    assert torch.equal(found.success, predictions(model, found.x_adv) != y)
    norms = distance(found.x_adv, x, case.norm)
    assert torch.allclose(found.loss.double()[found.success], norms[found.success], rtol=1e-5)


@minimum
def test_points_that_cannot_be_fooled_stay(case: Minimum) -> None:
    """A constant model, and one whose logits are NaN."""
    x, y = images(4), torch.ones(4, dtype=torch.int64)
    for weight in (0.0, torch.nan):
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
        nn.init.constant_(model[1].weight, weight)
        with torch.no_grad():
            model[1].bias.copy_(torch.tensor([0.0, 1.0, 0.5]))
        found = case.make(model, **case.quick).run(x, y)
        assert not found.success.any()
        assert torch.equal(found.x_adv, x)
        assert torch.isinf(found.loss).all()


@minimum
def test_near_enough_is_enough(case: Minimum) -> None:
    """With `eps` a point leaves once its norm is at most that; others are looked for to the end."""
    model, x, y = linear(2)
    least = least_norm(model, x, y, case.norm)
    eps = float(least[torch.isfinite(least)].median()) * 1.3
    full = case.make(model, **case.quick, compile=False).run(x, y)
    found = case.make(model, eps=eps, **case.quick, compile=False).run(x, y)
    near = found.success & (found.loss.double() <= eps)
    assert (distance(found.x_adv, x, case.norm)[near] <= eps).all()
    assert torch.equal(near, full.success & (full.loss <= eps))
    assert near.any()
    assert (found.steps <= full.steps).all()
    assert case.first or (found.steps < full.steps)[near].any()
    assert torch.equal(found.x_adv[~near], full.x_adv[~near])


@minimum
def test_no_dependence_on_the_batch(case: Minimum) -> None:
    independent_of_the_batch(lambda model, **keywords: case.make(model, **case.quick, **keywords))


@minimum
def test_a_target_is_reached(case: Minimum) -> None:
    if not case.targeted:
        return
    model, x, y = linear(5)
    target = (y + 1) % 5
    attack = case.make(model, targeted=True, box=(-10.0, 11.0), compile=False)
    found = attack.run(x, target)
    assert torch.equal(found.success, predictions(model, found.x_adv) == target)
    assert found.success.double().mean() >= 0.9
    # No nearer than the boundary between the two.
    least = least_norm(model, x, y, case.norm, False, target)
    norms = distance(found.x_adv, x, case.norm)
    assert (norms >= 0.9999 * least)[found.success].all()


@minimum
@pytest.mark.parametrize("failure", [None, KeyboardInterrupt])
def test_nothing_is_changed(case: Minimum, failure: type[BaseException] | None) -> None:
    changes_nothing(lambda model: case.make(model, **case.quick), failure)


@minimum
def test_odd_calls(case: Minimum) -> None:
    model, x = cnn(), images(4)
    y = predictions(model, x)
    assert case.make(model, **case.quick)(x[:0], y[:0]).shape == (0, 1, 28, 28)
    with pytest.raises(ValueError, match="x must be finite"):
        case.make(model)(x.masked_fill(x > 0.9, torch.nan), y)
    with pytest.raises(ValueError, match="y must be in 0"):
        case.make(model)(x, y + 10)
    for eps in (-1.0, torch.inf):
        with pytest.raises(ValueError, match="eps"):
            case.make(model, eps=eps)


@minimum
def test_any_box_and_shape(case: Minimum) -> None:
    """Features of different ranges, one of them without room; float64."""
    model, x, y = linear(2)
    lo, hi = -torch.rand(12, dtype=torch.float64), 1 + torch.rand(12, dtype=torch.float64)
    lo[3] = hi[3] = 0.5
    wide = x.double()
    wide[:, 3] = 0.5
    double = nn.Linear(12, 2, dtype=torch.float64)
    double.load_state_dict(model.state_dict())
    y = predictions(double, wide)
    found = case.make(double, box=(lo, hi), **case.quick, compile=False).run(wide, y)
    assert found.success.any()
    assert found.x_adv.dtype == torch.float64
    assert ((found.x_adv >= lo) & (found.x_adv <= hi)).all()


@minimum
def test_draws_repeat(case: Minimum) -> None:
    model, x = cnn(), images(6)
    y = predictions(model, x)
    found: list[Tensor] = [case.make(model, seed=seed, **case.quick)(x, y) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert case.draws != torch.equal(found[0], found[2])
