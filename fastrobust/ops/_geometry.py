"""Steps and projections of L2 and L1 in plain PyTorch, float64: what the kernels of csrc/common/rows.h compute."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrobust.ops import _rounding as rounding

__all__ = ["column", "ends", "shrink_l1", "shrink_l2", "steepest_l1", "total", "unit_l2"]


def column(value: float, each: Tensor | None, x: Tensor) -> Tensor:
    """A number, or one a sample, as float64 that broadcasts against x."""
    if each is None:
        return torch.tensor(value, dtype=torch.float64, device=x.device)
    return each.double().reshape(-1, *[1] * (x.dim() - 1))


def ends(x: Tensor, lo: float, hi: float, lo_each: Tensor | None, hi_each: Tensor | None) -> tuple[Tensor, Tensor]:
    if lo_each is not None and hi_each is not None:
        return lo_each, hi_each
    wide = torch.tensor([lo, hi], dtype=torch.float64, device=x.device)
    return rounding.cast_up(wide[0], x.dtype), rounding.cast_down(wide[1], x.dtype)


def total(v: Tensor) -> Tensor:
    return v.flatten(1).sum(1).reshape(-1, *[1] * (v.dim() - 1))


def unit_l2(g: Tensor) -> Tensor:
    largest = g.abs().flatten(1).amax(1).reshape(-1, *[1] * (g.dim() - 1))
    g = g / torch.where(largest > 0, largest, 1)
    norm = total(g**2).sqrt()
    return g / torch.where(norm > 0, norm, 1)


def steepest_l1(g: Tensor, length: Tensor, x_adv: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The d that maximises <g, d> with ||d||_1 <= length and x_adv + d in the box: a fractional knapsack.

    Coordinates filled to the box are pushed past it, the farther the larger their |g|, for the projection to cut: so
    it takes from those that matter least, and on a linear loss the steps end only at the optimum.
    """
    way, size = torch.sign(g * length), g.abs()
    space = torch.where(way > 0, high.double() - x_adv.double(), x_adv.double() - low.double()).clamp_min(0)
    capacity = torch.minimum(space, length.abs()) * (way != 0)
    order = size.flatten(1).argsort(1, descending=True)
    filled = capacity.flatten(1).gather(1, order).cumsum(1)
    budget = length.abs().expand(g.shape[0], *[1] * (g.dim() - 1)).reshape(-1, 1)
    runs_out = (filled > budget).int().argmax(1, keepdim=True)
    threshold = size.flatten(1).gather(1, order.gather(1, runs_out))
    threshold = torch.where((filled > budget).any(1, keepdim=True), threshold, -1).reshape(-1, *[1] * (g.dim() - 1))
    full, level = size > threshold, capacity * (size == threshold)
    left = (length.abs() - total(capacity * full)).clamp_min(0)
    largest = size.flatten(1).amax(1).reshape(threshold.shape)
    past = length.abs() * (1 + 1024 * (size - threshold.clamp_min(0)) / torch.where(largest > 0, largest, 1))
    past = torch.where(capacity < length.abs(), past, length.abs())
    return way * (past * full + level * (left / total(level).clamp_min(1e-300)).clamp_max(1))


def shrink_l2(size: Tensor, space: Tensor, eps: Tensor, exact: bool) -> Tensor:
    """min(t |d|, space) with the largest t <= 1 that fits the ball, found by bisection; if not `exact`, t |d| alone."""
    if not exact:
        norm = total(size**2).sqrt()
        return size * torch.where(norm > eps, eps / norm, 1.0)
    low, high = torch.zeros_like(total(size)), torch.ones_like(total(size))
    fits = total(torch.minimum(size, space) ** 2).sqrt() <= eps
    for _ in range(100):
        middle = (low + high) / 2
        over = total(torch.minimum(middle * size, space) ** 2).sqrt() > eps
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return torch.minimum(torch.where(fits, 1.0, low) * size, space)


def shrink_l1(size: Tensor, space: Tensor, eps: Tensor) -> Tensor:
    """min(max(|d| - lambda, 0), space) with the smallest lambda >= 0 that fits the ball, found by bisection."""
    low = torch.zeros_like(total(size))
    high = size.flatten(1).amax(1).reshape(low.shape)
    fits = total(torch.minimum(size, space)) <= eps
    for _ in range(100):
        middle = (low + high) / 2
        over = total(torch.minimum((size - middle).clamp_min(0), space)) > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return torch.minimum((size - torch.where(fits, 0.0, high)).clamp_min(0), space)
