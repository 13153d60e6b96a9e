"""The L2 attack of Carlini and Wagner (IEEE S&P 2017)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrobust.attacks._minimum import MinimumNorm
from fastrobust.attacks._points import Points
from fastrobust.attacks._rows import assign, column
from fastrobust.attacks._victim import Model

__all__ = ["CW"]

BETAS, TINY = (0.9, 0.999), 1e-8  # of Adam
INSIDE = 1 - 1e-6  # the ends of the box are at infinity in w
MOST, GROWTH = 1e10, 10.0  # of the constant
STUCK = 0.9999


class CW(MinimumNorm):
    """Least L2 norm: Adam on ||x_adv - x||^2 + c max(confidence - margin, 0), the constant c found by bisection.

    x_adv = middle + half * tanh(w) runs through the box as w runs through all numbers. Each point has its own c, and
    goes on to its next as soon as its own search ends.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        steps: steps of Adam for each c (the paper makes 10,000).
        searches: constants tried; with 10 or more the last is the least that has succeeded.
        learning_rate: of Adam, in w.
        initial_const: the first c.
        confidence: by how much the wrong logit must exceed the right one.
        abort_early: a search ends where the loss does not fall in a tenth of the steps.
        keywords: those of `MinimumNorm`: eps, targeted, box, compile, seed, batch_size, eot, autocast.
    """

    starts_at_x = True

    def __init__(
        self, model: Model, steps: int = 1000, searches: int = 9, learning_rate: float = 0.01,
        initial_const: float = 1e-3, confidence: float = 0.0, abort_early: bool = True, **keywords: Any,
    ) -> None:  # fmt: skip
        super().__init__(model, "L2", steps, **{"loss": "margin", **keywords})
        if not isinstance(searches, int) or searches < 1:
            raise ValueError(f"CW: searches must be an integer >= 1, got {searches!r}")
        for key, number in (("learning_rate", learning_rate), ("initial_const", initial_const)):
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"CW: {key} must be finite and > 0, got {number!r}")
        if not (math.isfinite(confidence) and confidence >= 0):
            raise ValueError(f"CW: confidence must be finite and >= 0, got {confidence!r}")
        if self.loss != "margin":
            raise ValueError(f"CW: loss must be 'margin', got {self.loss!r}")
        self.searches, self.learning_rate, self.initial_const = searches, learning_rate, initial_const
        self.confidence, self.abort_early = confidence, abort_early

    def passes(self) -> int:
        return super().passes() * self.searches

    def begin(self, points: Points, draw: int) -> None:
        x, low, high = points.centre, self.low, self.high
        start = torch.where(high > low, (2 * x - high - low) / (high - low) * INSIDE, 0)
        # atanh, whose last bit would depend in PyTorch on an element's place in the batch, as that of powers does.
        points.origin = (start.log1p() - (-start).log1p()) / 2
        points.w = torch.zeros_like(x)
        points.mean, points.square = torch.zeros_like(x), torch.zeros_like(x)
        points.constant = torch.full_like(points.y, self.initial_const, dtype=x.dtype)
        points.lower, points.upper = torch.zeros_like(points.constant), torch.full_like(points.constant, MOST)
        points.previous = torch.full_like(points.constant, torch.inf)
        points.first, points.second = torch.ones_like(points.constant), torch.ones_like(points.constant)
        points.k, points.search, points.hit = (
            torch.zeros_like(points.y),
            torch.zeros_like(points.y),
            points.done.clone(),
        )
        self._place(points)

    def _place(self, points: Points) -> None:
        points.bend = torch.tanh(points.origin + points.w)
        points.x_adv = self.clip((self.high + self.low) / 2 + (self.high - self.low) / 2 * points.bend)

    def step(self, points: Points) -> Tensor:
        value, fooled, slope = self.look(points)
        fooled = fooled & (value >= self.confidence)
        self.keep(points, points.x_adv, fooled)
        points.hit = points.hit | fooled
        delta, missing = points.x_adv - points.centre, (self.confidence - value).clamp(min=0).to(points.constant.dtype)
        loss = delta.flatten(1).square().sum(1) + points.constant * missing
        due = points.k % max(self.steps // 10, 1) == 0
        stuck = due & (loss > points.previous * STUCK) & self.abort_early
        points.previous = torch.where(due, loss, points.previous)
        gradient = 2 * delta - slope * column(points.constant * (missing > 0), slope)
        self._adam(points, gradient * (self.high - self.low) / 2 * (1 - points.bend.square()))
        self._next(points, stuck | (points.k >= self.steps))
        self._place(points)
        return (points.search >= self.searches) | self.near_enough(points)

    def _adam(self, points: Points, gradient: Tensor) -> None:
        points.k = points.k + 1
        points.mean = points.mean * BETAS[0] + gradient * (1 - BETAS[0])
        points.square = points.square * BETAS[1] + gradient.square() * (1 - BETAS[1])
        # Products, since PyTorch's powers depend in the last bit on a sample's place in the batch.
        points.first, points.second = points.first * BETAS[0], points.second * BETAS[1]
        first, second = (column(1 - power, gradient) for power in (points.first, points.second))
        points.w = points.w - self.learning_rate / first * points.mean / ((points.square / second).sqrt() + TINY)

    def _next(self, points: Points, ended: Tensor) -> None:
        """Where a search ended: the next constant, from the start."""
        c, hit = points.constant, points.hit
        points.upper = torch.where(ended & hit, torch.minimum(points.upper, c), points.upper)
        points.lower = torch.where(ended & ~hit, torch.maximum(points.lower, c), points.lower)
        between = torch.where(points.upper < MOST / 10, (points.lower + points.upper) / 2, c * GROWTH)
        points.search = points.search + ended
        if self.searches >= 10:
            between = torch.where(points.search == self.searches - 1, points.upper, between)
        points.constant = torch.where(ended, between, c)
        points.hit, points.k = hit & ~ended, points.k.masked_fill(ended, 0)
        points.previous = points.previous.masked_fill(ended, torch.inf)
        points.first, points.second = points.first.masked_fill(ended, 1), points.second.masked_fill(ended, 1)
        zero = torch.zeros_like(points.w)
        for key in ("w", "mean", "square"):
            assign(getattr(points, key), ended, zero)
