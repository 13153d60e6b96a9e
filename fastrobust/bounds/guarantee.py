"""What a bound allows for: the rounding of its own arithmetic, and of the evaluations that it encloses.

u is a unit roundoff and gamma_n = n u / (1 - n u) bounds the relative error of n roundings in a row (Higham, Accuracy
and Stability of Numerical Algorithms, 2002, lemma 3.1). docs/bounds/soundness.md has the theorem and its proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ACTIVATION_ULPS", "Guarantee", "Sound", "finite", "full_precision", "guarantee"]

Sound = bool | str
ACTIVATION_ULPS = 8  # units roundoff within which float32 evaluations of tanh, exp and their like are taken to lie
SAFE = 1 + 2.0**-16  # above what rounding constants, and a handful of roundings of small terms, can take away


@dataclass(frozen=True)
class Guarantee:
    """Which errors bounds allow for.

    Attributes:
        name: "none", "exact" or "float32".
        own: unit roundoff of the arithmetic of the bounds; 0 takes it for exact.
        net: unit roundoff of the evaluations to enclose; 0 for real arithmetic on the stored weights.
        least: the smallest positive number, an absolute error of products that underflow.
        small: the same of functions, whose evaluations may go through exponentials that overflow: the smallest normal
            number, where evaluations are to be enclosed.
    """

    name: str
    own: float = 0.0
    net: float = 0.0
    least: float = 0.0
    small: float = 0.0

    @property
    def sound(self) -> bool:
        return self.own > 0

    def up(self, value: Tensor) -> Tensor:
        """At least the real number that one operation rounded to `value`."""
        return torch.nextafter(value, _end(value, math.inf)) if self.own else value

    def down(self, value: Tensor) -> Tensor:
        """At most the real number that one operation rounded to `value`."""
        return torch.nextafter(value, _end(value, -math.inf)) if self.own else value

    def own_error(self, count: int) -> float:
        """Relative error of `count` roundings of the bounds' own arithmetic."""
        return _gamma(count, self.own)

    def net_error(self, count: int) -> float:
        """Relative error of `count` roundings of an evaluation."""
        return _gamma(count, self.net)

    def underflow(self, count: int) -> float:
        """Absolute error of so many products."""
        return 4 * count * self.least

    def widen(self, lower: Tensor, upper: Tensor, own: int, net: int) -> tuple[Tensor, Tensor]:
        """Ends that so many roundings, own and of evaluations, cannot have passed."""
        if not self.own:
            return lower, upper
        share, least = self.own_error(own) + self.net_error(net), self.underflow(own + net)
        return self.down(lower - (share * lower.abs() + least)), self.up(upper + (share * upper.abs() + least))


def guarantee(where: str, sound: Sound, dtype: torch.dtype) -> Guarantee:
    """True means "float32": for a network of another dtype, evaluations in that one.

    Raises:
        ValueError: for an unknown guarantee, or where numbers below the smallest normal one are flushed to 0.
    """
    if sound is False:
        return Guarantee("none")
    name = "float32" if sound is True else sound
    if name not in ("exact", "float32"):
        raise ValueError(f"{where}: sound must be True, False, 'exact' or 'float32', got {sound!r}")
    kind = torch.finfo(dtype)
    if float(torch.tensor(kind.smallest_normal / 4, dtype=dtype) * 1.0) == 0.0:
        raise ValueError(f"{where}: sound bounds need gradual underflow; call torch.set_flush_denormal(False)")
    unit, least = kind.eps / 2, kind.smallest_normal * kind.eps
    if name == "exact":
        return Guarantee(name, unit, least=least, small=least)
    return Guarantee(name, unit, unit, least, 4 * kind.smallest_normal)


def _gamma(count: int, unit: float) -> float:
    if count * unit >= 0.5:
        raise ValueError(f"sums of {count} terms are too long for a rounding bound in this precision; use float64")
    return count * unit / (1 - count * unit) * SAFE


def _end(value: Tensor, at: float) -> Tensor:
    return torch.full((), at, dtype=value.dtype, device=value.device)


def finite(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """NaN, of what overflowed, says nothing: -inf and inf."""
    bad = torch.isnan(lower) | torch.isnan(upper)
    return lower.masked_fill(bad, -math.inf), upper.masked_fill(bad, math.inf)


# Where PyTorch lets float32 products be made in less precision, and what each setting inherits from while it is unset.
_PRODUCTS: list[tuple[Any, Any]] = [
    (torch.backends.cuda.matmul, torch.backends),
    *((getattr(torch.backends.mkldnn, part, None), torch.backends.mkldnn) for part in ("matmul", "conv", "rnn")),
]


@contextmanager
def full_precision(sound: bool) -> Iterator[None]:
    """Within, products of float32 are made in float32: no TF32, no bfloat16, no autocast.

    Where bounds are sound, also by direct sums, and without gradients: cuDNN, whose algorithms for a convolution
    include Winograd's and Fourier transforms, is off; on the CPU PyTorch asks oneDNN for direct convolutions, and
    NNPACK, which has Winograd's, is off.
    """
    gradients = torch.is_grad_enabled() and not sound
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # which turns gradients on
        stack.enter_context(torch.set_grad_enabled(gradients))
        for kind in ("cuda", "cpu"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if sound:
            stack.enter_context(_set(torch.backends.cudnn, "enabled", False))
            if hasattr(torch.backends, "nnpack"):
                stack.enter_context(torch.backends.nnpack.flags(enabled=False))
        for products, above in _PRODUCTS:
            if hasattr(products, "fp32_precision"):
                before = products.fp32_precision
                inherited = before == getattr(above, "fp32_precision", None)
                stack.enter_context(_set(products, "fp32_precision", "ieee", "none" if inherited else before))
            elif hasattr(products, "allow_tf32"):
                stack.enter_context(_set(products, "allow_tf32", False))
        if not sound and torch.cuda.is_available():
            for part in ("conv", "rnn") if hasattr(torch.backends.cudnn, "fp32_precision") else ():
                stack.enter_context(_set(getattr(torch.backends.cudnn, part), "fp32_precision", "ieee"))
            if not hasattr(torch.backends.cudnn, "fp32_precision"):
                stack.enter_context(_set(torch.backends.cudnn, "allow_tf32", False))
        yield


_SAME = object()


@contextmanager
def _set(owner: Any, name: str, value: object, after: object = _SAME) -> Iterator[None]:
    before = getattr(owner, name) if after is _SAME else after
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
