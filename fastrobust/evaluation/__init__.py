"""How robust a model is, and the page that shows it (`evaluation.report`, which needs matplotlib)."""

from __future__ import annotations

from .diagnosis import Diagnosis, Finding, diagnose
from .landscape import Landscape, landscape
from .metrics import Sweep, accuracy, eval_mode, predict, robust_accuracy, sweep

__all__ = ["Diagnosis", "Finding", "Landscape", "Sweep", "accuracy", "diagnose", "eval_mode", "landscape", "predict",
           "robust_accuracy", "sweep"]  # fmt: skip
