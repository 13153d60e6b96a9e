"""What is particular to each of the gradient attacks that look for the least norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks.closed_form import distance, least_norm, linear
from attacks.nets import cnn, images, predictions
from torch import Tensor, nn

from fastrobust.attacks import CW, DDN, FMN, SigmaZero

NORMS = ("Linf", "L2", "L1", "L0")


class Stairs(nn.Module):
    """Two classes by the mean of the input, without a slope."""

    def forward(self, x: Tensor) -> Tensor:
        level = (x.flatten(1).mean(1) * 8).floor() / 8 + 0 * x.flatten(1).sum(1)
        return torch.stack([level, torch.full_like(level, 0.7)], 1)


def margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = model(x).detach()
    return z.scatter(1, y[:, None], -torch.inf).amax(1) - z.gather(1, y[:, None])[:, 0]


@pytest.mark.parametrize("box", [(0.0, 1.0), (-2.0, 3.0)])
def test_ddn_levels(box: tuple[float, float]) -> None:
    """What comes back has 8-bit values; on a coarse grid norms are larger."""
    model, x, y = linear(2)
    lo, hi = box
    x = lo + (x * 255).round() / 255 * (hi - lo)
    y = predictions(model, x)
    plain, fine, coarse = (DDN(model, levels=levels, box=box, compile=False).run(x, y) for levels in (None, 256, 16))
    assert fine.success.all()
    for found, levels in ((fine, 256), (coarse, 16)):
        steps = (found.x_adv[found.success] - lo).double() / (hi - lo) * (levels - 1)
        assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert (plain.loss < coarse.loss)[coarse.success].all()
    assert fine.loss.median() < 1.05 * plain.loss.median()


@pytest.mark.parametrize("norm", NORMS)
def test_fmn_searches_from_a_start(norm: str) -> None:
    """Where there is no slope a start is all there is: the boundary between it and x is found."""
    model, x = Stairs(), 0.5 * images(5)
    y, start = predictions(model, x), torch.ones_like(x)
    assert not FMN(model, norm, 3).run(x, y).success.any()
    found = FMN(model, norm, 3).run(x, y, start=start)
    assert found.success.all()
    assert (distance(found.x_adv, x, norm) < 0.9 * distance(start, x, norm)).all()
    # The mean has to rise to 0.75, which on the way to the start it just does.
    assert (found.x_adv.flatten(1).mean(1) < 0.76).all()


def test_fmn_does_not_use_a_start_that_fools_nobody() -> None:
    model, x = cnn(), images(5)
    y = predictions(model, x)
    without, found = FMN(model, steps=10).run(x, y), FMN(model, steps=10).run(x, y, start=x)
    assert all(torch.equal(a, b) for a, b in zip(without, found, strict=True))
    attack = FMN(model, steps=10)
    attack.run(x, y, start=images(5, seed=3))
    assert torch.equal(attack.run(x, y).x_adv, without.x_adv)
    for wrong in (x[:2], x + 1, x.double()):
        with pytest.raises((ValueError, TypeError), match=r"start|x must"):
            attack.run(x, y, start=wrong)


def test_fmn_from_far_comes_as_near_as_from_x() -> None:
    model, x, y = linear(2)
    start = 0.5 + 0.5 * (model.weight[1] - model.weight[0]).sign() * (1 - 2 * y.float())[:, None]
    least = least_norm(model, x, y, "L2")
    found = FMN(model, "L2", compile=False).run(x, y, start=start.detach())
    assert found.success.all()
    assert (found.loss <= 1.01 * least).all()


def test_cw_confidence() -> None:
    model, x, y = linear(3)
    keywords: dict[str, Any] = {"steps": 100, "learning_rate": 0.05, "initial_const": 1.0, "compile": False}
    plain, sure = CW(model, **keywords).run(x, y), CW(model, confidence=0.5, **keywords).run(x, y)
    assert (margins(model, sure.x_adv, y) >= 0.5)[sure.success].all()
    assert sure.success.any()
    assert (sure.loss > plain.loss)[sure.success].all()


def test_cw_searches_end_each_by_itself() -> None:
    """With an early abort points make different numbers of steps, and each those that it makes alone."""
    model, x, y = linear(3)
    attack = CW(model, steps=60, searches=4, learning_rate=0.05, compile=False)
    found = attack.run(x, y)
    assert len(found.steps.unique()) > 3
    assert (found.steps < 4 * 60).any()
    for row in (0, 5, 11):
        assert int(attack.run(x[[row]], y[[row]]).steps) == int(found.steps[row])
    whole = CW(model, steps=60, searches=4, learning_rate=0.05, abort_early=False, compile=False).run(x, y)
    assert (whole.steps == 4 * 60).all()


def test_sigma_zero_does_not_depend_on_the_units() -> None:
    """In a box of width 256 it changes what it changes in one of width 1."""
    model, x = cnn(), images(6)
    y = predictions(model, x)
    bytes_ = nn.Sequential(Scale(1 / 256), model).eval()
    found = SigmaZero(model, 60, compile=False).run(x, y)
    again = SigmaZero(bytes_, 60, box=(0.0, 256.0), compile=False).run(x * 256, y)
    assert found.success.any()
    assert torch.equal(found.x_adv * 256, again.x_adv)
    assert torch.equal(found.loss, again.loss)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


BAD = [
    (lambda m: DDN(m, gamma=1.0), "gamma must be in"),
    (lambda m: DDN(m, init_norm=0.0), "init_norm must be finite and > 0"),
    (lambda m: DDN(m, levels=1), "levels must be None or an integer >= 2"),
    (lambda m: FMN(m, "L3"), "norm must be one of"),
    (lambda m: FMN(m, alpha=-1.0), "alpha must be finite and > 0"),
    (lambda m: FMN(m, gamma_final=0.0), "gamma_final must be in"),
    (lambda m: FMN(m, loss="ce"), "loss must be 'margin'"),
    (lambda m: CW(m, searches=0), "searches must be an integer >= 1"),
    (lambda m: CW(m, learning_rate=0.0), "learning_rate must be finite and > 0"),
    (lambda m: CW(m, confidence=-1.0), "confidence must be finite and >= 0"),
    (lambda m: SigmaZero(m, sigma=0.0), "sigma must be finite and > 0"),
    (lambda m: SigmaZero(m, tau=2.0), "tau must be in"),
    (lambda m: SigmaZero(m, steps=0), "steps must be an integer >= 1"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_errors_name_the_argument(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(nn.Identity())
