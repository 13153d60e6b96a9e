"""Margins of boxes through a network's last layer, without a tensor of batch x classes x features."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust import _checks
from fastrobust._registry import OpSpec, direct, register
from fastrobust.ops.perturb import DTYPE_CODE, device_guard, pointer, where_to

__all__ = ["interval_margins", "robust_cross_entropy"]


# --- public functions -------------------------------------------------------------------------------------------


def interval_margins(centre: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    """Lower bounds of z_y - z_j for z = W x + b with x in a box: no rounding is allowed for.

    m_j = (W_y - W_j) c - |W_y - W_j| r + b_y - b_j (Gowal et al., ICCV 2019), exact for the last layer alone.

    Args:
        centre, radius: (batch, features), float32, float64 or 16 bits; radius >= 0.
        weight: (classes, features), dtype of centre.
        bias: (classes,) or None.
        y: (batch,) int64 labels; one outside 0 .. classes - 1 raises on the CPU and gives NaN on a GPU.

    Returns:
        (batch, classes), 0 at y, float32 for 16 bits; differentiable with respect to all but y.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    where = "interval_margins"
    _checks.check_tensor(where, "centre", centre, _checks.FLOATS)
    _checks.check_tensor(where, "radius", radius, (centre.dtype,))
    _checks.check_tensor(where, "weight", weight, (centre.dtype,))
    if centre.dim() != 2:
        raise ValueError(f"{where}: centre must have shape (batch, features), got {tuple(centre.shape)}")
    _checks.check_same(where, "radius", radius, "centre", centre)
    if weight.dim() != 2 or weight.shape[1] != centre.shape[1] or not len(weight):
        raise ValueError(f"{where}: weight must have shape (classes, {centre.shape[1]}), got {tuple(weight.shape)}")
    if bias is not None:
        _checks.check_tensor(where, "bias", bias, (centre.dtype,))
        if tuple(bias.shape) != (len(weight),):
            raise ValueError(f"{where}: bias must have shape ({len(weight)},), got {tuple(bias.shape)}")
    _checks.check_labels(where, "y", y, centre)
    if y.is_cpu and len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(weight):
        raise ValueError(f"{where}: y must be in 0 .. {len(weight) - 1}")
    arguments = (centre, radius, weight, bias, y)
    needs = torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in arguments)
    found: Tensor = MARGINS.run(*arguments) if direct() and not needs else MARGINS.op(*arguments)
    return found


def robust_cross_entropy(centre: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    """Cross-entropy of the worst logits of boxes, (batch,): log sum_j exp(-m_j) with m = `interval_margins`.

    Arguments and errors as those of `interval_margins`.
    """
    return F.cross_entropy(-interval_margins(centre, radius, weight, bias, y), y, reduction="none")


# --- reference --------------------------------------------------------------------------------------------------


def _wide(*values: Tensor | None) -> Iterator[Tensor | None]:
    for value in values:
        yield value if value is None or value.dtype == torch.float64 else value.float()


def _reference(centre: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    c, r, w, b = _wide(centre, radius, weight, bias)
    assert c is not None
    assert r is not None
    assert w is not None
    found = c.new_full((len(c), len(w)), torch.nan)
    for label in range(len(w)):
        apart = w[label] - w
        margins = c.matmul(apart.T) - r.matmul(apart.T.abs())
        margins = margins if b is None else margins + (b[label] - b)
        found = torch.where((y == label)[:, None], margins, found)
    return found


def _reference_backward(
    grad: Tensor, centre: Tensor, radius: Tensor, weight: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g, c, r, w = _wide(grad, centre, radius, weight)
    assert g is not None
    assert c is not None
    assert r is not None
    assert w is not None
    total = g.sum(1)
    known = (y >= 0) & (y < len(w))
    of_label = F.one_hot(y.clamp(0, len(w) - 1), len(w)).to(g.dtype) * (known * total)[:, None] - g
    by_radius = torch.zeros_like(r)
    by_weight = of_label.T.matmul(c)
    for label in range(len(w)):
        apart = w[label] - w
        mine = torch.where((y == label)[:, None], g, 0)
        by_radius = by_radius - mine.matmul(apart.abs())
        part = apart.sign() * mine.T.matmul(r)
        by_weight = by_weight + part
        by_weight[label] -= part.sum(0)
    found = of_label.matmul(w), by_radius, by_weight
    return found[0].to(centre.dtype), found[1].to(radius.dtype), found[2].to(weight.dtype), of_label.sum(0)


# --- native -----------------------------------------------------------------------------------------------------


def _native(
    module: ModuleType, centre: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor
) -> Tensor:
    centre, radius, weight, y = (v.contiguous() for v in (centre, radius, weight, y))
    out = _fake(centre, radius, weight, bias, y)
    wide = None if bias is None else bias.to(out.dtype).contiguous()
    if out.numel():
        with device_guard(centre):
            module.interval_margins(
                centre.data_ptr(), radius.data_ptr(), weight.data_ptr(), pointer(wide), y.data_ptr(),
                DTYPE_CODE[centre.dtype], *centre.shape, len(weight), out.data_ptr(), where_to(centre),
            )  # fmt: skip
    return out


def _native_backward(
    module: ModuleType, grad: Tensor, centre: Tensor, radius: Tensor, weight: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, centre, radius, weight, y = (v.contiguous() for v in (grad, centre, radius, weight, y))
    out = _fake_backward(grad, centre, radius, weight, y)
    if not grad.numel():
        for part in out:
            part.zero_()
        return out
    with device_guard(centre):
        module.interval_margins_backward(
            centre.data_ptr(), radius.data_ptr(), weight.data_ptr(), y.data_ptr(), DTYPE_CODE[centre.dtype],
            *centre.shape, len(weight), grad.data_ptr(), *(part.data_ptr() for part in out), where_to(centre),
        )  # fmt: skip
    return out


# --- fake, backward, registration -------------------------------------------------------------------------------


def _fake(centre: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    dtype = torch.float64 if centre.dtype == torch.float64 else torch.float32
    return centre.new_empty(centre.shape[0], weight.shape[0], dtype=dtype)


def _fake_backward(
    grad: Tensor, centre: Tensor, radius: Tensor, weight: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept = torch.contiguous_format
    by_centre, by_radius, by_weight = (torch.empty_like(v, memory_format=kept) for v in (centre, radius, weight))
    return by_centre, by_radius, by_weight, grad.new_empty(weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    centre, radius, weight, bias, y = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(centre, radius, weight, y)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    arguments = (grad, *ctx.saved_tensors)
    *parts, by_bias = BACKWARD.run(*arguments) if direct() else BACKWARD.op(*arguments)
    return (*parts, None if ctx.bias_dtype is None else by_bias.to(ctx.bias_dtype), None)


def _samples(device: torch.device) -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for batch, features, classes in ((7, 33, 10), (3, 128, 3), (5, 6, 1)):

            def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
                return torch.randn(shape, dtype=dtype, generator=generator).to(device)

            y = torch.randint(classes, (batch,), generator=generator).to(device)
            bias = draw(classes) if features != 128 else None
            yield draw(batch, features), draw(batch, features).abs(), draw(classes, features), bias, y


def _backward_samples(device: torch.device) -> Iterator[tuple[Any, ...]]:
    for centre, radius, weight, bias, y in _samples(device):
        yield torch.cos(_fake(centre, radius, weight, bias, y).fill_(1.5).cumsum(1)), centre, radius, weight, y


MARGINS = register(
    OpSpec(
        "interval_margins",
        "(Tensor centre, Tensor radius, Tensor weight, Tensor? bias, Tensor y) -> Tensor",
        _reference,
        _native,
        _fake,
        _samples,
        (_setup_context, _backward),
    )
)
BACKWARD = register(
    OpSpec(
        "interval_margins_backward",
        "(Tensor grad, Tensor centre, Tensor radius, Tensor weight, Tensor y) -> (Tensor, Tensor, Tensor, Tensor)",
        _reference_backward,
        _native_backward,
        _fake_backward,
        _backward_samples,
    )
)
