"""MNIST-style IDX files (http://yann.lecun.com/exdb/mnist, "the IDX file format"), gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .dataset import Dataset, Splits, split, split_fractions

_UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path) -> np.ndarray[Any, Any]:
    """Read one IDX file of unsigned bytes into a uint8 array of the shape its header declares.

    Errors: FileNotFoundError; ValueError naming the file when it is not IDX, holds another element type, or
    is shorter or longer than its header says.
    """
    path = Path(path)
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"read_idx: {path} is a damaged gzip file ({error})") from error
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError(f"read_idx: {path} must begin with the IDX magic 00 00, got {data[:4].hex(' ')!r}")
    if data[2] != _UNSIGNED_BYTE:
        raise ValueError(f"read_idx: {path} must hold unsigned bytes (type 0x08), got type 0x{data[2]:02x}")
    dimensions, header = data[3], 4 + 4 * data[3]
    if dimensions == 0 or len(data) < header:
        raise ValueError(f"read_idx: {path} ends inside its header of {dimensions} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", dimensions, offset=4))
    if len(data) - header != math.prod(shape):
        raise ValueError(
            f"read_idx: {path} must hold {math.prod(shape)} values for shape {shape}, got {len(data) - header}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def idx_folder(path: str | Path, val: float = 0.1, seed: int = 0) -> Splits:
    """Read a folder of IDX files under MNIST's names (`train-images-idx3-ubyte` and so on).

    With both pairs present a stratified share `val` of the training pair becomes the validation part and the
    t10k pair is the test part. With one pair, that pair is split 1 - 2 val / val / val. Values 0-255 become
    [0, 1], images (N, 1, H, W). Errors: FileNotFoundError, or ValueError naming the file and what is wrong
    with it.
    """
    folder = Path(path)
    pairs = [pair for prefix in ("train", "t10k") if (pair := _read_pair(folder, prefix)) is not None]
    if not pairs:
        raise FileNotFoundError(f"idx_folder: {folder} must hold train-images-idx3-ubyte or t10k-images-idx3-ubyte")
    classes = 1 + max(int(labels.max(initial=0)) for _, labels in pairs)
    parts = [
        Dataset(
            torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1),
            torch.from_numpy(labels.astype(np.int64)),
            classes,
        )
        for images, labels in pairs
    ]
    if len(parts) == 1:
        return split_fractions(parts[0], val, val, seed)
    if parts[0].in_shape != parts[1].in_shape:
        raise ValueError(
            f"idx_folder: train and t10k images must have one size, got {parts[0].in_shape} and {parts[1].in_shape}"
        )
    held_out = round(val * len(parts[0]))
    train, held = split(parts[0], (len(parts[0]) - held_out, held_out), seed)
    return Splits(train, held, parts[1])


def _read_pair(folder: Path, prefix: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    images_path = _find(folder, f"{prefix}-images", "idx3-ubyte")
    labels_path = _find(folder, f"{prefix}-labels", "idx1-ubyte")
    if images_path is None and labels_path is None:
        return None
    if images_path is None or labels_path is None:
        raise FileNotFoundError(f"idx_folder: {folder} must hold both {prefix}-images and {prefix}-labels")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3:
        raise ValueError(f"idx_folder: {images_path} must be 3-dimensional, got shape {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"idx_folder: {labels_path} must hold {len(images)} labels, one per image, got shape {labels.shape}"
        )
    return images, labels


def _find(folder: Path, stem: str, kind: str) -> Path | None:
    candidates = (folder / f"{stem}{dot}{kind}{suffix}" for dot in "-." for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)
