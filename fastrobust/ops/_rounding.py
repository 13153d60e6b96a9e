"""Directed rounding and Philox in plain PyTorch: the readable twins of csrc/common/math.h and philox.h."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["add_down", "add_towards", "add_up", "cast_down", "cast_up", "laplace", "normals", "philox", "uniform"]


def _below(v: Tensor) -> Tensor:
    return torch.nextafter(v, torch.full_like(v, -math.inf))


def add_down(a: Tensor, b: Tensor) -> Tensor:
    """a + b rounded towards -inf: the rounding error of a sum is itself a float (Knuth's TwoSum)."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    return torch.where(error < 0, _below(total), total)


def add_up(a: Tensor, b: Tensor) -> Tensor:
    return -add_down(-a, -b)


def cast_down(v: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 to dtype, rounded towards -inf."""
    t = v.to(dtype)
    return torch.where(t.double() > v, _below(t), t)


def cast_up(v: Tensor, dtype: torch.dtype) -> Tensor:
    return -cast_down(-v, dtype)


def add_towards(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta (float64) rounded towards x, so that the result is never farther from x than |delta|."""
    base = x.double()
    down = cast_down(add_down(base, delta), x.dtype)
    up = cast_up(add_up(base, delta), x.dtype)
    return torch.where(delta >= 0, down, up)


_LOW = 0xFFFFFFFF


def philox(seed: int, block: Tensor, draw: int | Tensor, sample: Tensor, stream: int) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011): four int64 tensors of 32-bit words for broadcast counters."""
    c0, c1, c2 = torch.broadcast_tensors(block & _LOW, torch.as_tensor(draw, device=block.device) & _LOW, sample & _LOW)
    c3 = torch.full_like(c0, stream & _LOW)
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 wraps to the same 64 bits
        c0, c1 = ((b >> 32) & _LOW) ^ c1 ^ k0, b & _LOW
        c2, c3 = ((a >> 32) & _LOW) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def uniform(word: Tensor, bits: int = 32) -> Tensor:
    """Words as float64 in (0, 1): the centres of equal cells."""
    return (word.double() + 0.5) * 2.0**-bits


def normals(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals of two words (Box and Muller, 1958)."""
    radius = torch.sqrt(-2 * uniform(first).log())
    angle = uniform(second) * (2 * torch.pi)
    return radius * angle.cos(), radius * angle.sin()


def laplace(word: Tensor) -> Tensor:
    """A Laplace variable of scale 1: the top bit is the sign, the rest an exponential magnitude."""
    magnitude = -uniform(word & 0x7FFFFFFF, bits=31).log()
    return torch.where(word >> 31 == 1, -magnitude, magnitude)
