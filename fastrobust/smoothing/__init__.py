"""Randomized smoothing: certificates of a classifier that votes under noise."""

from fastrobust.smoothing.certificate import Certificate, Prediction, average_radius, certified_accuracy
from fastrobust.smoothing.incremental import recertify
from fastrobust.smoothing.ledger import Ledger
from fastrobust.smoothing.noise import Gaussian, Noise, TwoClass
from fastrobust.smoothing.smooth import Smooth

__all__ = [
    "Certificate", "Gaussian", "Ledger", "Noise", "Prediction", "Smooth", "TwoClass", "average_radius",
    "certified_accuracy", "recertify",
]  # fmt: skip
