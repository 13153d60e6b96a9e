"""The loader: what a step sees is a function of (seed, epoch, step, rank), so any step can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from .dataset import Dataset
from .keys import hash64

_SHUFFLE, _CROP = 1, 2  # what a key is for, so that equal seeds give unrelated draws


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    images (b, ...) float32, labels (b,) int64, index (b,) int64: positions in the data set, the same whatever
    the number of ranks; total: the size of the global batch, so this part weighs b / total.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    total: int


class Augment(Protocol):
    def __call__(self, images: torch.Tensor, index: torch.Tensor, *, seed: int, epoch: int) -> torch.Tensor: ...


def steps_per_epoch(samples: int, batch_size: int, last: Literal["keep", "drop"] = "keep") -> int:
    """How many batches `batches` yields: the last partial one counts with last="keep"."""
    return samples // batch_size if last == "drop" else -(-samples // batch_size)


def permutation(samples: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    """The order of an epoch, (samples,) int64: depends on (seed, epoch) alone, the same on every machine."""
    return np.argsort(hash64(_SHUFFLE, seed, epoch, np.arange(samples)), kind="stable")


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    shuffle: bool = True,
    last: Literal["keep", "drop"] = "keep",
    augment: Augment | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield the batches of one epoch from batch number `start` on.

    `batch_size` counts the global batch; rank r of `world_size` gets the r-th contiguous part of each, parts
    differing by at most one sample. `last` says whether the final partial batch is kept or dropped.
    `augment(images, index, seed=, epoch=)` transforms each part, as `crop_flip` does. Errors: ValueError for
    a bad size, rank or policy.
    """
    if batch_size < 1:
        raise ValueError(f"batches: batch_size must be >= 1, got {batch_size}")
    if last not in ("keep", "drop"):
        raise ValueError(f"batches: last must be 'keep' or 'drop', got {last!r}")
    if not 0 <= rank < world_size:
        raise ValueError(f"batches: rank must lie in [0, {world_size}), got {rank}")
    order = permutation(len(dataset), seed, epoch) if shuffle else np.arange(len(dataset))

    def take(step: int) -> Batch:
        rows = order[step * batch_size : (step + 1) * batch_size]
        index = torch.from_numpy(np.array_split(rows, world_size)[rank].copy())
        images = dataset.images[index]
        if augment is not None:
            images = augment(images, index, seed=seed, epoch=epoch)
        return Batch(images, dataset.labels[index], index, len(rows))

    return map(take, range(start, steps_per_epoch(len(dataset), batch_size, last)))


def crop_flip(images: torch.Tensor, index: torch.Tensor, *, seed: int, epoch: int, padding: int = 4) -> torch.Tensor:
    """The usual CIFAR augmentation: zero-pad, crop back at a random place, mirror half of the images.

    images (B, C, H, W); the draw for a sample depends only on (seed, epoch, index of the sample, padding),
    not on the batch it comes in. Returns a new tensor of the same shape.
    """
    if images.dim() != 4:
        raise ValueError(f"crop_flip: images must be (B, C, H, W), got {tuple(images.shape)}")
    height, width = images.shape[-2:]
    drawn = hash64(_CROP, seed, epoch, index.numpy())
    span = np.uint64(2 * padding + 1)
    flip = torch.from_numpy((drawn >> np.uint64(63)) == 1)
    top = torch.from_numpy((drawn % span).astype(np.int64))
    left = torch.from_numpy(((drawn // span) % span).astype(np.int64))
    rows = top[:, None] + torch.arange(height)
    columns = torch.where(flip[:, None], torch.arange(width - 1, -1, -1), torch.arange(width)) + left[:, None]
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    sample = torch.arange(len(images))[:, None, None]
    # Indexing on both sides of the channel axis puts it last: (B, H, W, C).
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
