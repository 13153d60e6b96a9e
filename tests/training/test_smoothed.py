"""Objectives on noisy copies: what they minimise, whose noise it is, and what their attacks find."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import net, splits
from torch import Tensor, nn

from fastrobust import models, training
from fastrobust.smoothing import Gaussian, losses
from fastrobust.training import OBJECTIVES, Adversary, TrainConfig, smoothed
from fastrobust.training.config import SMOOTHED

SIGMA = 0.3


def batch(size: int = 10) -> tuple[Tensor, Tensor]:
    part = splits().train.subset(slice(0, size))
    return part.images.double(), part.labels


def at(objective: str, index: Tensor | None = None, eps: float = 0.5, **fields: Any) -> Adversary:
    fields = {"sigma": SIGMA, "norm": "L2", "eps": eps, "steps": 3, "compile": False, **fields}
    config = TrainConfig(objective=objective, **fields)
    return Adversary(config, eps, 7, torch.arange(10) if index is None else index)


def denoised(depth: int = 3) -> models.Denoised:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        denoiser = models.DnCNN(1, 4, depth)
        nn.init.normal_(denoiser.noise[-1].weight, std=0.1)
    return models.Denoised(denoiser, net("norm")).double()


def model_for(objective: str) -> nn.Module:
    return (denoised() if objective in ("denoise", "stability") else net()).double().train()


def copy_of(x: Tensor, sample: int, copy: int, seed: int = 7) -> Tensor:
    """One noisy copy, made alone."""
    number = torch.tensor([0])
    return Gaussian(SIGMA).copies(x[sample : sample + 1], number, torch.tensor([copy]), torch.tensor([sample]), seed)


def logits_of(model: nn.Module, x: Tensor, draws: int, points: Tensor | None = None) -> Tensor:
    """(batch, draws, classes), copy by copy; of other points with the noise of x."""
    rows = []
    for i in range(len(x)):
        noisy = torch.cat([copy_of(x, i, k) for k in range(draws)])
        rows.append(model(noisy if points is None else noisy - x[i] + points[i]))
    return torch.stack(rows)


FIXED = "smooth_adv", "smoothmix"


def fixed_points(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> Tensor:
    """An attack that finds these points, so that only the loss is tested."""
    points = (x + 0.2 * torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    monkeypatch.setattr(smoothed, "_pgd", lambda *_: points)
    return points


@pytest.mark.parametrize("objective", ["gaussian", "smooth_adv", "macer", "consistency", "smoothmix"])
def test_losses_are_those_of_the_copies(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = net().double(), batch()
    points = fixed_points(monkeypatch, x)
    adversary = at(objective, draws=3, weight=2.0, margin=6.0, inverse_temperature=3.0, entropy=0.25)
    loss, said = OBJECTIVES[objective](model, x, y, adversary)
    logits = logits_of(model, x, 3, points if objective == "smooth_adv" else None)
    if objective == "macer":
        expected = losses.macer_loss(logits, y, SIGMA, 2.0, 6.0, 3.0)
    elif objective == "consistency":
        expected = losses.consistency_loss(logits, y, 2.0, 0.25)
    elif objective == "smoothmix":
        share = shares(adversary)
        mixed = logits_of(model, x, 3, (1 - share)[:, None, None, None] * x + share[:, None, None, None] * points)
        expected = losses.smoothmix_loss(logits, mixed, y, share, 2.0)
    else:
        expected = losses.augmented_loss(logits, y)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-9, atol=0)
    torch.testing.assert_close(said, losses.mean_log_probability(logits.detach()), rtol=1e-9, atol=1e-12)


def shares(adversary: Adversary) -> Tensor:
    """SmoothMix's, read off what it makes of points 0 and 1."""
    seen: list[Tensor] = []

    class Echo(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return x[:, :1] * torch.tensor([1.0, 0.0], dtype=x.dtype)

    x = torch.zeros(len(adversary.index), 1, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smoothed, "_pgd", lambda *_: torch.ones_like(x))
        OBJECTIVES["smoothmix"](Echo(), x, torch.zeros(len(x), dtype=torch.int64), adversary)
    clean, mixed = seen
    return (mixed - clean).view(len(x), -1)[:, 0]


def test_mixing_shares_are_uniform_and_belong_to_the_sample() -> None:
    index = torch.randperm(4000)
    share = shares(at("smoothmix", index, draws=1))
    assert 0 <= share.min() < 0.01
    assert 0.49 < share.max() <= 0.5
    assert abs(share.mean() - 0.25) < 4 * 0.5 / math.sqrt(12 * 4000)
    torch.testing.assert_close(shares(at("smoothmix", index[:50], draws=1)), share[:50], rtol=0, atol=1e-9)


@pytest.mark.parametrize("objective", SMOOTHED)
def test_gradients_by_finite_differences(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = model_for(objective), batch()
    fixed_points(monkeypatch, x)
    adversary = at(objective, draws=2, margin=20.0, inverse_temperature=2.0)

    def loss() -> Tensor:
        return OBJECTIVES[objective](model, x, y, adversary)[0]

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    slopes = torch.autograd.grad(loss(), trained)
    torch.manual_seed(2)
    for parameter, slope in zip(trained, slopes, strict=True):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-6 * direction
            high = loss()
            parameter -= 2e-6 * direction
            low = loss()
            parameter += 1e-6 * direction
        torch.testing.assert_close((slope * direction).sum(), (high - low) / 2e-6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", SMOOTHED)
def test_a_sample_meets_the_same_noise_in_any_batch(objective: str) -> None:
    """The mean over a batch is the weighted mean over its parts, as ranks take it; another seed is other noise."""
    model, (x, y) = model_for(objective).eval(), batch()
    whole = OBJECTIVES[objective](model, x, y, at(objective))[0]
    total = 0.0
    for part in (torch.tensor([8, 1, 0, 5]), torch.tensor([2, 3, 4, 6, 7, 9])):
        total += float(OBJECTIVES[objective](model, x[part], y[part], at(objective, part))[0].detach()) * len(part) / 10
    assert total == pytest.approx(float(whole.detach()), rel=1e-9)
    other = Adversary(at(objective).config, 0.5, 8, torch.arange(10))
    assert float(OBJECTIVES[objective](model, x, y, other)[0].detach()) != total


@pytest.mark.parametrize("objective", SMOOTHED)
def test_autocast_changes_little(objective: str) -> None:
    model, (x, y) = model_for(objective).float(), batch()
    exact, _ = OBJECTIVES[objective](model, x.float(), y, at(objective))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = OBJECTIVES[objective](model, x.float(), y, at(objective))
    rounded.backward()
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- attacks ----------------------------------------------------------------------------------------------------


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


def test_the_added_terms_come_in_as_eps_grows() -> None:
    model, (x, _) = net().double(), batch()
    y = logits_of(model, x, 2).softmax(2).mean(1).argmax(1)  # MACER's term is there where the answer is right
    for objective in ("macer", "consistency", "smoothmix", "smooth_adv"):
        config = at(objective, draws=2).config
        start, half = (
            OBJECTIVES[objective](model, x, y, Adversary(config, eps, 7, torch.arange(10)))[0] for eps in (0.0, 0.25)
        )
        plain = losses.augmented_loss(logits_of(model, x, 2), y)
        if objective == "macer":
            plain = losses.smooth_adv_loss(logits_of(model, x, 2), y)
        torch.testing.assert_close(start, plain.mean(), rtol=1e-6, atol=0)
        assert half > start


# --- denoisers --------------------------------------------------------------------------------------------------


def test_denoising_objectives_train_the_denoiser_alone() -> None:
    x, y = batch()
    for objective in ("denoise", "stability"):
        model = denoised().train()
        frozen = {name: value.clone() for name, value in model.classifier.state_dict().items()}
        loss, _ = OBJECTIVES[objective](model, x, y, at(objective, draws=2))
        loss.backward()
        assert all(p.grad is not None for p in model.denoiser.parameters())
        assert all(p.grad is None for p in model.classifier.parameters())
        assert all(torch.equal(value, frozen[name]) for name, value in model.classifier.state_dict().items())
        assert not model.classifier.training
        assert model.denoiser.training
        twin = denoised().train()
        copies = torch.cat([copy_of(x, i, k) for i in range(10) for k in range(2)])
        clean = twin.denoiser(copies)
        if objective == "denoise":
            expected = ((clean - x.repeat_interleave(2, 0)) ** 2).mean()
        else:
            answer = twin.classifier(x).argmax(1).repeat_interleave(2)
            expected = nn.functional.cross_entropy(twin.classifier(clean), answer)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("objective", ["denoise", "stability"])
def test_a_denoiser_is_needed(objective: str) -> None:
    x, y = batch()
    with pytest.raises(ValueError, match=f"{objective}: model must be a fastrobust.models.Denoised, got Sequential"):
        OBJECTIVES[objective](net(), x, y, at(objective))


# --- settings ---------------------------------------------------------------------------------------------------


def test_draws_are_the_authors_where_none_are_given() -> None:
    found = {name: at(name).config.noise_draws for name in SMOOTHED}
    assert found == {"gaussian": 1, "smooth_adv": 4, "macer": 16, "consistency": 2, "smoothmix": 4, "denoise": 1,
                     "stability": 1}  # fmt: skip
    assert at("macer", draws=3).config.noise_draws == 3
    assert at("macer", draws=3).config == TrainConfig.from_json(at("macer", draws=3).config.to_json())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "gaussian"}, "sigma must be > 0 for gaussian, got 0.0"),
        ({"objective": "macer", "sigma": -0.5}, "sigma must be finite and >= 0, got -0.5"),
        ({"sigma": math.inf}, "sigma must be finite and >= 0, got inf"),
        ({"objective": "macer", "sigma": 0.5, "draws": 0}, "draws must be finite and >= 1, got 0"),
        ({"objective": "consistency", "sigma": 0.5, "draws": 1}, "draws must be >= 2 for consistency, got 1"),
        ({"objective": "smooth_adv", "sigma": 0.5}, "norm must be L2 for smooth_adv, got 'Linf'"),
        ({"objective": "smoothmix", "sigma": 0.5, "norm": "L1"}, "norm must be L2 for smoothmix, got 'L1'"),
        ({"val_bounds": "smoothing"}, "sigma must be > 0 for val_bounds='smoothing', got 0.0"),
        ({"val_bounds": "smoothing", "sigma": 0.5}, "norm must be L2 for val_bounds='smoothing', got 'Linf'"),
        ({"val_bounds": "smoothing", "sigma": 0.5, "norm": "L2", "eps": 0.0}, "eps must be > 0 for val_bounds="),
        ({"margin": 0.0}, "margin must be > 0, got 0.0"),
        ({"inverse_temperature": 0.0}, "inverse_temperature must be > 0, got 0.0"),
        ({"weight": -1.0}, "weight must be finite and >= 0, got -1.0"),
        ({"inner": "fgsm"}, r"inner must be one of \('pgd', 'ddn'\), got 'fgsm'"),
        ({"val_draws": 0}, "val_draws must be finite and >= 1, got 0"),
    ],
)
def test_unusable_settings_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


def test_exported() -> None:
    functions: list[Callable[..., Any]] = [getattr(training, name) for name in SMOOTHED]
    assert [OBJECTIVES[name] for name in SMOOTHED] == functions
