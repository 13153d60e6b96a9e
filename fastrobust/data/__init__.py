"""Small in-memory data sets, a resumable loader, and readers for IDX files, image folders and NumPy archives."""

from __future__ import annotations

from .batches import Augment, Batch, batches, crop_flip, permutation, steps_per_epoch
from .dataset import Dataset, Splits, split, split_fractions, split_rows
from .idx import idx_folder, read_idx
from .images import image_folder, read_images
from .npz import npz_file, read_npz
from .sources import digits, load, mnist5k

__all__ = [
    "Augment",
    "Batch",
    "Dataset",
    "Splits",
    "batches",
    "crop_flip",
    "digits",
    "idx_folder",
    "image_folder",
    "load",
    "mnist5k",
    "npz_file",
    "permutation",
    "read_idx",
    "read_images",
    "read_npz",
    "split",
    "split_fractions",
    "split_rows",
    "steps_per_epoch",
]
