"""Votes: how often a network says each class under noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrobust import _checks
from fastrobust.network import trust
from fastrobust.network.capture import in_eval
from fastrobust.network.compile import Compiled
from fastrobust.smoothing.noise import Gaussian, Noise

__all__ = ["Sampler"]

BATCH = 1000  # noisy copies at a time where they are stored


class Sampler:
    """Counts votes of a network under noise.

    Args: as those of `Smooth`.
    """

    def __init__(self, model: nn.Module, num_classes: int, noise: Noise, compile: str | bool = "auto") -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Smooth: model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"Smooth: num_classes must be an integer >= 1, got {num_classes!r}")
        if not isinstance(noise, Noise):
            raise TypeError(f"Smooth: noise must be one of fastrobust.smoothing, as Gaussian(0.25), got {noise!r}")
        if compile not in ("auto", True, False):
            raise ValueError(f"Smooth: compile must be 'auto', True or False, got {compile!r}")
        self.model, self.num_classes, self.noise, self.compile = model, num_classes, noise, compile

    def votes(self, x: Tensor, samples: int, seed: int, index: Tensor | None = None, first: int = 0) -> Tensor:
        """How often the network says each class on copies first .. first + samples - 1 of each x.

        A copy whose logits hold a NaN has no vote. The noise of a copy depends on the seed, the sample's index and the
        copy's number alone, not on batches, threads or processes.

        Returns:
            (batch, num_classes) int64.
        """
        _checks.check_tensor("Smooth", "x", x, _checks.ITERATES)
        if x.dim() < 2:
            raise ValueError(f"Smooth: x must have shape (batch, ...), got {tuple(x.shape)}")
        if not _checks.is_finite(x):
            raise ValueError("Smooth: x must be finite")
        index = torch.arange(len(x), device=x.device) if index is None else index
        _checks.check_labels("Smooth", "index", index, x)
        if first + samples > 2**32:
            raise ValueError(f"Smooth: copies must be numbered in 0 .. 2^32 - 1, got {first + samples - 1}")
        compiled = self._compiled(x)
        if compiled is not None and isinstance(self.noise, Gaussian):
            self._check_classes(compiled.classes)
            return compiled.votes(x, samples, self.noise.sigma, seed, index, first)
        counts = torch.zeros(len(x), self.num_classes, dtype=torch.int64, device=x.device)
        with in_eval(self.model), torch.no_grad():
            for begin in range(0, len(x) * samples, BATCH):  # image after image; every batch is full but the last
                slots = torch.arange(begin, min(begin + BATCH, len(x) * samples), device=x.device)
                image, copy = slots // samples, first + slots % samples
                logits = (compiled or self.model)(self.noise.copies(x, image, copy, index, seed))
                self._check_classes(logits.shape[1])
                valid = ~logits.isnan().any(1)
                counts.index_put_((image, logits.argmax(1)), valid.long(), accumulate=True)
        return counts

    def _compiled(self, x: Tensor) -> Compiled | None:
        if self.compile is False or not len(x):
            return None
        with in_eval(self.model):
            compiled, reason = trust.compiled_for(self.model, x)
        if compiled is None or compiled.engine is None or x.device.type != "cpu":
            if self.compile is True:
                raise ValueError(f"Smooth: compile=True, but {reason or getattr(compiled, 'reason', '') or x.device}")
            return None
        return compiled

    def _check_classes(self, found: int) -> None:
        if found != self.num_classes:
            raise ValueError(f"Smooth: num_classes must be the model's, {found}, got {self.num_classes}")
