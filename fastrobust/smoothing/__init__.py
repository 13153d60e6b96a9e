"""Randomized smoothing: certificates of a classifier that votes under noise."""

from fastrobust.smoothing.noise import Gaussian, Noise
from fastrobust.smoothing.smooth import Certificate, Smooth

__all__ = ["Certificate", "Gaussian", "Noise", "Smooth"]
