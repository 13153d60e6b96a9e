"""Randomized smoothing: certificates of a classifier that votes under noise."""

from fastrobust.smoothing import losses
from fastrobust.smoothing.certificate import Certificate, Prediction, average_radius, certified_accuracy
from fastrobust.smoothing.elementwise import Laplace, Uniform
from fastrobust.smoothing.families import Exp1, Exp2, ExpInf, Pow1, Pow2, PowInf
from fastrobust.smoothing.ledger import Ledger
from fastrobust.smoothing.noise import Gaussian, Noise, TwoClass
from fastrobust.smoothing.radial import UniformBall
from fastrobust.smoothing.smooth import Certificate, Smooth

__all__ = [
    "Certificate",
    "Exp1",
    "Exp2",
    "ExpInf",
    "Gaussian",
    "Laplace",
    "Ledger",
    "Noise",
    "Pow1",
    "Pow2",
    "PowInf",
    "Prediction",
    "Smooth",
    "TwoClass",
    "Uniform",
    "UniformBall",
    "average_radius",
    "certified_accuracy",
    "losses",
]
