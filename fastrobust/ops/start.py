"""Random starting points: uniform in the ball, then into the box."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastrobust import _checks
from fastrobust._registry import OpSpec, direct, register
from fastrobust.ops import _geometry as geometry
from fastrobust.ops import _rounding as rounding
from fastrobust.ops.perturb import DTYPE_CODE, NORM_CODE, device_guard, pointer, where_to
from fastrobust.threat import Box

__all__ = ["random_start"]

ELEMENTS, RADIUS = 1, 2  # Philox streams, as in csrc/common/philox.h


def random_start(
    x: Tensor,
    eps: float | Tensor,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
    *,
    seed: int,
    index: Tensor | None = None,
    draw: int = 0,
) -> Tensor:
    """A point drawn uniformly from the ball around each x, clipped to the box.

    Linf: independent uniforms. L2: a normal direction with radius eps U^(1/d). L1: Laplace coordinates over their sum
    plus one more exponential (Barthe et al., 2005). The numbers are Philox4x32-10 with key `seed` and counter
    (element block, draw, sample id, stream): they depend on nothing else, neither batch, thread nor device, and the
    global random state is not touched.

    Args:
        x: centres, (batch, ...), float32 or float64, inside the box.
        eps: radius >= 0 in x's units; a number or (batch,).
        norm: "Linf", "L2" or "L1".
        box: (lo, hi), numbers or tensors of a sample's shape.
        seed: 0 .. 2^64 - 1.
        index: (batch,) int64 ids of the samples in 0 .. 2^32 - 1; 0 .. batch - 1 if None.
        draw: which draw of each sample, 0 .. 2^32 - 1 (attacks count restarts with it).

    Returns:
        Points like x, contiguous, in the ball and the box in real arithmetic; a constant for autograd.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    where = "random_start"
    _checks.check_tensor(where, "x", x, _checks.ITERATES)
    if x.dim() < 1:
        raise ValueError(f"{where}: x must have a batch dimension, got a 0-dimensional tensor")
    _checks.check_norm(where, norm)
    eps, eps_each = _checks.per_sample(where, "eps", eps, x, 0.0)
    ends = _checks.box_ends(where, box, x)
    for name, value, bits in (("seed", seed, 64), ("draw", draw, 32)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{where}: {name} must be in 0 .. 2^{bits} - 1, got {value}")
    if index is not None:
        _checks.check_labels(where, "index", index, x)
        if index.device.type == "cpu" and not torch.compiler.is_compiling() and len(index):
            low, high = int(index.min()), int(index.max())
            if low < 0 or high >= 2**32:
                raise ValueError(f"{where}: index must be in 0 .. 2^32 - 1, got {low} .. {high}")
        index = index.contiguous()
    signed = seed - 2**64 if seed >= 2**63 else seed  # the schema's int is signed
    arguments = (x, norm, eps, eps_each, *ends, signed, index, draw)
    result: Tensor = START.run(*arguments) if direct() else START.op(*arguments)
    return result


# --- reference --------------------------------------------------------------------------------------------------


def _reference(
    x: Tensor, norm: str, eps: float, eps_each: Tensor | None, lo: float, hi: float, lo_each: Tensor | None,
    hi_each: Tensor | None, seed: int, index: Tensor | None, draw: int,
) -> Tensor:  # fmt: skip
    if x.numel() == 0:
        return x.contiguous().clone()
    batch, dim = x.shape[0], x[0].numel()
    sample = torch.arange(batch, device=x.device) if index is None else index
    blocks = torch.arange((dim + 3) // 4, device=x.device)
    words = rounding.philox(seed, blocks, draw, sample[:, None], ELEMENTS)
    radius = rounding.philox(seed, torch.zeros_like(sample), draw, sample, RADIUS)[0]
    if norm == "Linf":
        direction = [2 * rounding.uniform(w) - 1 for w in words]
    elif norm == "L2":
        direction = [*rounding.normals(words[0], words[1]), *rounding.normals(words[2], words[3])]
    else:
        direction = [rounding.laplace(w) for w in words]
    v = torch.stack(direction, -1).reshape(batch, -1)[:, :dim]
    if norm == "Linf":
        scale = torch.ones_like(v[:, 0])
    elif norm == "L2":
        scale = rounding.uniform(radius) ** (1 / dim) / (v**2).sum(1).sqrt() * (1 - 2.0**-36)
    else:
        scale = (1 - 2.0**-36) / (v.abs().sum(1) - rounding.uniform(radius).log())
    delta = (v * scale[:, None]).reshape(x.shape) * geometry.column(eps, eps_each, x)
    low, high = geometry.ends(x, lo, hi, lo_each, hi_each)
    return torch.minimum(torch.maximum(rounding.add_towards(x.contiguous(), delta), low), high)


# --- native, fake, registration ---------------------------------------------------------------------------------


def _native(
    module: ModuleType, x: Tensor, norm: str, eps: float, eps_each: Tensor | None, lo: float, hi: float,
    lo_each: Tensor | None, hi_each: Tensor | None, seed: int, index: Tensor | None, draw: int,
) -> Tensor:  # fmt: skip
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        with device_guard(x):
            module.random_start(
                out.data_ptr(), x.data_ptr(), DTYPE_CODE[x.dtype], x.shape[0], x.numel() // x.shape[0],
                NORM_CODE[norm], eps, pointer(eps_each), lo, hi, pointer(lo_each), pointer(hi_each),
                seed % 2**64, pointer(index), draw, where_to(x),
            )  # fmt: skip
    return out


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _samples(device: torch.device) -> Iterator[tuple[Any, ...]]:
    for norm, eps in (("Linf", 0.03), ("L2", 0.5), ("L1", 3.0)):
        for dtype in _checks.ITERATES:
            x = torch.rand(5, 37, dtype=dtype, generator=torch.Generator().manual_seed(0)).to(device)
            yield (x, norm, eps, None, 0.0, 1.0, None, None, 2**62 + 5, None, 3)


START = register(
    OpSpec(
        "random_start",
        "(Tensor x, str norm, float eps, Tensor? eps_each, float lo, float hi, Tensor? lo_each, Tensor? hi_each, "
        "int seed, Tensor? index, int draw) -> Tensor",
        _reference,
        _native,
        _fake,
        _samples,
        tolerance=1e-13,
    )
)
