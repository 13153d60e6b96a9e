"""How robust a model is, and the page that shows it (`evaluation.report`, which needs matplotlib)."""

from __future__ import annotations

from .metrics import Sweep, accuracy, eval_mode, predict, robust_accuracy, sweep

__all__ = ["Sweep", "accuracy", "eval_mode", "predict", "robust_accuracy", "sweep"]
