"""Schedules as functions of time alone, so that a resumed run needs no schedule state.

`t` counts epochs, with fractions: the trainer passes the middle of each step, so no step falls on a corner.
"""

from __future__ import annotations

import math

from .config import TrainConfig

CORNER = 0.25  # where the smoothed growth of eps becomes linear


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
    """The radius in training at epoch t, from 0 at eps_start to eps * eps_factor, eps_warmup epochs later.

    "linear": in proportion to time. "smoothed": with its fourth power in the first quarter, then linearly, without a
    corner between (auto_LiRPA's SmoothedScheduler).
    """
    past = t - config.eps_start
    if past < 0:
        return 0.0
    if past >= config.eps_warmup:
        return config.largest_eps
    share = past / config.eps_warmup
    if config.eps_growth == "smoothed":
        # a share^4 up to CORNER, where value and slope are those of the line that ends at (1, 1).
        value = CORNER / (4 * (1 - CORNER) + CORNER)
        if share < CORNER:
            share = value * (share / CORNER) ** 4
        else:
            share = value + (1 - value) * (share - CORNER) / (1 - CORNER)
    return config.largest_eps * share
