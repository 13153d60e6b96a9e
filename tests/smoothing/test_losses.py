"""Losses of training for smoothing: the published formulas, sample by sample in float64, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor

from fastrobust.smoothing import losses

BATCH, DRAWS, CLASSES = 12, 5, 4
Floats = NDArray[np.float64]


def drawn(seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits and labels, about half of them right."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(BATCH, DRAWS, CLASSES, dtype=torch.float64, generator=generator)
    y = torch.randint(CLASSES, (BATCH,), generator=generator)
    y[::2] = logits.softmax(2).mean(1).argmax(1)[::2]
    return logits, y


def probabilities(logits: Tensor) -> Floats:
    values: Floats = special.softmax(logits.numpy(), axis=2)
    return values


def by_hand(logits: Tensor, y: Tensor, one: Callable[[Floats, int], float]) -> Tensor:
    """A formula of the probabilities (draws, classes) and the label, for each sample."""
    each = zip(probabilities(logits), y.tolist(), strict=True)
    return torch.tensor([one(p, label) for p, label in each], dtype=torch.float64)


def test_augmentation_is_the_mean_cross_entropy() -> None:
    logits, y = drawn()
    expected = by_hand(logits, y, lambda p, label: float(-np.log(p[:, label]).mean()))
    torch.testing.assert_close(losses.augmented_loss(logits, y), expected, rtol=1e-12, atol=0)


def test_smooth_adv_is_the_cross_entropy_of_the_mean() -> None:
    logits, y = drawn()
    expected = by_hand(logits, y, lambda p, label: -math.log(p.mean(0)[label]))
    torch.testing.assert_close(losses.smooth_adv_loss(logits, y), expected, rtol=1e-12, atol=0)


def test_smooth_adv_has_a_gradient_where_the_probability_vanishes() -> None:
    """The published clamp at 1e-20 would leave the attack without a direction here."""
    logits = torch.tensor([[[0.0, 300.0], [0.0, 400.0]]], requires_grad=True)
    loss = losses.smooth_adv_loss(logits, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor([300 + math.log(2)]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient[0], torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))


@pytest.mark.parametrize("margin", [0.5, 2.0, 8.0])
def test_macer_is_that_of_zhai_et_al(margin: float) -> None:
    """As their code: what is not right, and what is beyond gamma, has no second term."""
    logits, y = drawn(scale=0.4)
    sigma, weight, beta, terms = 0.25, 12.0, 16.0, []
    sharp = special.softmax(beta * logits.numpy(), axis=2).mean(1)
    for p, label in zip(sharp, y.tolist(), strict=True):
        second, first = np.sort(p)[-2:]
        gap = stats.norm.ppf(second) - stats.norm.ppf(first)
        counts = p.argmax() == label and np.isfinite(gap) and abs(gap) <= margin
        terms.append(sigma / 2 * (gap + margin) if counts else 0.0)
    robust = torch.tensor(terms, dtype=torch.float64)
    assert 0 < int((robust > 0).sum()) < BATCH
    classified = by_hand(logits, y, lambda p, label: -math.log(p.mean(0)[label] + 1e-10))
    found = losses.macer_loss(logits, y, sigma, weight, margin, beta)
    torch.testing.assert_close(found, classified + weight * robust, rtol=1e-10, atol=1e-12)


def test_macer_is_finite_where_float32_saturates() -> None:
    """p_1 rounds to 1 from a lead of 17 on; at 1e4 everything underflows. The term ends where xi reaches gamma."""
    leads = torch.tensor([0.01, 0.1, 0.3, 0.5, 1.0, 1.2, 2.0, 5.0, 40.0, 1e4])
    logits = torch.zeros(len(leads), 3, 10)
    logits[:, :, 2] = leads[:, None]
    y = torch.full((len(leads),), 2)
    for margin in (8.0, 12.0):  # at 12 it counts where float32 has p_1 = 1
        exact = logits.double().requires_grad_()
        single = logits.clone().requires_grad_()
        pairs = [(values, losses.macer_loss(values, y, 0.5, margin=margin)) for values in (exact, single)]
        (_, expected), (_, found) = pairs
        wanted, slope = (torch.autograd.grad(loss.sum(), values)[0] for values, loss in pairs)
        assert found.isfinite().all()
        assert slope.isfinite().all()
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=1e-5)
        torch.testing.assert_close(slope.double(), wanted, rtol=1e-4, atol=1e-5)
    saturated = (16 * logits).softmax(2).mean(1)[:, 2] == 1
    gains = losses.macer_loss(logits, y, 0.5, margin=12.0) > losses.macer_loss(logits, y, 0.5, weight=0.0)
    assert (saturated & gains).any()
    assert not gains[-1]


@pytest.mark.parametrize("margin", [24.0, 28.0, 40.0])
def test_macer_has_finite_gradients_up_to_the_smallest_numbers(margin: float) -> None:
    logits = torch.zeros(4000, 1, 3)
    logits[:, 0, 1] = torch.linspace(4, 7, 4000)  # the others go from 1e-28 through subnormal numbers to 0
    values = logits.requires_grad_()
    found = losses.macer_loss(values, torch.ones(4000, dtype=torch.int64), 0.5, margin=margin)
    assert found.isfinite().all()
    assert torch.autograd.grad(found.sum(), values)[0].isfinite().all()


@pytest.mark.parametrize("loss", ["macer", "consistency", "smoothmix"])
def test_certain_and_wrong_is_finite(loss: str) -> None:
    logits = torch.tensor([[[1e4, 0.0, -1e4]] * 3, [[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0], [0.0, 0.0, 0.0]]])
    for y in (torch.tensor([0, 0]), torch.tensor([2, 1])):
        values = logits.clone().requires_grad_()
        if loss == "macer":
            found = losses.macer_loss(values, y, 0.5)
        elif loss == "consistency":
            found = losses.consistency_loss(values, y)
        else:
            found = losses.smoothmix_loss(values, values.flip(1) * 0.5, y, torch.tensor([0.0, 0.5]))
        assert found.isfinite().all()
        assert torch.autograd.grad(found.sum(), values)[0].isfinite().all()


def test_consistency_is_that_of_jeong_and_shin() -> None:
    logits, y = drawn(1)

    def one(p: Floats, label: int) -> float:
        mean = p.mean(0)
        divergence = np.mean([special.rel_entr(mean, each).sum() for each in p])
        return float(-np.log(p[:, label]).mean() + 20 * divergence + 0.5 * stats.entropy(mean))

    found = losses.consistency_loss(logits, y, 20.0, 0.5)
    torch.testing.assert_close(found, by_hand(logits, y, one), rtol=1e-12, atol=0)
    same = logits[:, :1].expand(-1, 3, -1)  # copies that agree diverge in nothing
    plain = losses.augmented_loss(same, y)
    torch.testing.assert_close(losses.consistency_loss(same, y, 20.0, 0.0), plain, rtol=1e-12, atol=1e-12)


def test_smoothmix_is_that_of_jeong_et_al() -> None:
    (logits, y), (mixed, _) = drawn(2), drawn(3)
    share, eta, expected = torch.linspace(0, 0.5, BATCH, dtype=torch.float64), 5.0, []
    right = 0
    for p, q, label, part in zip(probabilities(logits), probabilities(mixed), y.tolist(), share.tolist(), strict=True):
        mean = p.mean(0)
        target = (1 - part) * mean + part / CLASSES
        divergence = np.mean([special.rel_entr(target, each).sum() for each in q])
        right += mean.argmax() == label
        expected.append(-np.log(p[:, label]).mean() + eta * (mean.argmax() == label) * divergence)
    assert 0 < right < BATCH
    found = losses.smoothmix_loss(logits, mixed, y, share, eta)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_denoising_losses() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64, generator=generator)
    denoised = torch.rand(3, 5, 2, 4, 4, dtype=torch.float64, generator=generator)
    expected = torch.tensor([np.mean((denoised[i].numpy() - x[i].numpy()) ** 2) for i in range(3)])
    torch.testing.assert_close(losses.denoising_loss(denoised, x), expected, rtol=1e-12, atol=0)
    logits, _ = drawn(5)
    clean = drawn(6)[0][:, 0]
    torch.testing.assert_close(losses.stability_loss(logits, clean), losses.augmented_loss(logits, clean.argmax(1)))


SHARE = torch.linspace(0, 0.5, BATCH, dtype=torch.float64)
CALLS: dict[str, Callable[..., Tensor]] = {
    "augmented": losses.augmented_loss,
    "smooth_adv": losses.smooth_adv_loss,
    "macer": lambda logits, y: losses.macer_loss(logits, y, 0.5, inverse_temperature=2.0),
    "consistency": losses.consistency_loss,
    "smoothmix": lambda logits, y: losses.smoothmix_loss(logits, logits.flip(0), y, SHARE),
    "stability": lambda logits, y: losses.stability_loss(logits, torch.nn.functional.one_hot(y, CLASSES).to(logits)),
}


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_those_of_the_formulas(name: str) -> None:
    logits, y = drawn(7)
    assert torch.autograd.gradcheck(lambda values: CALLS[name](values, y), logits.requires_grad_(), fast_mode=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CALLS)
def test_16_bit_logits_are_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    logits, y = drawn(8)
    rounded = logits.to(dtype)
    found = CALLS[name](rounded, y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), CALLS[name](rounded.double(), y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing(name: str) -> None:
    logits, y = drawn(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = CALLS[name](logits.float(), y)
    torch.testing.assert_close(found, CALLS[name](logits.float(), y), rtol=0, atol=0)


Z, Y = torch.zeros(3, 2, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: losses.augmented_loss(Z[0], Y), ValueError, r"logits must be \(batch, draws >= 1, .*got \(2, 4\)"),
        (lambda: losses.augmented_loss(Z[:, :0], Y), ValueError, r"draws >= 1, classes >= 2\), got \(3, 0, 4\)"),
        (lambda: losses.macer_loss(Z[:, :, :1], Y, 0.5), ValueError, r"classes >= 2\), got \(3, 2, 1\)"),
        (lambda: losses.smooth_adv_loss(Z.long(), Y), TypeError, "logits must be floating-point, got torch.int64"),
        (lambda: losses.macer_loss(Z, Y[:2], 0.5), ValueError, r"y must be int64 of shape \(3,\), got .*\(2,\)"),
        (lambda: losses.consistency_loss(Z, Y.float()), ValueError, "y must be int64 .*got torch.float32"),
        (lambda: losses.macer_loss(Z, Y, 0.0), ValueError, "macer_loss: sigma must be finite and > 0, got 0.0"),
        (lambda: losses.macer_loss(Z, Y, -1.0), ValueError, "sigma must be finite and > 0, got -1.0"),
        (lambda: losses.macer_loss(Z, Y, math.nan), ValueError, "sigma must be finite and > 0, got nan"),
        (lambda: losses.macer_loss(Z, Y, 0.5, -1.0), ValueError, "weight must be finite and >= 0, got -1.0"),
        (lambda: losses.macer_loss(Z, Y, 0.5, margin=0.0), ValueError, "margin must be finite and > 0"),
        (lambda: losses.macer_loss(Z, Y, 0.5, inverse_temperature=math.inf), ValueError, "inverse_temperature must be"),
        (lambda: losses.consistency_loss(Z[:, :1], Y), ValueError, "must hold at least 2 draws, got 1"),
        (lambda: losses.consistency_loss(Z, Y, entropy=-0.5), ValueError, "entropy must be finite and >= 0, got -0.5"),
        (lambda: losses.smoothmix_loss(Z, Z[:, :1], Y, Z[:, 0, 0]), ValueError, "mixed must have the shape of logits"),
        (lambda: losses.smoothmix_loss(Z, Z, Y, Z[:2, 0, 0]), ValueError, r"share must have shape \(3,\), got \(2,\)"),
        (
            lambda: losses.smoothmix_loss(Z, Z, Y, torch.full((3,), 0.6)),
            ValueError,
            "share must be in 0 .. 1/2",
        ),
        (lambda: losses.augmented_loss(Z, Y - 1), ValueError, "augmented_loss: y must be in 0 .. 3, got -1"),
        (lambda: losses.macer_loss(Z, Y + 4, 0.5), ValueError, "macer_loss: y must be in 0 .. 3"),
        (lambda: losses.denoising_loss(Z, Z), ValueError, r"denoised must be \(batch, draws, ...\) for x \(3, 2, 4\)"),
        (lambda: losses.stability_loss(Z, Z[:, 0, :3]), ValueError, r"clean must be \(batch, classes\) for logits"),
        (lambda: losses.mean_log_probability(Z[0]), ValueError, "mean_log_probability: logits must be"),
    ],
)
def test_unusable_arguments_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
