"""Validation accuracy, clean and under attack, spread over the ranks."""

from __future__ import annotations

import torch
from torch import nn

from fastrobust.attacks import PGD
from fastrobust.data import Dataset, batches
from fastrobust.data.keys import key

from .config import TrainConfig
from .ranks import Ranks

_VALIDATE = 3  # what the key is for


def validate(model: nn.Module, dataset: Dataset, config: TrainConfig, ranks: Ranks) -> tuple[float, float | None]:
    """(clean, robust) accuracy in [0, 1]; robust is None when config.val_steps is 0.

    A point is robust when the model is right on it and on what PGD with `val_steps` steps made of it. The
    draws are the same at every call, so that epochs are compared under equal attacks.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    clean = robust = 0
    try:
        for batch in batches(dataset, config.batch_size * 2, shuffle=False, rank=ranks.rank, world_size=ranks.size):
            if len(batch.index) == 0:
                continue
            x, y = batch.images.to(ranks.device), batch.labels.to(ranks.device)
            with torch.no_grad():
                right = model(x).argmax(1) == y
            clean += int(right.sum())
            if config.val_steps and bool(right.any()):
                index = batch.index.to(ranks.device)[right]
                points = _attack(model, config).run(x[right], y[right], index=index).x_adv
                with torch.no_grad():
                    robust += int((model(points).argmax(1) == y[right]).sum())
    finally:
        for module, training in modes:
            module.training = training
    clean_total, robust_total = ranks.sum(clean, robust)
    return clean_total / len(dataset), robust_total / len(dataset) if config.val_steps else None


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
