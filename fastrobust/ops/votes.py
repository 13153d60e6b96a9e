"""Votes: the class of each row of logits, counted for the image that the row is a copy of."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastrobust import _checks
from fastrobust._registry import OpSpec, direct, register
from fastrobust.ops.noise import check_range
from fastrobust.ops.perturb import DTYPE_CODE, device_guard, where_to

__all__ = ["add_votes"]


# --- public function --------------------------------------------------------------------------------------------


def add_votes(logits: Tensor, image: Tensor, counts: Tensor) -> Tensor:
    """Adds one to counts[image[s], c] for each row s, in place: c is the first largest of its logits.

    A row that holds a NaN has no vote. Nothing waits for a device.

    Args:
        logits: (slots, classes), float32, float64, bfloat16 or float16.
        image: (slots,) int64, 0 .. images - 1.
        counts: (images, classes) int64.

    Returns:
        counts.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came. On a GPU values are not read: there
        a row whose image is out of range has no vote.
    """
    where = "add_votes"
    _checks.check_tensor(where, "logits", logits, _checks.FLOATS)
    if logits.dim() != 2 or not logits.shape[1]:
        raise ValueError(f"{where}: logits must have shape (slots, classes >= 1), got {tuple(logits.shape)}")
    _checks.check_labels(where, "image", image, logits)
    _checks.check_tensor(where, "counts", counts, (torch.int64,))
    if counts.dim() != 2 or counts.shape[1] != logits.shape[1]:
        raise ValueError(f"{where}: counts must have shape (images, {logits.shape[1]}), got {tuple(counts.shape)}")
    if counts.device != logits.device:
        raise ValueError(f"{where}: counts must be on {logits.device}, got {counts.device}")
    check_range(where, "image", image, len(counts))
    if direct():
        VOTES.run(counts, logits.detach(), image)
        increment_version(counts)
    else:
        VOTES.op(counts, logits.detach(), image)
    return counts


# --- reference, native, fake, registration ----------------------------------------------------------------------


def _reference(counts: Tensor, logits: Tensor, image: Tensor) -> None:
    if not logits.shape[0] or not counts.shape[0]:
        return
    valid = ~logits.isnan().any(1) & (image >= 0) & (image < len(counts))
    counts.index_put_((image.clamp(0, len(counts) - 1), logits.argmax(1)), valid.long(), accumulate=True)


def _native(module: ModuleType, counts: Tensor, logits: Tensor, image: Tensor) -> None:
    if not (logits.numel() and counts.numel()):
        return
    logits, image, dense = logits.contiguous(), image.contiguous(), counts.contiguous()
    with device_guard(logits):
        module.add_votes(
            dense.data_ptr(), logits.data_ptr(), DTYPE_CODE[logits.dtype], image.data_ptr(), *logits.shape,
            len(counts), where_to(logits),
        )  # fmt: skip
    if dense is not counts:
        counts.copy_(dense)


def _fake(counts: Tensor, logits: Tensor, image: Tensor) -> None:
    return None


def _samples(device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in _checks.FLOATS:
        for slots, classes, images in ((57, 10, 3), (5, 1, 2), (40, 300, 4)):
            logits = torch.randn(slots, classes, generator=generator).to(dtype)
            logits[1::5] = logits[1::5].round()  # ties
            image = torch.randint(images, (slots,), generator=generator)
            yield torch.ones(images, classes, dtype=torch.int64, device=device), logits.to(device), image.to(device)


VOTES = register(
    OpSpec("add_votes", "(Tensor(a!) counts, Tensor logits, Tensor image) -> ()", _reference, _native, _fake, _samples)
)
