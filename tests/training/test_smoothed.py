"""Objectives on noisy copies: what they minimise, and whose noise it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from noisy import SIGMA, at, batch, copy_of, denoised, logits_of, model_for
from small import net
from torch import Tensor, nn

from fastrobust import training
from fastrobust.smoothing import losses
from fastrobust.training import OBJECTIVES, Adversary, TrainConfig, smoothed
from fastrobust.training.config import SMOOTHED


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
