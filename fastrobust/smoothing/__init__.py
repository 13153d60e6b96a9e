"""Randomized smoothing: certificates of a classifier that votes under noise."""

from fastrobust.smoothing.elementwise import Laplace, Uniform
from fastrobust.smoothing.families import Exp1, Exp2, ExpInf, Pow1, Pow2, PowInf
from fastrobust.smoothing.noise import Gaussian, Noise
from fastrobust.smoothing.radial import UniformBall
from fastrobust.smoothing.smooth import Certificate, Smooth

__all__ = [
    "Certificate",
    "Exp1",
    "Exp2",
    "ExpInf",
    "Gaussian",
    "Laplace",
    "Noise",
    "Pow1",
    "Pow2",
    "PowInf",
    "Smooth",
    "Uniform",
    "UniformBall",
]
