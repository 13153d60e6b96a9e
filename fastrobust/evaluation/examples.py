"""Examples for a gallery: the first sample of each class, attacked on every network in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .metrics import Attack, perturb, predict


@dataclass(frozen=True)
class Example:
    """One picture of the gallery: images (h, w) or (h, w, 3) in [0, 1].

    ``adversarial`` maps the attacked network to the point found for it; ``predictions`` maps "clean" and each
    attacked network to what every network sees there.
    """

    label: int
    clean: np.ndarray
    adversarial: Mapping[str, np.ndarray]
    predictions: Mapping[str, Mapping[str, int]]


def collect(
    networks: Mapping[str, nn.Module], x: Tensor, y: Tensor, attack_on: Callable[[nn.Module], Attack]
) -> list[Example]:
    """An `Example` for each class in y: its first sample, attacked on each network by ``attack_on(network)``.

    x (batch, channels, h, w) with 1 or 3 channels in [0, 1], y (batch,) int64.
    """
    chosen = torch.stack([(y == label).nonzero()[0, 0] for label in y.unique()])
    x, y = x[chosen], y[chosen]
    points = {"clean": x}
    for name, network in networks.items():
        points[name] = perturb(attack_on(network), x, y, chosen)
    said = {
        where: {name: predict(network, at).tolist() for name, network in networks.items()}
        for where, at in points.items()
    }
    return [
        Example(
            label=int(label),
            clean=_picture(x[i]),
            adversarial={name: _picture(points[name][i]) for name in networks},
            predictions={where: {name: values[i] for name, values in by.items()} for where, by in said.items()},
        )
        for i, label in enumerate(y)
    ]


def to_json(examples: Sequence[Example]) -> list[dict[str, object]]:
    """Labels, predictions and the largest change of each example, without the pictures."""
    return [
        {
            "label": e.label,
            "predictions": e.predictions,
            "largest_change": {name: float(np.abs(at - e.clean).max()) for name, at in e.adversarial.items()},
        }
        for e in examples
    ]


def _picture(x: Tensor) -> np.ndarray:
    image = x.detach().cpu().numpy()
    return np.asarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1))
