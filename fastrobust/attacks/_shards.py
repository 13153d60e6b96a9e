"""Points shared out over the processes of `torchrun`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fastrobust import processes

__all__ = ["Shard"]

Number = TypeVar("Number", int, float)


class Shard(NamedTuple):
    """This process's points: every `world`-th from `rank` on. One process has them all.

    Attributes:
        rows: (m,) int64 numbers of its points.
    """

    rank: int
    world: int
    rows: Tensor

    @classmethod
    def of(cls, points: int) -> Shard:
        """By torch.distributed, where a process group is initialised."""
        rank, world = processes.place()
        return cls(rank, world, torch.arange(rank, points, world))

    def path(self, path: str | Path | None) -> Path | None:
        """A file of its own for each process."""
        if path is None or self.world == 1:
            return None if path is None else Path(path)
        return Path(f"{path}.{self.rank}")

    def gather(self, values: Tensor, points: int) -> Tensor:
        """All points' values in order, from each process's own; to all processes. On the CPU."""
        whole = torch.zeros(points, *values.shape[1:], dtype=values.dtype)
        whole[self.rows] = values.cpu()
        return processes.total(whole)

    def total(self, value: Number) -> Number:
        """A number summed over processes."""
        if self.world == 1:
            return value
        return type(value)(processes.total(torch.tensor(value, dtype=torch.float64)).item())
