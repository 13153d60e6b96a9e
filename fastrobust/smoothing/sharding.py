"""Votes drawn by the processes of `torchrun` together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from fastrobust import processes
from fastrobust.smoothing.ledger import Votes

__all__ = ["Shared", "shares"]


class Shared:
    """Each process draws its share of the copies; all get all counts.

    The copies of all samples, one after another, are cut into as many pieces of one length as there are processes: most
    samples are drawn by one process whole, and a single one by all. Copies are numbered and keyed as in one process, so
    counts are the same for any number of them.

    Args:
        sampler: of this process, with its ledger if it has one.

    Raises:
        ValueError: from `votes`, where processes ask for different votes.
    """

    def __init__(self, sampler: Votes) -> None:
        self.sampler, self.num_classes = sampler, sampler.num_classes

    def begin(self) -> None:
        """As that of what it shares."""
        self.sampler.begin()

    def votes(self, x: Tensor, samples: int, seed: int, index: Tensor | None = None, first: int = 0) -> Tensor:
        """As those of `Sampler`."""
        rank, world = processes.place()
        if world == 1 or not isinstance(x, Tensor) or not x.numel():
            return self.sampler.votes(x, samples, seed, index, first)
        index = torch.arange(len(x), device=x.device) if index is None else index
        asked = f"{tuple(x.shape)} {samples} {seed} {first} {index.tolist()}".encode()
        values = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        if len(set(processes.everywhere(hashlib.blake2b(asked + values.tobytes()).hexdigest()))) > 1:
            raise ValueError("Smooth: all processes must make the same calls, got different samples, ids or ranges")
        counts = torch.zeros(len(x), self.num_classes, dtype=torch.int64, device=x.device)
        for rows, begin, count in shares(len(x), samples, rank, world):
            counts[rows] += self.sampler.votes(x[rows], count, seed, index[rows], first + begin)
        return processes.total(counts)


def shares(images: int, samples: int, rank: int, world: int) -> Iterator[tuple[slice, int, int]]:
    """A process's part of images * samples copies: images, their first copy, and how many copies of each."""
    (low, before), (high, after) = (divmod(images * samples * r // world, samples) for r in (rank, rank + 1))
    if low == high:
        if before < after:
            yield slice(low, low + 1), before, after - before
        return
    if before:
        yield slice(low, low + 1), before, samples - before
        low += 1
    if low < high:
        yield slice(low, high), 0, samples
    if after:
        yield slice(high, high + 1), 0, after
