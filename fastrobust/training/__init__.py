"""Training: standard, PGD-adversarial and TRADES, on one or many processes, resumable at any moment."""

from __future__ import annotations

from . import recipes
from .checkpoint import CheckpointError
from .config import TrainConfig
from .ema import Ema
from .objectives import OBJECTIVES, Adversary, Objective, pgd, standard, trades
from .schedules import epsilon, learning_rate
from .trainer import Snapshot, TrainResult, fit

__all__ = [
    "OBJECTIVES",
    "Adversary",
    "CheckpointError",
    "Ema",
    "Objective",
    "Snapshot",
    "TrainConfig",
    "TrainResult",
    "epsilon",
    "fit",
    "learning_rate",
    "pgd",
    "recipes",
    "standard",
    "trades",
]
