"""Few coordinates: sigma-zero (Cinà et al., ICLR 2025)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrobust.attacks._minimum import MinimumNorm
from fastrobust.attacks._points import Points
from fastrobust.attacks._rows import column
from fastrobust.attacks._victim import Model

__all__ = ["SigmaZero"]

BETAS, TINY = (0.9, 0.999), 1e-8  # of Adam
LEAST_STEP = 0.1  # share of the first step that is left at the end


class SigmaZero(MinimumNorm):
    """Least L0 norm: Adam on the margin and a smooth count of coordinates; small ones are set to 0 after each step.

    With d = x_adv - x, each coordinate as a share of its width of the box, the count is mean(d^2 / (d^2 + sigma)).

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        steps: gradient steps.
        eta: first step of Adam, a share of the box's width; cosine schedule down to a tenth.
        sigma: how smooth the count is.
        tau: threshold below which a coordinate is set to 0, at first; then it rises where the model is fooled and
            falls elsewhere, by `tau_factor` times the present step.
        keywords: those of `MinimumNorm`: eps, targeted, box, compile, seed, batch_size, eot, autocast.
    """

    starts_at_x = True

    def __init__(
        self, model: Model, steps: int = 1000, eta: float = 1.0, sigma: float = 1e-3, tau: float = 0.3,
        tau_factor: float = 0.01, **keywords: Any,
    ) -> None:  # fmt: skip
        super().__init__(model, "L0", steps, **{"loss": "margin", **keywords})
        for key, number in (("eta", eta), ("sigma", sigma), ("tau_factor", tau_factor)):
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"SigmaZero: {key} must be finite and > 0, got {number!r}")
        if not 0 <= tau <= 1:
            raise ValueError(f"SigmaZero: tau must be in [0, 1], got {tau!r}")
        if self.loss != "margin":
            raise ValueError(f"SigmaZero: loss must be 'margin', got {self.loss!r}")
        self.eta, self.sigma, self.tau, self.tau_factor = eta, sigma, tau, tau_factor

    def begin(self, points: Points, draw: int) -> None:
        x = points.centre
        points.x_adv, points.mean, points.square = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
        points.threshold = torch.full_like(points.y, self.tau, dtype=x.dtype)

    def _length(self, step: Tensor) -> Tensor:
        wave = (1 + torch.cos(math.pi * step.clamp(min=0) / self.steps)) / 2
        return self.eta * (LEAST_STEP + (1 - LEAST_STEP) * wave)

    def step(self, points: Points) -> Tensor:
        k = points.steps.to(points.threshold.dtype)
        value, fooled, slope = self.look(points)
        self.keep(points, points.x_adv, fooled)
        width = self.high - self.low
        d = (points.x_adv - points.centre) / torch.where(width > 0, width, 1)
        gradient = 2 * self.sigma / d[0].numel() * d / (d.square() + self.sigma).square()
        gradient = gradient - slope * width * column(value < 0, slope)
        largest = gradient.flatten(1).abs().amax(1).clamp(min=1e-12)
        gradient = gradient / column(largest, gradient)
        points.mean = points.mean * BETAS[0] + gradient * (1 - BETAS[0])
        points.square = points.square * BETAS[1] + gradient.square() * (1 - BETAS[1])
        first, second = (column(1 - beta ** (k + 1), d) for beta in BETAS)
        move = points.mean / first / ((points.square / second).sqrt() + TINY)
        moved = self.clip(points.centre + (d - column(self._length(k - 1), d) * move) * width)
        rise = torch.where(fooled, self.tau_factor, -self.tau_factor) * self._length(k)
        points.threshold = (points.threshold + rise).clamp(0, 1)
        small = (moved - points.centre).abs() < column(points.threshold, d) * width
        points.x_adv = torch.where(small, points.centre, moved)
        return self.over(points)
