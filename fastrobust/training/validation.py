"""Validation accuracy, clean, under attack, under noise and certified, spread over the ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastrobust import bounds
from fastrobust.attacks import PGD
from fastrobust.data import Dataset, batches
from fastrobust.data.keys import key
from fastrobust.smoothing import Gaussian, Smooth
from fastrobust.threat import threat_of

from .config import TrainConfig
from .ranks import Ranks

_VALIDATE = 3  # what the key is for


class Accuracies(NamedTuple):
    """Shares in [0, 1]; None where not measured."""

    clean: float
    robust: float | None = None
    certified: float | None = None
    noisy: float | None = None


def validate(model: nn.Module, dataset: Dataset, config: TrainConfig, ranks: Ranks) -> Accuracies:
    """Accuracy on the samples, under PGD with `val_steps` steps, and proven by `val_bounds` in sound mode.

    A point is robust when the model is right on it and on what PGD made of it. With `sigma` there is no attack, and
    `noisy` is the share of right answers on `val_draws` noisy copies of each sample; "smoothing" certifies that the
    smoothed network is right within eps. The draws are the same at every call, so that epochs are compared under equal
    attacks and noise.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    attacked = config.val_steps > 0 and config.sigma == 0
    smooth = _smooth(model, dataset, config) if config.sigma > 0 else None
    clean = robust = certified = noisy = 0
    try:
        for batch in batches(dataset, config.batch_size * 2, shuffle=False, rank=ranks.rank, world_size=ranks.size):
            if len(batch.index) == 0:
                continue
            x, y = batch.images.to(ranks.device), batch.labels.to(ranks.device)
            with torch.no_grad():
                right = model(x).argmax(1) == y
            clean += int(right.sum())
            if smooth is not None:
                index = batch.index.to(ranks.device)
                votes = smooth.sampler.votes(x, config.val_draws, _seed(config), index)
                noisy += int(votes.gather(1, y[:, None]).sum())
                if config.val_bounds == "smoothing":
                    certified += int(_certified(smooth, x, y, index, config).sum())
            if not bool(right.any()):
                continue
            if attacked:
                index = batch.index.to(ranks.device)[right]
                points = _attack(model, config).run(x[right], y[right], index=index).x_adv
                with torch.no_grad():
                    robust += int((model(points).argmax(1) == y[right]).sum())
            if config.val_bounds not in ("none", "smoothing"):
                threat = threat_of(config.norm, config.eps)
                margins = bounds.margins(model, x[right], y[right], threat, config.val_bounds)
                certified += int((margins > 0).scatter(1, y[right][:, None], True).all(1).sum())
    finally:
        for module, training in modes:
            module.training = training
    total = len(dataset)
    right_all, robust_all, certified_all, noisy_all = ranks.sum(clean, robust, certified, noisy)
    return Accuracies(
        right_all / total,
        robust_all / total if attacked else None,
        certified_all / total if config.val_bounds != "none" else None,
        noisy_all / total / config.val_draws if smooth is not None else None,
    )


def certifiable(model: nn.Module, dataset: Dataset, config: TrainConfig, device: torch.device) -> None:
    """Raise ValueError where the validation of "smoothing" could certify nothing, or not this model."""
    part = dataset.subset(slice(0, 1))
    _certified(_smooth(model, part, config), part.images.to(device), part.labels.to(device), None, config)


def _smooth(model: nn.Module, dataset: Dataset, config: TrainConfig) -> Smooth:
    compile_ = "auto" if config.compile else False
    return Smooth(model, dataset.classes, Gaussian(config.sigma), seed=_seed(config), compile=compile_)


def _certified(smooth: Smooth, x: Tensor, y: Tensor, index: Tensor | None, config: TrainConfig) -> Tensor:
    found = smooth.certify_at(x, config.eps, n_max=config.val_samples, index=index)
    return (found.prediction == y) & found.certified[:, 0]


def _seed(config: TrainConfig) -> int:
    return key(_VALIDATE, config.seed)


def _attack(model: nn.Module, config: TrainConfig) -> PGD:
    return PGD(
        model,
        eps=config.eps,
        alpha=2.5 * config.eps / config.val_steps,
        steps=config.val_steps,
        norm=config.norm,
        early_stop=True,
        compile=config.compile,
        seed=_seed(config),
    )
