"""Validation accuracy, clean, under attack and certified, spread over the ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from fastrobust import bounds
from fastrobust.attacks import PGD
from fastrobust.data import Dataset, batches
from fastrobust.data.keys import key
from fastrobust.threat import threat_of

from .config import TrainConfig
from .ranks import Ranks

_VALIDATE = 3  # what the key is for


class Accuracies(NamedTuple):
    """Shares in [0, 1]; None where not measured."""

    clean: float
    robust: float | None
    certified: float | None


def validate(model: nn.Module, dataset: Dataset, config: TrainConfig, ranks: Ranks) -> Accuracies:
    """Accuracy on the samples, under PGD with `val_steps` steps, and proven by `val_bounds` in sound mode.

    A point is robust when the model is right on it and on what PGD made of it. The draws are the same at every call,
    so that epochs are compared under equal attacks.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    clean = robust = certified = 0
    try:
        for batch in batches(dataset, config.batch_size * 2, shuffle=False, rank=ranks.rank, world_size=ranks.size):
            if len(batch.index) == 0:
                continue
            x, y = batch.images.to(ranks.device), batch.labels.to(ranks.device)
            with torch.no_grad():
                right = model(x).argmax(1) == y
            clean += int(right.sum())
            if not bool(right.any()):
                continue
            if config.val_steps:
                index = batch.index.to(ranks.device)[right]
                points = _attack(model, config).run(x[right], y[right], index=index).x_adv
                with torch.no_grad():
                    robust += int((model(points).argmax(1) == y[right]).sum())
            if config.val_bounds != "none":
                threat = threat_of(config.norm, config.eps)
                margins = bounds.margins(model, x[right], y[right], threat, config.val_bounds)
                certified += int((margins > 0).scatter(1, y[right][:, None], True).all(1).sum())
    finally:
        for module, training in modes:
            module.training = training
    total = len(dataset)
    right_all, robust_all, certified_all = ranks.sum(clean, robust, certified)
    return Accuracies(
        right_all / total,
        robust_all / total if config.val_steps else None,
        certified_all / total if config.val_bounds != "none" else None,
    )


def _attack(model: nn.Module, config: TrainConfig) -> PGD:
    return PGD(
        model,
        eps=config.eps,
        alpha=2.5 * config.eps / config.val_steps,
        steps=config.val_steps,
        norm=config.norm,
        early_stop=True,
        compile=config.compile,
        seed=key(_VALIDATE, config.seed),
    )
