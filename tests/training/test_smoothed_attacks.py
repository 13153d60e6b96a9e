"""SmoothAdv's attacks: where they end on a plane, whose noise they meet, and what they leave alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from noisy import SIGMA, at, batch, logits_of
from small import net
from torch import Tensor, nn

from fastrobust.smoothing import losses
from fastrobust.training import OBJECTIVES, Adversary, smoothed


def half_space(dim: int = 6) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Two classes and a plane: its model, points of class 1 with their distances to it."""
    torch.manual_seed(0)
    weight = torch.randn(dim, dtype=torch.float64)
    weight /= weight.norm()
    model = nn.Sequential(nn.Flatten(), nn.Linear(dim, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-weight, weight]) / 2)
    distance = torch.linspace(0.1, 1.5, 8, dtype=torch.float64)
    side = torch.randn(8, dim, dtype=torch.float64)
    x = side - (side @ weight)[:, None] * weight + distance[:, None] * weight
    return model, x, distance


WIDE = (-100.0, 100.0)


def found_by(inner: str, eps: float, steps: int = 8, draws: int = 64, **fields: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What SmoothAdv's attack makes of the points before the plane, read off what it then trains on."""
    model, x, distance = half_space()
    adversary = at("smooth_adv", torch.arange(8), eps, inner=inner, steps=steps, draws=draws, **fields)
    adversary = Adversary(adversary.config, eps, 7, adversary.index, WIDE)
    noise = smoothed._copies(torch.zeros_like(x), adversary)
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    OBJECTIVES["smooth_adv"](model, x, torch.ones(8, dtype=torch.int64), adversary)
    hook.remove()
    points = (seen[-1] - noise).view(8, draws, -1)
    torch.testing.assert_close(points, points[:, :1].expand_as(points), rtol=0, atol=1e-12)  # the attack's own noise
    return points[:, 0], x, distance


@pytest.mark.parametrize("fields", [{}, {"alpha": 0.05}])
def test_pgd_goes_straight_to_a_plane(fields: dict[str, Any]) -> None:
    """8 steps of 2 eps / 8 reach the ball's end; 8 of 0.05 have gone 0.4."""
    points, x, _ = found_by("pgd", 0.75, **fields)
    weight = half_space()[0][1].weight.detach()
    direction = (weight[0] - weight[1]) / (weight[0] - weight[1]).norm()
    torch.testing.assert_close(points, x + (0.4 if fields else 0.75) * direction, rtol=0, atol=1e-9)


def test_ddn_finds_the_nearest_point_that_most_copies_get_wrong() -> None:
    points, x, distance = found_by("ddn", 0.6, steps=40)
    moved, model = (points - x).norm(dim=1), half_space()[0]
    reached = distance < 0.5
    assert (moved <= 0.6 + 1e-12).all()
    # Copies are a sample: their median lies within 4 standard errors of the plane, and the radius moves in steps of 5%.
    error = 4 * 1.2533 * SIGMA / math.sqrt(64)
    assert ((moved - distance)[reached].abs() < error + 0.1 * distance[reached]).all()
    copies = smoothed._repeated(
        points, smoothed._copies(torch.zeros_like(x), at("smooth_adv", torch.arange(8), draws=64))
    )
    wrong = (model(copies).argmax(1) == 0).view(8, 64).double().mean(1)
    assert (wrong[reached] >= 0.5).all()


def test_ddn_leaves_points_that_it_cannot_reach() -> None:
    points, x, _ = found_by("ddn", 0.02, steps=2)
    far = slice(4, None)  # beyond 0.02 * 1.05^2 and what noise of 64 copies can move the median
    assert torch.equal(points[far], x[far]) or (points[far] - x[far]).abs().max() < 1e-12


@pytest.mark.parametrize("inner", ["pgd", "ddn"])
def test_attacks_stay_in_ball_and_box_and_raise_the_loss(inner: str) -> None:
    model, (x, _) = net().double(), batch()
    y = logits_of(model, x, 8).argmax(2).mode(1).values  # DDN leaves what is wrong already
    adversary = at("smooth_adv", eps=1.5, inner=inner, steps=10, draws=8)
    noise = smoothed._copies(torch.zeros_like(x), adversary)
    if inner == "pgd":
        points = smoothed._pgd(model, x, y, noise, adversary, 0.3, 1.5)
    else:
        points = smoothed._ddn(model, x, y, noise, adversary)
    assert points.min() >= 0
    assert points.max() <= 1
    assert (points - x).flatten(1).norm(dim=1).max() <= 1.5
    before, after = (losses.smooth_adv_loss(logits_of(model, x, 8, p), y).detach() for p in (x, points))
    assert (after >= before - 1e-9).all()
    assert after.mean() > before.mean() + 0.05


def test_the_attack_is_in_eval_mode_and_batch_norm_sees_the_copies_once() -> None:
    modes: list[bool] = []
    model, (x, y) = net("norm").double().train(), batch()
    twin = net("norm").double().train()
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    adversary = at("smooth_adv", draws=2)
    with pytest.MonkeyPatch.context() as patch:
        found: list[Tensor] = []
        real = smoothed._pgd
        patch.setattr(smoothed, "_pgd", lambda *args: found.append(real(*args)) or found[0])
        OBJECTIVES["smooth_adv"](model, x, y, adversary)
    assert modes == [False] * 3 + [True]
    twin(smoothed._repeated(found[0], smoothed._copies(torch.zeros_like(x), adversary)))
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


def test_attacks_with_batch_statistics_leave_the_running_ones() -> None:
    model, (x, y) = net("norm").double().train(), batch()
    adversary = at("smooth_adv", attack_mode="train", draws=2)
    before = [buffer.clone() for buffer in model.buffers()]
    smoothed._pgd(model, x, y, smoothed._copies(torch.zeros_like(x), adversary), adversary, 0.1, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
