"""Certified objectives: the papers' losses, gradients, where boxes lie, initial weights, runs from start to end."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import net, splits
from torch import Tensor, nn

import fastrobust as fr
from fastrobust import training
from fastrobust.bounds import Propagation
from fastrobust.training import Adversary, TrainConfig, fit
from fastrobust.training.certified import balance


class FixedAdversary(Adversary):
    """Hands out given points, and remembers that it was asked."""

    points: Tensor

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, *_: object, **__: object) -> Tensor:
        return self.points


def at(eps: float, points: Tensor | None = None, **settings: Any) -> FixedAdversary:
    found = FixedAdversary(TrainConfig(eps=0.2, **settings), eps, 0, torch.arange(4))
    if points is not None:
        object.__setattr__(found, "points", points)
    return found


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    part = splits().train.subset(slice(0, count))
    return part.images.double(), part.labels


def worst(model: nn.Module, lower: Tensor, upper: Tensor, y: Tensor, method: str = "ibp") -> Tensor:
    return fr.bounds.margins(model, (lower + upper) / 2, y, (lower, upper), method, sound=False)


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.2])
def test_ibp_is_its_formula(eps: float) -> None:
    model, (x, y) = net().double(), batch()
    loss, logits = training.ibp(model, x, y, at(eps, kappa=0.3))
    assert torch.allclose(logits, model(x))
    share = 1 - eps / 0.2 * 0.7
    margins = worst(model, (x - eps).clamp(0, 1), (x + eps).clamp(0, 1), y)
    expected = share * F.cross_entropy(model(x), y) + (1 - share) * F.cross_entropy(-margins, y)
    assert torch.allclose(loss, expected, rtol=1e-9)


@pytest.mark.parametrize("eps", [0.01, 0.1])
def test_crown_ibp_mixes_both_margins(eps: float) -> None:
    model, (x, y) = net("norm").double().eval(), batch()
    box = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    loss, _ = training.crown_ibp(model, x, y, at(eps, kappa=0.5))
    share = eps / 0.2
    margins = (1 - share) * worst(model, *box, y, "crown_ibp") + share * worst(model, *box, y)
    expected = (1 - share / 2) * F.cross_entropy(model(x), y) + share / 2 * F.cross_entropy(-margins, y)
    assert torch.allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("make", ["norm", "plain"])
def test_loss_fusion_bounds_the_loss(make: str) -> None:
    model, (x, y) = net(make).double().eval(), batch()
    lower, upper = (x - 0.03).clamp(0, 1), (x + 0.03).clamp(0, 1)
    found = Propagation(model, x)(x, lower, upper, keep=True)
    bound = found.fused_cross_entropy(y)
    for _ in range(200):
        z = model(lower + (upper - lower) * torch.rand_like(x).round())
        assert (F.cross_entropy(z, y, reduction="none") <= bound + 1e-12).all()
    # Sample by sample: the chords of the exponentials are a last layer, bounded by CROWN-IBP.
    boxes = fr.bounds.ibp(nn.Sequential(model[:-1]), x, (lower, upper), sound=False)
    head = model[-1]
    assert isinstance(head, nn.Linear)
    for k, label in enumerate(y.tolist()):
        apart, shift = head.weight - head.weight[label], head.bias - head.bias[label]
        centre, radius = (boxes.lower[k] + boxes.upper[k]) / 2, (boxes.upper[k] - boxes.lower[k]) / 2
        low, high = (apart @ centre + sign * apart.abs() @ radius + shift for sign in (-1, 1))
        slope = torch.where(high > low, (high.exp() - low.exp()) / (high - low), 1)
        last = nn.Linear(len(slope), 1).double()
        last.weight.data, last.bias.data = slope[None], (high.exp() - slope * high).sum()[None]
        difference = nn.Linear(head.in_features, len(slope)).double()
        difference.weight.data, difference.bias.data = apart, shift
        whole = nn.Sequential(*model[:-1], difference, last)
        sums = fr.bounds.crown_ibp(whole, x[k : k + 1], (lower[k : k + 1], upper[k : k + 1]), sound=False).upper
        assert torch.allclose(sums.log()[0, 0], bound[k], rtol=1e-9)
    mixed = found.fused_cross_entropy(y, 0.25)
    assert torch.allclose(mixed.exp(), 0.75 * bound.exp() + 0.25 * found.cross_entropy(y).exp(), rtol=1e-9)


def test_loss_fusion_of_logits_far_apart_is_finite() -> None:
    model, (x, y) = net("norm").double().eval(), batch()
    head = list(model.children())[-1]
    assert isinstance(head, nn.Linear)
    head.weight.data.mul_(1e5)
    loss = Propagation(model, x)(x, x - 0.1, x + 0.1, keep=True).fused_cross_entropy(y)
    loss.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(loss).all()
    exact = Propagation(model, x)(x, x, x, keep=True).fused_cross_entropy(y)
    assert torch.allclose(exact, F.cross_entropy(model(x), y, reduction="none"), rtol=1e-6)


def test_sabrs_boxes_are_small_and_within_the_whole_one() -> None:
    model, (x, y) = net().double(), batch()
    points = (x + 0.2 * torch.randn_like(x).sign()).clamp(0, 1)
    loss, logits = training.sabr(model, x, y, at(0.2, points, subset=0.25))
    centre = x + (points - x).clamp(-0.15, 0.15)
    lower, upper = (centre - 0.05).clamp(0, 1), (centre + 0.05).clamp(0, 1)
    assert (lower >= x - 0.2 - 1e-12).all()
    assert (upper <= x + 0.2 + 1e-12).all()
    assert torch.allclose(loss, F.cross_entropy(-worst(model, lower, upper, y), y), rtol=1e-9)
    assert torch.allclose(logits, model(centre))


def test_mtl_ibp_is_a_convex_combination() -> None:
    model, (x, y) = net().double(), batch()
    points = (x + 0.1).clamp(0, 1)
    loss, logits = training.mtl_ibp(model, x, y, at(0.2, points, mixture=0.1))
    margins = worst(model, (x - 0.2).clamp(0, 1), (x + 0.2).clamp(0, 1), y)
    expected = 0.9 * F.cross_entropy(model(points), y) + 0.1 * F.cross_entropy(-margins, y)
    assert torch.allclose(loss, expected, rtol=1e-9)
    assert torch.allclose(logits, model(points))


@pytest.mark.parametrize("objective", ["ibp", "crown_ibp", "crown_ibp, fused", "sabr", "mtl_ibp"])
def test_gradients_by_finite_differences(objective: str) -> None:
    objective, _, fused = objective.partition(", ")
    torch.manual_seed(0)
    model, (x, y) = net("norm").double().train(), batch(6)
    points = (x + 0.02).clamp(0, 1)
    adversary = at(0.05, points, regularizer=0.5, mixture=0.3, loss_fusion=bool(fused))
    parameters = [p for name, p in model.named_parameters() if not name.endswith("0.bias")]

    def loss() -> Tensor:
        return training.OBJECTIVES[objective](model, x, y, adversary)[0]

    slopes = torch.autograd.grad(loss(), parameters, allow_unused=True)
    checked = 0
    for parameter, slope in zip(parameters, slopes, strict=True):
        if slope is None:
            continue
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-7 * direction
            high = loss()
            parameter -= 2e-7 * direction
            low = loss()
            parameter += 1e-7 * direction
        torch.testing.assert_close((slope * direction).sum(), (high - low) / 2e-7, rtol=1e-4, atol=1e-6)
        checked += 1
    assert checked >= 10


def test_batch_norm_sees_the_clean_batch_once() -> None:
    model, (x, y) = net("norm").double().train(), batch()
    other = copy.deepcopy(model)
    training.ibp(model, x, y, at(0.2))
    other(x)
    for (name, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12), name


def test_running_statistics_are_not_those_of_the_batch() -> None:
    """In eval mode the margins change with the running statistics, in training mode with the batch."""
    model, (x, y) = net("norm").double(), batch()
    propagation = Propagation(model, x)
    model.train()
    in_training = propagation(x, x, x).margins(y)
    model.eval()
    in_eval = propagation(x, x, x).margins(y)
    assert (in_training - in_eval).abs().max() > 0.01


def test_balance_is_that_of_shi_et_al() -> None:
    torch.manual_seed(3)
    model, (x, _) = net().double(), batch()
    propagation = Propagation(model, x)
    found = propagation(x, x - 0.1, x + 0.1, keep=True)
    hidden, first = model[1], 0.1
    centre = F.linear(x.flatten(1), hidden.weight, hidden.bias)
    radius = F.linear(torch.full_like(x.flatten(1), 0.1), hidden.weight.abs())
    expected = F.relu(0.5 - first / radius.mean()) / 0.5
    active, inactive = centre - radius > 0, centre + radius < 0
    assert active.any()
    assert inactive.any()
    mean = (centre * active).mean() / -(centre * inactive).mean()
    spread = (centre - centre.mean()) ** 2
    variance = (spread * active).sum() / (spread * inactive).sum()
    expected = expected + (F.relu(0.5 - min(mean, 1 / mean)) + F.relu(0.5 - min(variance, 1 / variance))) / 0.5
    assert torch.allclose(balance(found), expected)


def test_initial_weights_keep_boxes_from_growing() -> None:
    torch.manual_seed(0)
    model = fr.models.mlp((1, 16, 16), (200, 200, 200, 200), 10)
    training.ibp_init(model, 3)
    assert float(model[1].weight.detach().std()) == pytest.approx(math.sqrt(2 * math.pi) / 256, rel=0.02)
    x = torch.rand(16, 1, 16, 16)
    propagation = Propagation(model, x)
    values = propagation(x, x - 0.01, x + 0.01, keep=True).values
    radii = [float(values[step.inputs[0]].radius.mean()) for step in propagation.program.steps[2:-1:2]]
    assert len(radii) == 4
    assert all(0.5 < b / a < 2 for a, b in pairwise(radii))
    again = fr.models.mlp((1, 16, 16), (200, 200, 200, 200), 10)
    training.ibp_init(again, 3)
    assert torch.equal(again[1].weight, model[1].weight)


QUICK: dict[str, Any] = {
    "epochs": 12, "batch_size": 32, "optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.0, "schedule": "constant",
    "eps": 0.01, "eps_warmup": 4, "eps_growth": "smoothed", "val_steps": 5, "val_bounds": "ibp", "compile": False,
}  # fmt: skip


@pytest.mark.parametrize("objective", ["ibp", "crown_ibp", "sabr", "mtl_ibp"])
def test_a_run_ends_certified_and_resumes_the_same(objective: str, tmp_path: Path) -> None:
    config = TrainConfig(objective=objective, **QUICK, steps=2, mixture=0.5, regularizer=0.1)
    model = net("norm")
    result = fit(model, splits(), config, tmp_path / "a", progress=False)
    last = result.history[-1]
    assert last["certified"] is not None
    assert last["certified"] <= last["robust"] <= last["clean"]
    best = max(row["certified"] for row in result.history)
    assert result.best.certified == best > 0.3
    # What a sound bound says of the weights that were kept.
    part = splits().val
    margins = fr.bounds.margins(model.eval(), part.images, part.labels, fr.Linf(0.01), "ibp")
    proven = (margins > 0).scatter(1, part.labels[:, None], True).all(1)
    assert float(proven.double().mean()) == pytest.approx(best)

    class Killed(Exception):
        pass

    def stop(*_: object) -> None:
        raise Killed

    other = net("norm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.checkpoint, "save", _saves(training.checkpoint.save, 4, stop))
        with pytest.raises(Killed):
            fit(other, splits(), config, tmp_path / "b", progress=False)
    again = fit(net("norm", seed=5), splits(), config, tmp_path / "b", progress=False)
    assert all(torch.equal(again.best.weights[name], value) for name, value in result.best.weights.items())


def _saves(save: Any, count: int, stop: Any) -> Any:
    """`save`, followed by a kill after so many calls."""
    calls = []

    def saved(*arguments: Any) -> None:
        save(*arguments)
        calls.append(1)
        if len(calls) == count:
            stop()

    return saved
