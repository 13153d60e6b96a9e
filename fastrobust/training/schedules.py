"""Schedules as functions of time alone, so that a resumed run needs no schedule state.

`t` counts epochs, with fractions: the trainer passes the middle of each step, so no step falls on a corner.
"""

from __future__ import annotations

import math

from .config import TrainConfig


def learning_rate(config: TrainConfig, t: float) -> float:
    """The learning rate at epoch t in [0, epochs].

    "constant": lr.
    "piecewise": lr * gamma^(number of milestones <= t).
    "cosine": lr (1 + cos(pi t / epochs)) / 2.
    "cyclic": linear from 0 to lr at peak * epochs, then linear to 0 (Smith & Topin 2019; Wong et al., ICLR 2020).
    """
    share = t / config.epochs
    if config.schedule == "piecewise":
        return config.lr * config.gamma ** sum(milestone <= t for milestone in config.milestones)
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * share)) / 2
    if config.schedule == "cyclic":
        return config.lr * min(share / config.peak, (1 - share) / (1 - config.peak))
    return config.lr


def epsilon(config: TrainConfig, t: float) -> float:
    """The radius of the training attack at epoch t: eps * min(1, t / eps_warmup)."""
    return config.eps if t >= config.eps_warmup else config.eps * (t / config.eps_warmup)
