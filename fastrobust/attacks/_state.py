"""What a long evaluation has found so far, on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrobust._files import replacing

__all__ = ["State", "fingerprint"]


class State:
    """The flags of an evaluation: for each point the attack that fooled it, and how far each attack has come.

    Kept in `path` (JSON) and the adversarial points in `path` + ".npy"; with no path, in memory only. A killed run is
    resumed by opening the same path again.

    Args:
        path: of the state file, or None.
        mark: fingerprint of points, labels and settings; another one's file is refused.
        x: (n, ...) clean points.

    Attributes:
        fooled_by: (n,) int64, number of the attack in order; -1 while the point stands, -2 for a clean error, -3 for
            one proven robust.
        x_adv: (n, ...) what was found; clean points where nothing was.
        done: name of an attack -> points of it that are through.
        seconds, evaluations: name of an attack -> time and forward passes of single points spent.

    Raises:
        ValueError: if the file belongs to another evaluation.
    """

    def __init__(self, path: str | Path | None, mark: str, x: Tensor) -> None:
        self.path, self.mark = None if path is None else Path(path), mark
        self.fooled_by = torch.full((len(x),), -1, dtype=torch.int64)
        self.done: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.evaluations: dict[str, int] = {}
        self.restored = False
        clean = x.detach().cpu()
        if self.path is None:
            self.x_adv = clean.clone()
            return
        points = self.path.with_name(self.path.name + ".npy")
        wide = clean.float() if clean.dtype == torch.bfloat16 else clean  # numpy has no bfloat16
        self._points: Any
        if self.path.exists():
            self._read(self.path)
            self._points = np.lib.format.open_memmap(points, mode="r+")
            self.restored = True
        else:
            self._points = np.lib.format.open_memmap(
                points, mode="w+", dtype=wide.numpy().dtype, shape=tuple(wide.shape)
            )
            self._points[:] = wide.numpy()
            self.write()
        self.x_adv = torch.from_numpy(self._points)

    def write(self) -> None:
        """To disk, the points first: what the flags speak of is there."""
        if self.path is None:
            return
        self._points.flush()
        record = {
            "fingerprint": self.mark,
            "fooled_by": self.fooled_by.tolist(),
            "done": self.done,
            "seconds": self.seconds,
            "evaluations": self.evaluations,
        }
        with replacing(self.path) as file:
            file.write(json.dumps(record).encode())

    def _read(self, path: Path) -> None:
        try:
            record = json.loads(path.read_text())
            mark = record["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"state_path: {path} is not a state file of ours ({error})") from error
        if mark != self.mark:
            raise ValueError(
                f"state_path: {path} was written by an evaluation of other points, labels, settings or weights; "
                "give another path, or remove it"
            )
        self.fooled_by = torch.tensor(record["fooled_by"], dtype=torch.int64)
        self.done, self.seconds, self.evaluations = record["done"], record["seconds"], record["evaluations"]


def fingerprint(*parts: Any) -> str:
    """A digest of tensors and settings."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            flat = part.detach().cpu().contiguous()
            digest.update(f"{tuple(flat.shape)} {flat.dtype}".encode())
            digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()
