"""How robust a model is, and the page that shows it (`evaluation.report`, which needs matplotlib)."""

from __future__ import annotations

from .diagnosis import Diagnosis, Finding, diagnose
from .landscape import Landscape, landscape
from .measures import Measures, measure, threats
from .metrics import accuracy, eval_mode, predict, robust_accuracy
from .sandwich import Sandwich, sandwich
from .sweeps import ENVELOPE, Curve, Sweep, curves, sweep

__all__ = [
    "ENVELOPE",
    "Curve",
    "Diagnosis",
    "Finding",
    "Landscape",
    "Measures",
    "Sandwich",
    "Sweep",
    "accuracy",
    "curves",
    "diagnose",
    "eval_mode",
    "landscape",
    "measure",
    "predict",
    "robust_accuracy",
    "sandwich",
    "sweep",
    "threats",
]
