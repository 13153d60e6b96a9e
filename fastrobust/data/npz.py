"""Points in a NumPy archive."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset, Splits, split_fractions


def read_npz(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read the arrays ``x`` (N, ...), floating-point, and ``y`` (N,), whole numbers: float32 and int64 tensors.

    Nothing in the file is unpickled. Errors: FileNotFoundError; ValueError when an array is missing, or is of another
    kind or shape, or holds what is not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            x, y = archive["x"], archive["y"]
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"read_npz: {path} must be a NumPy archive with plain arrays x and y ({error})") from error
    if x.dtype.kind != "f" or x.ndim < 2 or not len(x):
        raise ValueError(f"read_npz: x must be floating-point (N, ...) with N >= 1, got {x.dtype} {x.shape}")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise ValueError(f"read_npz: y must be whole numbers ({len(x)},), got {y.dtype} {y.shape}")
    if not np.isfinite(x).all() or y.min() < 0:
        raise ValueError("read_npz: x must be finite and y at least 0")
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))


def npz_file(path: str | Path, seed: int = 0) -> Splits:
    """`read_npz` as a data set in [0, 1], split stratified 80 / 10 / 10 per cent. Errors: also those of `Dataset`."""
    x, y = read_npz(path)
    return split_fractions(Dataset(x, y, int(y.max()) + 1), seed=seed)
