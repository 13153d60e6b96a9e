"""Randomized smoothing: certificates of a classifier that votes under noise."""

from fastrobust.smoothing.integer import IntegerGaussian
from fastrobust.smoothing.modal import ModalCertificate, Modality, ModalSmooth
from fastrobust.smoothing.noise import Gaussian, Noise
from fastrobust.smoothing.smooth import Certificate, Smooth
from fastrobust.smoothing.splitting import DeterministicSmooth, ExactCertificate, Splitting

__all__ = [
    "Certificate", "DeterministicSmooth", "ExactCertificate", "Gaussian", "IntegerGaussian", "ModalCertificate",
    "ModalSmooth", "Modality", "Noise", "Smooth", "Splitting",
]  # fmt: skip
