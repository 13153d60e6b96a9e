"""Data-parallel training: gradients are summed with the weight of each rank's share of the batch.

Gradients are reduced in one flat message after the backward pass, without DistributedDataParallel: an
adversarial step spends its time in the attack, which must not trigger reductions, so there is nothing to
overlap.
"""

from __future__ import annotations

import atexit
import copy
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastrobust import processes

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together, and the device it uses."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """Join the group that torchrun started (gloo on the CPU, nccl on CUDA), or be alone without it.

        A CUDA device without an index becomes this process's own, by LOCAL_RANK.
        """
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if device.type == "cuda":
            if device.index is None or launched:
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if launched and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(_leave)
        if not (dist.is_available() and dist.is_initialized()):
            return cls(0, 1, device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model to train.

        Batch norm needs the statistics of the whole batch. On CUDA a copy of the model gets torch's synchronised
        ones. Torch has none for the CPU: there each rank normalises with its own share (with a warning), and the
        running statistics are averaged.
        """
        if self.size == 1 or not any(isinstance(module, _BatchNorm) for module in model.modules()):
            return model
        if self.device.type == "cuda":
            synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
            return synchronised
        warnings.warn(
            "batch norm on the CPU uses each rank's own batch statistics: the result differs from one process",
            stacklevel=2,
        )
        return model

    def from_first(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 only and give every rank its result, or its exception."""
        return processes.from_first(make)

    def sum(self, *values: float) -> list[float]:
        """Sum each value over the ranks, in float64."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(total)
        result: list[float] = total.tolist()
        return result

    def average(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Replace each tensor by its weighted sum over the ranks, in place; the ranks' weights sum to 1."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).mul_(weight)
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of every batch norm in train mode: those of frozen ones do not move."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    found = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    return [buffer for buffer in found if buffer is not None]


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
