"""Folders of image files: one sub-folder per class."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from .dataset import Dataset, Splits, split, split_fractions
from .optional import need


def image_folder(path: str | Path, mode: str = "RGB", val: float = 0.1, seed: int = 0) -> Splits:
    """Read a folder of images.

    Either `path/<class>/<file>`, split stratified into 1 - 2 val / val / val, or `path/train/<class>/<file>`
    with `path/test/...` (and optionally `path/val/...`; without it a share `val` of train is held out).
    Classes are the sorted folder names, files are read in sorted order, hidden files are ignored. `mode` is
    Pillow's ("RGB" or "L"). Needs Pillow. Errors: FileNotFoundError; ValueError naming the file that is no
    image or has another size.
    """
    root = Path(path)
    train, test = root / "train", root / "test"
    if not (train.is_dir() and test.is_dir()):
        return split_fractions(read_images(root, mode), val, val, seed)
    parts = {name: read_images(root / name, mode) for name in ("train", "val", "test") if (root / name).is_dir()}
    for name, part in parts.items():
        if part.names != parts["train"].names or part.in_shape != parts["train"].in_shape:
            raise ValueError(f"image_folder: {root / name} must have the classes and image size of {train}")
    if "val" not in parts:
        held_out = round(val * len(parts["train"]))
        sizes = (len(parts["train"]) - held_out, held_out)
        parts["train"], parts["val"] = split(parts["train"], sizes, seed)
    return Splits(parts["train"], parts["val"], parts["test"])


def read_images(folder: str | Path, mode: str = "RGB") -> Dataset:
    """Read `folder/<class>/<file>` into one data set, (N, 3, H, W) for "RGB" and (N, 1, H, W) for "L"."""
    if mode not in ("RGB", "L"):
        raise ValueError(f"read_images: mode must be 'RGB' or 'L', got {mode!r}")
    image = need("PIL.Image", "Pillow", "read_images")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"read_images: {folder} must be a folder of class folders")
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    arrays: list[np.ndarray[Any, Any]] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(file for file in (folder / name).iterdir() if file.name[0] != ".")
        if not files:
            raise ValueError(f"read_images: class folder {folder / name} must hold images, got none")
        for file in files:
            arrays.append(_decode(image, file, mode))
            labels.append(label)
            if arrays[-1].shape != arrays[0].shape:
                raise ValueError(
                    f"read_images: {file} must have the size of the first image {arrays[0].shape[1::-1]}, "
                    f"got {arrays[-1].shape[1::-1]}"
                )
    if not arrays:
        raise ValueError(f"read_images: {folder} must hold one sub-folder per class, got none")
    stacked = torch.from_numpy(np.stack(arrays))
    stacked = stacked.unsqueeze(1) if mode == "L" else stacked.permute(0, 3, 1, 2)
    return Dataset(stacked.contiguous().float().div_(255), torch.tensor(labels), len(names), names)


def _decode(image: ModuleType, file: Path, mode: str) -> np.ndarray[Any, Any]:
    try:
        with image.open(file) as picture:
            # Pillow clips 16-bit and float pixels to 255 instead of scaling them.
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"pixel mode {picture.mode} is not 8-bit")
            return np.asarray(picture.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"read_images: {file} cannot be read as an image ({error})") from error
