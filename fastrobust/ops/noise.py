"""Noisy copies of images, many images and copies in one batch: what randomized smoothing feeds a network with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastrobust import _checks
from fastrobust._registry import OpSpec, direct, register
from fastrobust.ops import _rounding as rounding
from fastrobust.ops.perturb import DTYPE_CODE, NORM_CODE, device_guard, pointer, where_to

__all__ = ["KINDS", "noisy_copies"]

KINDS = {"normal": 0, "uniform": 1, "laplace": 2, "split": 3}
NOISE = 3  # Philox stream, as in csrc/common/philox.h


# --- public function --------------------------------------------------------------------------------------------


def noisy_copies(
    x: Tensor,
    image: Tensor,
    copy: Tensor,
    index: Tensor,
    seed: int,
    kind: str = "normal",
    scale: float | Tensor = 1.0,
    *,
    sphere: str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Slot s is copy number copy[s] of x[image[s]]: ``x[image[s]] + scale * draw``.

    The draw is a function of seed, index[image[s]], copy[s] and an element's place in its sample alone: Philox4x32-10
    with key `seed` and counter (element // 4, copy, index, stream). It does not depend on batch, order, thread, device
    or memory format, and the global random state is not touched.

    "normal": standard normal (Box and Muller, 1958). "uniform": on -1 .. 1. "laplace": density exp(-|z|) / 2.
    "split" is not added: with s = 2 scale u, u uniform on 0 .. 1, an element is (min(s, 1) + 1[x > s]) / 2 (Levine and
    Feizi, "Improved, deterministic smoothing for L1 certified robustness", ICML 2021).

    Args:
        x: (images, ...), float32 or float64.
        image: (slots,) int64, 0 .. images - 1: which image a slot holds.
        copy: (slots,) int64, 0 .. 2^32 - 1: which copy of it.
        index: (images,) int64 ids of the images, 0 .. 2^32 - 1.
        seed: 0 .. 2^64 - 1.
        kind: "normal", "uniform", "laplace" or "split".
        scale: in x's units; a number or (slots,) float64.
        sphere: None, "L1", "L2" or "Linf": each copy's draw is divided by its own norm, so that `scale` is the norm of
            its noise.
        dtype: of the result: x's, float16 or bfloat16. What is computed in x's type is rounded to it once.

    Returns:
        (slots, ...) in x's memory format, a constant for autograd.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came. On a GPU values are not read: there
        an image out of range gives a copy of NaN.
    """
    where = "noisy_copies"
    _checks.check_tensor(where, "x", x, _checks.ITERATES)
    if x.dim() < 1:
        raise ValueError(f"{where}: x must have a dimension of images, got a 0-dimensional tensor")
    if x.shape[1:].numel() >= 2**31:
        raise ValueError(f"{where}: x must have less than 2^31 elements a sample, got {x.shape[1:].numel()}")
    _check_slots(where, image, copy, x)
    _checks.check_labels(where, "index", index, x)
    check_range(where, "image", image, len(x))
    check_range(where, "copy", copy, 2**32)
    check_range(where, "index", index, 2**32)
    if not 0 <= seed < 2**64:
        raise ValueError(f"{where}: seed must be in 0 .. 2^64 - 1, got {seed}")
    if kind not in KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if sphere is not None:
        if sphere not in NORM_CODE:
            raise ValueError(f"{where}: sphere must be None or one of {', '.join(NORM_CODE)}, got {sphere!r}")
        if kind == "split":
            raise ValueError(f"{where}: sphere must be None for kind 'split', got {sphere!r}")
    dtype = x.dtype if dtype is None else dtype
    if dtype not in (x.dtype, torch.float16, torch.bfloat16):
        raise TypeError(f"{where}: dtype must be x's {x.dtype}, torch.float16 or torch.bfloat16, got {dtype}")
    size, each = _check_scale(where, scale, image)
    signed = seed - 2**64 if seed >= 2**63 else seed  # the schema's int is signed
    arguments = (x.detach(), image, copy, index, signed, kind, size, each, sphere, dtype)
    result: Tensor = COPIES.run(*arguments) if direct() else COPIES.op(*arguments)
    return result


def _check_slots(where: str, image: Any, copy: Any, x: Tensor) -> None:
    for name, value in (("image", image), ("copy", copy)):
        _checks.check_tensor(where, name, value, (torch.int64,))
        if value.dim() != 1 or value.shape != image.shape:
            expected = "(slots,)" if name == "image" else f"that of image, {tuple(image.shape)}"
            raise ValueError(f"{where}: {name} must have shape {expected}, got {tuple(value.shape)}")
        if value.device != x.device:
            raise ValueError(f"{where}: {name} must be on x's device {x.device}, got {value.device}")


def check_range(where: str, name: str, value: Tensor, end: int) -> None:
    """0 <= value < end, where values may be read without waiting for a device."""
    if value.device.type != "cpu" or torch.compiler.is_compiling() or not value.numel() or not direct():
        return
    low, high = (int(v) for v in torch.aminmax(value))
    if low < 0 or high >= end:
        most = "2^32 - 1" if end == 2**32 else end - 1
        raise ValueError(f"{where}: {name} must be in 0 .. {most}, got {low} .. {high}")


def _check_scale(where: str, scale: Any, image: Tensor) -> tuple[float, Tensor | None]:
    if not isinstance(scale, Tensor):
        if not isinstance(scale, (int, float)):
            raise TypeError(f"{where}: scale must be a number or a tensor, got {type(scale).__name__}")
        if not math.isfinite(scale):
            raise ValueError(f"{where}: scale must be finite, got {scale!r}")
        return float(scale), None
    _checks.check_tensor(where, "scale", scale, (torch.float64,))
    if scale.shape != image.shape:
        raise ValueError(
            f"{where}: scale must be a number or have shape {tuple(image.shape)}, got {tuple(scale.shape)}"
        )
    if scale.device != image.device:
        raise ValueError(f"{where}: scale must be on x's device {image.device}, got {scale.device}")
    return 0.0, scale.detach()


# --- reference --------------------------------------------------------------------------------------------------


def _reference(
    x: Tensor, image: Tensor, copy: Tensor, index: Tensor, seed: int, kind: str, scale: float,
    scale_each: Tensor | None, sphere: str | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    dim = x.shape[1:].numel()
    blocks = torch.arange((dim + 3) // 4, device=x.device)
    words = rounding.philox(seed, blocks, copy[:, None], index[image][:, None], NOISE)
    parts = _normals(words) if kind == "normal" else tuple(_ELEMENTS[kind](w) for w in words)
    draw = torch.stack(parts, -1).flatten(1)[:, :dim]
    size = torch.full_like(draw[:, :1], scale) if scale_each is None else scale_each.double()[:, None]
    clean = x[image].double().reshape(len(image), dim)
    if kind == "split":
        s = 2 * size * draw
        noisy = (s.clamp(max=1) + (clean > s)) / 2
    else:
        if sphere is not None and dim:
            draw = draw / torch.linalg.vector_norm(draw, ord=_ORDER[sphere], dim=1, keepdim=True)
        noisy = clean + size * draw
    return noisy.view(len(image), *x.shape[1:]).to(dtype, memory_format=_format(x))


def _normals(words: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return *rounding.normals(words[0], words[1]), *rounding.normals(words[2], words[3])


_ELEMENTS = {
    "uniform": lambda word: 2 * rounding.uniform(word) - 1,
    "laplace": rounding.laplace,
    "split": rounding.uniform,
}
_ORDER = {"L1": 1.0, "L2": 2.0, "Linf": math.inf}


def _format(x: Tensor) -> torch.memory_format:
    """channels_last where x is stored so and not row by row as well, else contiguous."""
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


# --- native, fake, registration ---------------------------------------------------------------------------------


def _native(
    module: ModuleType, x: Tensor, image: Tensor, copy: Tensor, index: Tensor, seed: int, kind: str, scale: float,
    scale_each: Tensor | None, sphere: str | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    out = _fake(x, image, copy, index, seed, kind, scale, scale_each, sphere, dtype)
    last = _format(x) == torch.channels_last
    x = x if last else x.contiguous()
    image, copy, index = image.contiguous(), copy.contiguous(), index.contiguous()
    scale_each = None if scale_each is None else scale_each.double().contiguous()
    if out.numel():
        with device_guard(x):
            module.noisy_copies(
                out.data_ptr(), x.data_ptr(), DTYPE_CODE[x.dtype], DTYPE_CODE[dtype], len(x), len(image),
                x.shape[1:].numel(), image.data_ptr(), copy.data_ptr(), index.data_ptr(), seed % 2**64, KINDS[kind],
                scale, pointer(scale_each), -1 if sphere is None else NORM_CODE[sphere], x.shape[1] if last else 1,
                where_to(x),
            )  # fmt: skip
    return out


def _fake(
    x: Tensor, image: Tensor, copy: Tensor, index: Tensor, seed: int, kind: str, scale: float,
    scale_each: Tensor | None, sphere: str | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return x.new_empty((image.shape[0], *x.shape[1:]), dtype=dtype).contiguous(memory_format=_format(x))


def _samples(device: torch.device) -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    slots = [torch.tensor(v, device=device) for v in ([2, 0, 0, 1, 2, 2, 1], [0, 5, 2**32 - 1, 7, 7, 8, 1])]
    ids = (*slots, torch.tensor([4, 2**32 - 1, 0], device=device))
    each = torch.rand(7, dtype=torch.float64, generator=generator).to(device) + 0.1
    for shape in ((3, 2, 5, 7), (3, 1), (3, 1031)):
        for dtype in _checks.ITERATES:
            x = torch.rand(shape, dtype=dtype, generator=generator).to(device)
            for kind in KINDS:
                yield (x, *ids, 2**62 + 5, kind, 0.5, None, None, dtype)
            yield (x, *ids, -1, "normal", 0.0, each, None, torch.bfloat16)
            yield (x, *ids, -1, "laplace", 0.0, each, None, torch.float16)
            for kind, norm in (("normal", "L2"), ("laplace", "L1"), ("uniform", "Linf")):
                yield (x, *ids, 3, kind, 0.0, each, norm, dtype)
    last = torch.rand(3, 2, 5, 7, generator=generator).to(device).to(memory_format=torch.channels_last)
    yield (last, *ids, 9, "normal", 2.0, None, None, torch.float32)
    yield (last, *ids, 9, "laplace", 2.0, None, "L1", torch.float32)


COPIES = register(
    OpSpec(
        "noisy_copies",
        "(Tensor x, Tensor image, Tensor copy, Tensor index, int seed, str kind, float scale, Tensor? scale_each, "
        "str? sphere, ScalarType dtype) -> Tensor",
        _reference,
        _native,
        _fake,
        _samples,
        tolerance=1e-13,  # of the series in double; those in float32 are within its roundings
    )
)
