"""Votes: how often a network says each class under noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastrobust import _checks, ops
from fastrobust.network import trust
from fastrobust.network.capture import in_eval
from fastrobust.network.compile import ADDED, Compiled
from fastrobust.ops.noise import check_range
from fastrobust.smoothing.noise import Noise

__all__ = ["Sampler", "check_alone", "count_votes", "engine_for"]

BATCH = 1024  # noisy copies at a time where they are stored
# By how much a sample's logits may change with what else is in the batch, as a share of the largest: rounding does
# that, more of it in 16 bits; what other samples do to batch statistics is far larger.
ALONE, ROUNDINGS = 0.01, 8


class Sampler:
    """Counts votes of a network under noise.

    Args: as those of `Smooth`.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, noise: Noise, compile: str | bool = "auto",
        autocast: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise TypeError(f"Smooth: model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"Smooth: num_classes must be an integer >= 1, got {num_classes!r}")
        if isinstance(noise, type) or not isinstance(noise, Noise):
            raise TypeError(f"Smooth: noise must be one of fastrobust.smoothing, as Gaussian(0.25), got {noise!r}")
        if compile not in ("auto", True, False):
            raise ValueError(f"Smooth: compile must be 'auto', True or False, got {compile!r}")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"Smooth: autocast must be None, torch.bfloat16 or torch.float16, got {autocast!r}")
        if autocast is not None and compile is True:
            raise ValueError("Smooth: compile=True, but the engine does not run in 16 bits; give autocast=None")
        self.model, self.num_classes, self.noise, self.compile = model, num_classes, noise, compile
        self.autocast = autocast
        self._seen_alone: set[tuple[Any, ...]] = set()

    def begin(self) -> None:
        """Nothing is kept from one certificate to the next."""

    def votes(self, x: Tensor, samples: int, seed: int, index: Tensor | None = None, first: int = 0) -> Tensor:
        """How often the network says each class on copies first .. first + samples - 1 of each x.

        A copy whose logits hold a NaN has no vote. The noise of a copy depends on the seed, the sample's index and the
        copy's number alone, not on batches, threads or processes. Copies of several images share a batch; nothing waits
        for a GPU but the first call, which checks that samples do not influence each other.

        Args:
            x: (batch, ...), float32 or float64, finite; on a GPU, where that would wait, a sample that is not has no
                votes.
            samples: copies of each.
            seed: key of the noise.
            index: (batch,) int64 ids that key the noise, 0 .. 2^32 - 1; 0 .. batch - 1 if None.
            first: number of the first copy.

        Returns:
            (batch, num_classes) int64.

        Raises:
            ValueError, TypeError: naming the argument; also for a model that gives no (slots, num_classes), or a
                sample's logits only together with the rest of its batch.
        """
        _checks.check_tensor("Smooth", "x", x, _checks.ITERATES)
        if x.dim() < 2:
            raise ValueError(f"Smooth: x must have shape (batch, ...), got {tuple(x.shape)}")
        if x.device.type == "cpu" and not _checks.is_finite(x):
            raise ValueError("Smooth: x must be finite")
        index = torch.arange(len(x), device=x.device) if index is None else index
        _checks.check_labels("Smooth", "index", index, x)
        check_range("Smooth", "index", index, 2**32)
        if first + samples > 2**32:
            raise ValueError(f"Smooth: copies must be numbered in 0 .. 2^32 - 1, got {first + samples - 1}")
        compiled = None if self.autocast else engine_for(self.model, x, self.compile)
        kind, scale = getattr(self.noise, "drawn", ("", 0.0))
        if compiled is not None and kind in ADDED:
            self._check_classes(compiled.classes)
            return compiled.votes(x, samples, scale, seed, index, first, kind)
        counts = torch.zeros(len(x), self.num_classes, dtype=torch.int64, device=x.device)
        half = torch.autocast(x.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)
        with in_eval(self.model), torch.no_grad(), half:  # never as the caller's own autocast says
            for begin in range(0, len(x) * samples, BATCH):  # image after image; every batch is full but the last
                slots = torch.arange(begin, min(begin + BATCH, len(x) * samples), device=x.device)
                image, copy = slots // samples, first + slots % samples
                noisy = self.noise.copies(x, image, copy, index, seed)
                logits = self.model(noisy) if compiled is None else compiled.run(noisy)
                self._check_logits(logits, noisy, whole=compiled is not None)
                count_votes(logits, image, counts)
        return counts if x.device.type == "cpu" else counts * x.isfinite().flatten(1).all(1, keepdim=True)

    def _check_classes(self, found: int) -> None:
        if found != self.num_classes:
            raise ValueError(f"Smooth: num_classes must be the model's, {found}, got {self.num_classes}")

    def _check_logits(self, logits: Any, noisy: Tensor, whole: bool) -> None:
        """`whole`: samples are known not to influence each other."""
        if not isinstance(logits, Tensor):
            raise TypeError(f"Smooth: model must give a tensor of logits, got {type(logits).__name__}")
        if logits.dim() != 2 or len(logits) != len(noisy):
            raise ValueError(
                f"Smooth: model must give logits (batch, classes) for each of {len(noisy)} samples, "
                f"got {tuple(logits.shape)}"
            )
        self._check_classes(logits.shape[1])
        kind = (noisy.shape[1:], noisy.dtype, noisy.device)
        if not whole and kind not in self._seen_alone:
            check_alone("Smooth", self.model(torch.cat([noisy[:1], torch.zeros_like(noisy[:1])]))[0], logits[0])
            self._seen_alone.add(kind)


def check_alone(where: str, alone: Tensor, beside: Tensor) -> None:
    """A sample's logits are the same, but for rounding, beside other neighbours."""
    largest = float(beside.nan_to_num(0, 0, 0).abs().max())
    share = max(ALONE, ROUNDINGS * torch.finfo(beside.dtype).eps) if beside.is_floating_point() else 0.0
    if not torch.allclose(alone, beside, rtol=0, atol=share * largest, equal_nan=True):
        apart = float((alone - beside).abs().max())
        raise ValueError(
            f"{where}: model must give a sample the same logits whatever else is in the batch, at every call; "
            f"those of the first sample differ by {apart:.3g} of {largest:.3g}"
        )


def engine_for(model: nn.Module, x: Tensor, compile: str | bool) -> Compiled | None:
    """The network in the engine, its parameters as they are now; or None where the model itself runs."""
    if compile is False or not len(x):
        return None
    compiled, reason = None, f"the engine counts votes on the CPU only, x is on {x.device}"
    if x.device.type == "cpu":
        with in_eval(model):
            compiled, reason = trust.compiled_for(model, x)
    if compiled is not None and compiled.engine is not None:
        return compiled
    if compile is True:
        raise ValueError(f"Smooth: compile=True, but {reason or getattr(compiled, 'reason', '')}")
    return None


def count_votes(logits: Tensor, image: Tensor, counts: Tensor) -> None:
    """`ops.add_votes`, of whole numbers too. Of equal logits the first one has the vote, on every device."""
    ops.add_votes(logits if logits.is_floating_point() else logits.double(), image, counts)
