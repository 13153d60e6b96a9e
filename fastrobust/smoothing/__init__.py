"""Randomized smoothing: certificates of a classifier that votes under noise."""

from fastrobust.smoothing.noise import Gaussian, Noise
from fastrobust.smoothing.smooth import Certificate, Smooth
from fastrobust.smoothing.splitting import DeterministicSmooth, ExactCertificate, Splitting

__all__ = ["Certificate", "DeterministicSmooth", "ExactCertificate", "Gaussian", "Noise", "Smooth", "Splitting"]
