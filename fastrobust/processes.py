"""The processes of `torchrun`: which one this is, and what they tell each other."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TypeVar, cast

from torch import Tensor
from torch import distributed as dist

__all__ = ["everywhere", "from_first", "place", "total"]

T = TypeVar("T")

if dist.is_available():
    # Its default arguments keep the process group of the moment it is imported, and torch.optim imports it. Imported
    # after a group was made, it would keep gloo's threads beyond the group's end, and a thread that lets go of a tensor
    # while Python ends aborts the process.
    importlib.import_module("torch.distributed.nn.functional")


def place() -> tuple[int, int]:
    """This process's number and how many there are, by torch.distributed; (0, 1) without a process group."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


def total(value: Tensor) -> Tensor:
    """The sum over processes, to all of them; on the value's device."""
    if place()[1] == 1:
        return value
    moved = value.to("cuda" if dist.get_backend() == "nccl" else "cpu", copy=True)
    dist.all_reduce(moved)
    return moved.to(value.device)


def from_first(make: Callable[[], T]) -> T:
    """Call `make` in the first process only and give every process its result, or its exception."""
    rank, world = place()
    box: list[T | Exception | None] = [None]
    if rank == 0:
        try:
            box = [make()]
        except Exception as error:
            box = [error]
    if world > 1:
        dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], Exception):
        raise box[0]
    return cast(T, box[0])


def everywhere(value: T) -> list[T]:
    """Every process's value, in order."""
    found: list[T] = [value] * place()[1]
    if len(found) > 1:
        dist.all_gather_object(found, value)
    return found
