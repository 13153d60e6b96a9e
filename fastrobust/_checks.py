"""Shared validators. Every message names the function and the argument, what was expected and what came."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrobust.threat import NORMS, Box

__all__ = [
    "FLOATS", "ITERATES", "box_ends", "check_box", "check_labels", "check_norm", "check_points", "check_same",
    "is_finite", "per_sample",
]  # fmt: skip

ITERATES = (torch.float32, torch.float64)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)


def check_tensor(where: str, name: str, value: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        got = str(value.dtype).removeprefix("torch.")
        raise TypeError(f"{where}: {name} must have dtype {names(dtypes)}, got {got}")


def check_same(where: str, name: str, value: Tensor, like: str, x: Tensor) -> None:
    """`value` has the shape and device of `x`."""
    if value.shape != x.shape:
        raise ValueError(f"{where}: {name} must have the shape of {like} {tuple(x.shape)}, got {tuple(value.shape)}")
    if value.device != x.device:
        raise ValueError(f"{where}: {name} must be on {like}'s device {x.device}, got {value.device}")


def is_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite: a finite sum says so in one pass."""
    return math.isfinite(float(value.detach().sum())) or bool(torch.isfinite(value).all())


def check_norm(where: str, norm: Any) -> None:
    if norm not in NORMS:
        raise ValueError(f"{where}: norm must be one of {', '.join(NORMS)}, got {norm!r}")


def per_sample(where: str, name: str, value: Any, x: Tensor, least: float | None) -> tuple[float, Tensor | None]:
    """A number, or a tensor of one number a sample, as the pair that the operators take."""
    if isinstance(value, Tensor):
        if value.dim() > 1 or (value.dim() == 1 and value.shape[0] != x.shape[0]):
            raise ValueError(
                f"{where}: {name} must be a number or have shape ({x.shape[0]},), got {tuple(value.shape)}"
            )
        if value.device != x.device and value.dim() > 0:
            raise ValueError(f"{where}: {name} must be on x's device {x.device}, got {value.device}")
        if value.device.type == "cpu" and not torch.compiler.is_compiling() and value.numel():
            low = value.min()
            if not bool(torch.isfinite(value).all()) or (least is not None and bool(low < least)):
                raise ValueError(f"{where}: {name} must be finite{_at_least(least)}, got {float(low)}")
        return 0.0, value.to(x.device, x.dtype).expand(x.shape[0]).contiguous()
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{where}: {name} must be a number or a tensor, got {type(value).__name__}") from None
    if not math.isfinite(number) or (least is not None and number < least):
        raise ValueError(f"{where}: {name} must be finite{_at_least(least)}, got {value!r}")
    return number, None


def _at_least(least: float | None) -> str:
    return "" if least is None else f" and >= {least:g}"


def check_box(where: str, box: Any) -> None:
    if not (isinstance(box, (tuple, list)) and len(box) == 2):
        raise ValueError(f"{where}: box must be a pair (lo, hi), got {box!r}")
    lo, hi = box
    ordered = lo <= hi
    if isinstance(ordered, Tensor):
        ordered = torch.compiler.is_compiling() or ordered.device.type != "cpu" or bool(ordered.all())
    if not ordered:
        raise ValueError(f"{where}: box must have lo <= hi, got {box!r}")


def box_ends(where: str, box: Box, x: Tensor) -> tuple[float, float, Tensor | None, Tensor | None]:
    """The box as two numbers, or as two tensors of a sample's shape, rounded inwards to the dtype of x."""
    check_box(where, box)
    lo, hi = box
    if not isinstance(lo, Tensor) and not isinstance(hi, Tensor):
        return float(lo), float(hi), None, None
    ends = []
    for name, end, inwards in (("lower", lo, math.inf), ("upper", hi, -math.inf)):
        wide = torch.as_tensor(end, dtype=torch.float64, device=x.device)
        try:
            wide = wide.expand(x.shape[1:])
        except RuntimeError:
            raise ValueError(
                f"{where}: the box's {name} end must be a number or have a sample's shape {tuple(x.shape[1:])}, "
                f"got {tuple(wide.shape)}"
            ) from None
        end = wide.to(x.dtype)
        outside = end.double() < wide if inwards > 0 else end.double() > wide
        ends.append(torch.where(outside, torch.nextafter(end, torch.full_like(end, inwards)), end).contiguous())
    return 0.0, 0.0, ends[0], ends[1]


def check_labels(where: str, name: str, y: Any, x: Tensor) -> None:
    """One int64 label a sample, on the device of x."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{where}: {name} must be a tensor, got {type(y).__name__}")
    if y.dtype != torch.int64:
        raise TypeError(f"{where}: {name} must have dtype int64, got {str(y.dtype).removeprefix('torch.')}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"{where}: {name} must have shape ({x.shape[0]},), got {tuple(y.shape)}")
    if y.device != x.device:
        raise ValueError(f"{where}: {name} must be on {x.device}, got {y.device}")


def check_points(where: str, x: Any, box: Box, dtypes: tuple[torch.dtype, ...]) -> None:
    """A batch of finite points inside the box. Reads values: for entry points, not for ops."""
    check_tensor(where, "x", x, dtypes)
    if x.dim() < 1:
        raise ValueError(f"{where}: x must have a batch dimension, got a 0-dimensional tensor")
    if x.numel() == 0:
        return
    lo, hi = box
    if not isinstance(lo, Tensor) and not isinstance(hi, Tensor):
        least, most = torch.aminmax(x.detach())  # NaN where there is one
        if float(lo) <= float(least) and float(most) <= float(hi) and math.isfinite(float(most) - float(least)):
            return
    if not is_finite(x):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{where}: x must be finite, got {bad} NaN or infinite values")
    lo, hi = (end.to(x.device) if isinstance(end, Tensor) else end for end in box)
    wide = x.double()
    if bool(((wide < lo) | (wide > hi)).any()):
        ends = f"[{_end(lo)}, {_end(hi)}]"
        raise ValueError(f"{where}: x must lie in the box {ends}, got values in [{x.min():g}, {x.max():g}]")


def _end(end: Any) -> str:
    return "per-feature" if isinstance(end, Tensor) else f"{end:g}"
