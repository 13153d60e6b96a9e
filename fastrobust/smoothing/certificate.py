"""What a smoothed classifier was proven to do, and how a set of samples fares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrobust import _checks

__all__ = ["Certificate", "Prediction", "average_radius", "certified_accuracy", "radii_of"]


def radii_of(where: str, radii: Any, least: float = math.ulp(0.0)) -> list[float]:
    """A radius, or several, as a list; ValueError where there is none, or one that is not finite or too small."""
    try:
        wanted = np.atleast_1d(np.asarray(radii, dtype=np.float64))
    except (TypeError, ValueError):
        wanted = np.empty(0)
    if wanted.ndim != 1 or not wanted.size or not np.isfinite(wanted).all() or not (wanted >= least).all():
        raise ValueError(f"{where}: radii must be finite numbers {'>=' if least == 0 else '>'} 0, got {radii!r}")
    found: list[float] = wanted.tolist()
    return found


@dataclass(frozen=True)
class Prediction:
    """Of the smoothed classifier g, never of f: that a prediction is wrong has a probability <= alpha.

    Attributes:
        prediction: (batch,) int64: g's class, -1 where `predict_sequential` abstains.
        samples: (batch,) int64.
        seed, fresh: as those of `Certificate`.
    """

    prediction: Tensor
    samples: Tensor
    seed: int
    fresh: bool


@dataclass(frozen=True)
class Certificate:
    """Of the smoothed classifier g, never of f: that anything said of a sample is wrong has a probability <= alpha.

    Attributes:
        prediction: (batch,) int64: g's class, -1 where `certify` abstains; the class that `certify_at` tested; the
            given class, -1 where `certify_top_k` proves nothing.
        radius: (batch,) float64: within it, in the noise's norm and the input's units, g says the same; of `certify_at`
            the largest of those certified; 0 where there is none.
        certified: (batch, radii) bool: which of the given radii hold; `certify` is given none.
        samples: (batch,) int64, those that chose the class included.
        seed: key of the noise.
        fresh: whether the seed was drawn for this call. What a replay says holds for an x and a model that were chosen
            without regard to that noise alone.
    """

    prediction: Tensor
    radius: Tensor
    certified: Tensor
    samples: Tensor
    seed: int
    fresh: bool


def _proven(certificate: Certificate, y: Tensor, name: str) -> Tensor:
    _checks.check_labels(name, "y", y, certificate.prediction)
    return torch.where(certificate.prediction == y, certificate.radius, 0.0)


def average_radius(certificate: Certificate, y: Tensor) -> float:
    """The mean of the radius where the class is y, and of 0 elsewhere (Zhai et al., ICLR 2020: ACR).

    It grows with the number of copies n, since no radius exceeds what n unanimous votes prove (with Gaussian noise and
    alpha 0.001: 2.46, 3.20 and 3.81 sigma for n = 1,000, 10,000 and 100,000). Report it with n
    (`certificate.samples`), and compare none of different n. Of `certify_at` it is a lower bound, as coarse as the
    given radii.

    Args:
        y: (batch,) int64 labels.
    """
    return float(_proven(certificate, y, "average_radius").mean())


def certified_accuracy(certificate: Certificate, y: Tensor, radii: float | Sequence[float]) -> Tensor:
    """The share of samples of class y, certified for a radius > 0 that is at least the given one: (radii,) float64.

    Args:
        y: (batch,) int64 labels.
        radii: in the input's units; 0 asks for any certified prediction.

    Raises:
        ValueError: where a radius is negative or not finite.
    """
    wanted = radii_of("certified_accuracy", radii, least=0)
    found = _proven(certificate, y, "certified_accuracy")[:, None]
    return ((found > 0) & (found >= torch.tensor(wanted, dtype=torch.float64, device=found.device))).double().mean(0)
