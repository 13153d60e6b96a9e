"""Training: standard, adversarial, certified and for smoothing, on one or many processes, resumable at any moment."""

from __future__ import annotations

from . import recipes
from .adversary import Adversary
from .certified import crown_ibp, ibp, ibp_init, mtl_ibp, sabr
from .checkpoint import CheckpointError
from .config import TrainConfig
from .ema import Ema
from .objectives import OBJECTIVES, Objective, pgd, standard, trades
from .schedules import epsilon, learning_rate
from .smoothed import consistency, denoise, gaussian, macer, smooth_adv, smoothmix, stability
from .trainer import Snapshot, TrainResult, fit
from .verified import Advice, Round, Verified, train_verify

__all__ = [
    "OBJECTIVES",
    "Adversary",
    "Advice",
    "CheckpointError",
    "Ema",
    "Objective",
    "Round",
    "Snapshot",
    "TrainConfig",
    "TrainResult",
    "Verified",
    "consistency",
    "crown_ibp",
    "denoise",
    "epsilon",
    "fit",
    "gaussian",
    "ibp",
    "ibp_init",
    "learning_rate",
    "macer",
    "mtl_ibp",
    "pgd",
    "recipes",
    "sabr",
    "smooth_adv",
    "smoothmix",
    "stability",
    "standard",
    "trades",
    "train_verify",
]
