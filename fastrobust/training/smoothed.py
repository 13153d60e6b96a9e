"""Training for smoothing: what steps minimise on noisy copies, and the attacks on the smoothed network.

The noise of a copy is a function of the step's seed, the sample and the copy's number (`smoothing.Gaussian.copies`).
Batch norm takes the statistics of noisy copies, which is what it will meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fastrobust import ops
from fastrobust.attacks._rows import column, size, unit_step
from fastrobust.attacks._victim import Victim
from fastrobust.data.keys import hash64, key
from fastrobust.models import Denoised
from fastrobust.smoothing import Gaussian, losses

from .adversary import Adversary

__all__ = ["consistency", "denoise", "gaussian", "macer", "smooth_adv", "smoothmix", "stability"]

_SHARE = 5  # what a key is for
DDN_GAMMA, FIRST_STEP, LAST_STEP = 0.05, 1.0, 0.01  # of DDN, as in SmoothAdv's code and `attacks.DDN`


def gaussian(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """Gaussian augmentation (Cohen et al., ICML 2019): the cross-entropy of noisy copies."""
    logits = _logits(model, _copies(x, adversary), adversary)
    return losses.augmented_loss(logits, y).mean(), _said(logits)


def smooth_adv(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """SmoothAdv (Salman et al., NeurIPS 2019): the cross-entropy of noisy copies of points that mislead their mean.

    `inner` is the attack on -log pbar_y: PGD in the ball of L2 radius eps, steps of `alpha` or else 2 eps / steps, or
    DDN, whose smallest success is taken back to that radius. One draw of noise serves all steps and the loss.
    """
    config, noise = adversary.config, _copies(torch.zeros_like(x), adversary)
    if adversary.eps == 0:
        found = x
    elif config.inner == "ddn":
        found = _ddn(model, x, y, noise, adversary)
    else:  # the step grows as the radius does
        found = _pgd(model, x, y, noise, adversary, _step(adversary) * adversary.share, adversary.eps)
    logits = _logits(model, _repeated(found, noise), adversary)
    return losses.augmented_loss(logits, y).mean(), _said(logits)


def macer(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """MACER (Zhai et al., ICLR 2020): the cross-entropy of pbar, and a hinge on the soft certified radius."""
    config, logits = adversary.config, _logits(model, _copies(x, adversary), adversary)
    weight = _weight(adversary, 12.0)
    loss = losses.macer_loss(logits, y, config.sigma, weight, config.margin, config.inverse_temperature)
    return loss.mean(), _said(logits)


def consistency(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """Consistency (Jeong and Shin, NeurIPS 2020): Gaussian augmentation, and copies that say the same, surely."""
    config, logits = adversary.config, _logits(model, _copies(x, adversary), adversary)
    weight = _weight(adversary, 10.0)
    loss = losses.consistency_loss(logits, y, weight, config.entropy * adversary.share)
    return loss.mean(), _said(logits)


def smoothmix(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """SmoothMix (Jeong et al., NeurIPS 2021): Gaussian augmentation, and less certainty towards misleading points.

    These come from `steps` steps of `alpha` (else 2 eps / steps) up the gradient of -log pbar_y, inside the box but in
    no ball; the mixing share is uniform on 0 .. 1/2.
    """
    noise = _copies(torch.zeros_like(x), adversary)
    low, high = adversary.box
    everywhere = (high - low) * math.sqrt(x[0].numel())
    found = _pgd(model, x, y, noise, adversary, _step(adversary), everywhere)
    drawn = hash64(key(_SHARE, adversary.seed), adversary.index.numpy())
    share = torch.from_numpy((drawn >> np.uint64(11)).astype(np.float64) * 2.0**-54).to(x.device, x.dtype)
    mixed = torch.lerp(x, found, column(share, x))
    logits = _logits(model, _repeated(x, noise), adversary)
    weight = _weight(adversary, 5.0)
    loss = losses.smoothmix_loss(logits, _logits(model, _repeated(mixed, noise), adversary), y, share, weight)
    return loss.mean(), _said(logits)


def denoise(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """Denoised smoothing, MSE (Salman et al., NeurIPS 2020): the mean squared error of denoised copies.

    The model is a `models.Denoised`; its denoiser is what is trained.
    """
    model = _denoised("denoise", model)
    denoised = model.denoiser(_copies(x, adversary))
    with torch.no_grad():
        logits = model.classifier(denoised).unflatten(0, (len(x), -1))
    return losses.denoising_loss(denoised.unflatten(0, (len(x), -1)), x).mean(), _said(logits)


def stability(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """Denoised smoothing, stability (Salman et al., NeurIPS 2020): the frozen classifier is to say of denoised copies
    what it says of clean samples. The model is a `models.Denoised`.
    """
    model = _denoised("stability", model)
    with torch.no_grad():
        clean = model.classifier(x)
    logits = _logits(model, _copies(x, adversary), adversary)
    return losses.stability_loss(logits, clean).mean(), _said(logits)


def _denoised(where: str, model: nn.Module) -> Denoised:
    if not isinstance(model, Denoised):
        raise ValueError(f"{where}: model must be a fastrobust.models.Denoised, got {type(model).__name__}")
    return model


def _weight(adversary: Adversary, usual: float) -> float:
    """Of what an objective adds: it comes in as eps grows."""
    return (usual if adversary.config.weight is None else adversary.config.weight) * adversary.share


def _step(adversary: Adversary) -> float:
    config = adversary.config
    return 2 * config.eps / config.steps if config.alpha is None else config.alpha


def _copies(x: Tensor, adversary: Adversary) -> Tensor:
    """(batch * draws, ...): the noisy copies of a step, those of a sample beside each other."""
    draws = adversary.config.noise_draws
    image = torch.arange(len(x), device=x.device).repeat_interleave(draws)
    copy = torch.arange(draws, device=x.device).repeat(len(x))
    return Gaussian(adversary.config.sigma).copies(x, image, copy, adversary.index.to(x.device), adversary.seed)


def _repeated(x: Tensor, noise: Tensor) -> Tensor:
    """Each sample with each of its draws of noise."""
    every: Tensor = noise.unflatten(0, (len(x), -1)) + x[:, None]
    return every.flatten(0, 1)


def _logits(model: nn.Module, copies: Tensor, adversary: Adversary) -> Tensor:
    """(batch, draws, classes)."""
    out: Tensor = model(copies).unflatten(0, (-1, adversary.config.noise_draws))
    return out


def _said(logits: Tensor) -> Tensor:
    """What the mean of the probabilities says, for the accuracy in training."""
    return losses.mean_log_probability(logits.detach())


class _Climb:
    """The gradient of -log pbar_y at given noise, which both attacks go up."""

    def __init__(self, model: nn.Module, noise: Tensor, adversary: Adversary) -> None:
        config = adversary.config
        self.noise, self.draws = noise, config.noise_draws
        self.victim = Victim(config.objective, model, config.attack_mode, None)
        self.compile, self.steps = config.compile, config.steps

    @contextmanager
    def begin(self) -> Iterator[None]:
        """The model in the attack's mode, compiled where that pays."""
        with self.victim.borrowed(self.noise.device):
            self.victim.compile(self.noise, "auto" if self.compile else False, self.steps)
            yield

    def look(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients at x, 0 where one is not finite, and the logits (batch, draws, classes)."""
        at = x.detach().requires_grad_()
        logits = self.victim.logits(_repeated(at, self.noise)).unflatten(0, (-1, self.draws))
        slope = torch.autograd.grad(losses.smooth_adv_loss(logits, y).sum(), at)[0]
        finite = slope.flatten(1).isfinite().all(1)
        return torch.where(column(finite, slope), slope, 0), logits.detach()


def _pgd(
    model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, adversary: Adversary, step: float, eps: float
) -> Tensor:
    """The last iterate of steps along the normalised gradient, in the ball of radius eps and the box."""
    climb, found = _Climb(model, noise, adversary), x.detach().clone()
    with climb.begin():
        for _ in range(adversary.config.steps):
            slope, _ = climb.look(found, y)
            found = ops.pgd_step(found, x, slope, step, eps, "L2", adversary.box)
    return found


def _ddn(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, adversary: Adversary) -> Tensor:
    """The nearest iterate at which most copies are wrong, taken back to the radius; x where there is none.

    As in SmoothAdv's code, but that nothing is rounded to 256 levels.
    """
    climb, steps = _Climb(model, noise, adversary), adversary.config.steps
    low, high = (torch.full_like(x[:1], end) for end in adversary.box)
    farthest = size(torch.maximum(x - low, high - x), "L2")
    radius, nearest = torch.full_like(farthest, adversary.eps), torch.full_like(farthest, math.inf)
    at, best = x.detach().clone(), x.detach().clone()
    with climb.begin():
        for i in range(steps):
            slope, logits = climb.look(at, y)
            fooled, distance = logits.argmax(2).mode(1).values != y, size(at - x, "L2")
            nearer = fooled & (distance < nearest)
            best = torch.where(column(nearer, at), at, best)
            nearest = torch.where(nearer, distance, nearest)
            radius = torch.minimum(radius * torch.where(fooled, 1 - DDN_GAMMA, 1 + DDN_GAMMA), farthest)
            length = LAST_STEP + (FIRST_STEP - LAST_STEP) * (1 + math.cos(math.pi * i / steps)) / 2
            at = unit_step(at, x, slope, torch.full_like(radius, length), "sphere", radius, (low, high))
    return ops.project(best, x, adversary.eps, "L2", adversary.box)
