"""An in-memory data set, its three parts, and the stratified split that makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .keys import hash64


@dataclass(frozen=True)
class Dataset:
    """Labelled inputs held in memory.

    images: float32 in [0, 1], (N, C, H, W) (any (N, ...) is accepted, for tabular data); labels: int64, (N,),
    in [0, classes); names: the class names, or empty. Errors: ValueError when a tensor breaks this contract.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.float32 or images.dim() < 2:
            raise ValueError(f"Dataset: images must be float32 (N, ...), got {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"Dataset: labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}"
            )
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"Dataset: names must be empty or {self.classes} long, got {len(self.names)}")
        if len(images) == 0:
            return
        low, high = images.min().item(), images.max().item()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"Dataset: images must lie in [0, 1], got [{low}, {high}]")
        first, last = labels.min().item(), labels.max().item()
        if first < 0 or last >= self.classes:
            raise ValueError(f"Dataset: labels must lie in [0, {self.classes}), got [{first}, {last}]")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of one input, (C, H, W) for images."""
        return tuple(self.images.shape[1:])

    def subset(self, index: torch.Tensor | Sequence[int] | slice) -> Dataset:
        """The samples at `index` (int64 positions or a slice), in that order."""
        rows = index if isinstance(index, slice) else torch.as_tensor(index, dtype=torch.int64)
        return replace(self, images=self.images[rows], labels=self.labels[rows])


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts: train on `train`, choose with `val`, report on `test`."""

    train: Dataset
    val: Dataset
    test: Dataset


def split(dataset: Dataset, sizes: Sequence[int], seed: int = 0) -> list[Dataset]:
    """Cut a data set into disjoint, stratified parts of exactly `sizes` samples.

    A part holds of each class what is proportional to its size, give or take less than two samples. The cut
    depends only on `seed` and the labels. Errors: ValueError when a size is negative or the sizes ask for
    more than there is.
    """
    return [dataset.subset(rows) for rows in split_rows(dataset.labels, sizes, seed)]


def split_rows(labels: torch.Tensor, sizes: Sequence[int], seed: int = 0) -> list[torch.Tensor]:
    """The positions, ascending, that `split` puts into each part, for labels (N,); its errors."""
    total = len(labels)
    if min(sizes, default=0) < 0 or sum(sizes) > total:
        raise ValueError(f"split: sizes must be >= 0 and sum to at most {total}, got {tuple(sizes)}")
    classes = labels.numpy()
    drawn = hash64(seed, np.arange(total))
    # Give every sample its quantile inside its own class. Ordered by quantile the classes are interleaved, so
    # every interval of that order holds each class in proportion, whatever its size.
    quantile = np.empty(total)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        members = members[np.argsort(drawn[members], kind="stable")]
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((classes, quantile))
    ends = np.cumsum(sizes)
    # Inside a part the samples keep their original order: shuffling is the loader's business.
    return [torch.from_numpy(np.sort(order[end - size : end])) for size, end in zip(sizes, ends, strict=True)]


def split_fractions(dataset: Dataset, val: float = 0.1, test: float = 0.1, seed: int = 0) -> Splits:
    """`split` by shares: `val` and `test` of the samples (rounded), the rest for training."""
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise ValueError(f"split_fractions: val and test must be >= 0 and sum to < 1, got {val} and {test}")
    n_val, n_test = round(val * len(dataset)), round(test * len(dataset))
    return Splits(*split(dataset, (len(dataset) - n_val - n_test, n_val, n_test), seed))
