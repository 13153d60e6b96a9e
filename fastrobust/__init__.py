"""fastrobust: fast attacks and robust training for PyTorch networks."""

from fastrobust import attacks, bounds, data, evaluation, models, network, ops, smoothing, training
from fastrobust._registry import explain
from fastrobust.threat import L1, L2, Linf

__version__ = "0.1.0"
__all__ = [
    "L1", "L2", "Linf", "attacks", "bounds", "data", "evaluation", "explain", "models", "network", "ops", "smoothing",
    "training",
]  # fmt: skip
