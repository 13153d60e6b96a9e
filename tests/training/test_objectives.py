"""Objectives: the losses of the papers, and attacks that see what they should."""

from __future__ import annotations

import torch
from small import net, splits
from torch import Tensor, nn

from fastrobust import training
from fastrobust.training import Adversary, TrainConfig


class FixedAdversary(Adversary):
    """Hands out given points, so that only the loss is tested."""

    def __init__(self, config: TrainConfig, points: Tensor) -> None:
        super().__init__(config, config.eps, 0, torch.arange(len(points)))
        object.__setattr__(self, "points", points)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, *_: object, **__: object) -> Tensor:
        points: Tensor = self.points  # type: ignore[attr-defined]
        return points


class Recorder(nn.Module):
    """Notes the input and the mode of every forward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls: list[tuple[Tensor, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((x.detach().clone(), self.training))
        out: Tensor = self.inner(x)
        return out


def batch(size: int = 12) -> tuple[Tensor, Tensor]:
    part = splits().train.subset(slice(0, size))
    return part.images, part.labels


def test_trades_loss_and_gradient_equal_the_formula() -> None:
    torch.manual_seed(1)
    model, (x, y) = net().double(), batch()
    x = x.double()
    adversarial = (x + 0.2 * torch.rand_like(x)).clamp(0, 1)
    loss, _ = training.trades(model, x, y, FixedAdversary(TrainConfig(beta=6.0), adversarial))
    gradient = torch.autograd.grad(loss, list(model.parameters()))

    def formula() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(len(x)):
            p, q = model(x[i : i + 1]).softmax(1)[0], model(adversarial[i : i + 1]).softmax(1)[0]
            total = total - p[y[i]].log() + 6.0 * (p * (p / q).log()).sum()
        return total / len(x)

    torch.testing.assert_close(loss, formula(), rtol=1e-10, atol=0)
    # By finite differences, so that a detached distribution would show.
    for parameter, slope in zip(model.parameters(), gradient, strict=True):
        position = int(slope.abs().argmax())
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[position] += 1e-5
            high = formula()
            flat[position] -= 2e-5
            low = formula()
            flat[position] += 1e-5
        torch.testing.assert_close(slope.view(-1)[position], (high - low) / 2e-5, rtol=1e-5, atol=1e-8)


def test_pgd_loss_is_cross_entropy_at_the_adversarial_points() -> None:
    model, (x, y) = net(), batch()
    adversarial = (x + 0.1).clamp(0, 1)
    loss, logits = training.pgd(model, x, y, FixedAdversary(TrainConfig(), adversarial))
    torch.testing.assert_close(loss, nn.functional.cross_entropy(model(adversarial), y))
    torch.testing.assert_close(logits, model(adversarial))


def test_trades_attacks_in_eval_mode_with_one_clean_pass() -> None:
    model = Recorder(net("norm")).train()
    x, y = batch()
    config = TrainConfig(objective="trades", eps=0.1, steps=4, compile=False)  # a compiled copy records no calls
    training.trades(model, x, y, Adversary(config, 0.1, 7, torch.arange(len(x))))
    in_training = [call for call, mode in model.calls if mode]
    attacked = [call for call, mode in model.calls if not mode]
    assert [torch.equal(call, x) for call in in_training] == [True, False]
    assert sum(torch.equal(call, x) for call in attacked) == 1
    start = next(call for call in attacked if not torch.equal(call, x))
    moved = (start - x)[(x > 0.1) & (x < 0.9)]  # away from the box the start is not clipped
    assert 0.0008 < moved.std() < 0.0012


def test_the_trades_attack_raises_the_divergence_it_is_trained_on() -> None:
    model, (x, y) = net().eval(), batch(60)
    config = TrainConfig(objective="trades", eps=0.1, steps=10)
    adversary = Adversary(config, 0.1, 3, torch.arange(len(x)))
    start = x + 0.001 * adversary.normal_like(x)
    points = adversary.attack(model, x, y, loss="kl", start=start)

    def divergence(at: Tensor) -> Tensor:
        return nn.functional.kl_div(model(at).log_softmax(1), model(x).softmax(1), reduction="none").sum(1)

    with torch.no_grad():
        assert (divergence(points) > 10 * divergence(start)).all()
    assert (points - x).abs().max() <= 0.1 + 1e-6


def test_noise_belongs_to_the_sample_not_to_its_place_in_the_batch() -> None:
    x, index = torch.zeros(300, 1, 8, 8), torch.randperm(1000)[:300]
    noise = Adversary(TrainConfig(), 0.1, 5, index).normal_like(x)
    order = torch.randperm(300)
    assert torch.equal(Adversary(TrainConfig(), 0.1, 5, index[order]).normal_like(x), noise[order])
    assert not torch.equal(Adversary(TrainConfig(), 0.1, 6, index).normal_like(x), noise)
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert len(noise.view(300, -1).unique(dim=0)) == 300


def test_a_step_size_scales_with_the_warmed_up_radius() -> None:
    model, (x, y) = net(), batch()
    for eps in (0.0, 0.05):
        points = Adversary(TrainConfig(eps=0.1, alpha=0.4, steps=1, random_start=False), eps, 0, torch.arange(12))
        moved = (points.attack(model, x, y) - x).abs().amax((1, 2, 3))
        torch.testing.assert_close(moved, torch.full_like(moved, eps))
