"""Randomized smoothing: certificates of a classifier that votes under noise."""

from fastrobust.smoothing.certificate import Certificate, Prediction, average_radius, certified_accuracy
from fastrobust.smoothing.elementwise import Laplace, Uniform
from fastrobust.smoothing.families import Exp1, Exp2, ExpInf, Pow1, Pow2, PowInf
from fastrobust.smoothing.incremental import recertify
from fastrobust.smoothing.integer import IntegerGaussian
from fastrobust.smoothing.ledger import Ledger
from fastrobust.smoothing.modal import ModalCertificate, Modality, ModalSmooth
from fastrobust.smoothing.noise import Gaussian, Noise, TwoClass
from fastrobust.smoothing.radial import UniformBall
from fastrobust.smoothing.smooth import Smooth
from fastrobust.smoothing.splitting import DeterministicSmooth, ExactCertificate, Splitting

__all__ = [
    "Certificate",
    "DeterministicSmooth",
    "ExactCertificate",
    "Exp1",
    "Exp2",
    "ExpInf",
    "Gaussian",
    "IntegerGaussian",
    "Laplace",
    "Ledger",
    "ModalCertificate",
    "ModalSmooth",
    "Modality",
    "Noise",
    "Pow1",
    "Pow2",
    "PowInf",
    "Prediction",
    "Smooth",
    "Splitting",
    "TwoClass",
    "Uniform",
    "UniformBall",
    "average_radius",
    "certified_accuracy",
    "recertify",
]
