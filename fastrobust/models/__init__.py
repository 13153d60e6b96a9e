"""The nets the field uses. Classifiers take inputs in [0, 1] and return logits (B, classes)."""

from __future__ import annotations

from .denoiser import Denoised, DnCNN
from .factory import MODELS, create
from .normalize import Normalize
from .plain import cnn7, mlp, small_cnn
from .resnet import preact_resnet18, resnet18

__all__ = [
    "MODELS",
    "Denoised",
    "DnCNN",
    "Normalize",
    "cnn7",
    "create",
    "mlp",
    "preact_resnet18",
    "resnet18",
    "small_cnn",
]
