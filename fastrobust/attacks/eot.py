"""Expectation over transformation (Athalye et al., ICML 2018) as a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from fastrobust.data.keys import key

__all__ = ["EOT"]

Transform = Callable[[Tensor], Tensor]
AVERAGES = ("logits", "probabilities")


class EOT(nn.Module):
    """The mean of a model over draws: of a model that is random itself, or of one behind random transforms.

    ``EOT(net, resize_and_pad, n=16)`` is a model like any other: attacks follow the gradient of its mean, and count as
    fooled what fools its mean. All draws' activations are held at once. The keyword ``eot=n`` of an attack averages
    the gradients of the losses instead, one draw at a time.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        transforms: None: the model is random; a callable (batch, ...) -> (batch, ...) that is random; or a sequence of
            callables, over all of which is averaged.
        n: draws; of each transform where there are several.
        average: "logits"; or "probabilities": the logarithm of the mean of softmax(logits), so that the cross-entropy
            is that of the mean prediction.
        seed: None: draws come from torch's generators, each forward pass others. A number: draw k starts from the
            generators seeded with (seed, k), so that every pass meets the same n draws (a deterministic objective), and
            they are left as they were. What a sample is dealt then depends on its place in the batch wherever the
            transform draws for each sample: draw once for all, or keep `batch_size`, where that matters.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        transforms: Transform | Sequence[Transform] | None = None,
        n: int = 1,
        *,
        average: str = "logits",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"EOT: model must be callable, got {type(model).__name__}")
        several: list[Transform] = []
        if isinstance(transforms, (Sequence, nn.ModuleList)):
            several = list(transforms)
        elif transforms is None or callable(transforms):
            several = [transforms or nn.Identity()]
        if not several or not all(callable(part) for part in several):
            raise TypeError(f"EOT: transforms must be None, a callable or some callables, got {transforms!r}")
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"EOT: n must be an integer >= 1, got {n!r}")
        if average not in AVERAGES:
            raise ValueError(f"EOT: average must be one of {', '.join(AVERAGES)}, got {average!r}")
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**64):
            raise ValueError(f"EOT: seed must be None or an integer in 0 .. 2^64 - 1, got {seed!r}")
        self.model, self.n, self.average, self.seed = model, n, average, seed
        self.transforms = several
        # Registered, so that modes and devices reach them.
        self.parts = nn.ModuleList(part for part in several if isinstance(part, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits, or the logarithm of mean probabilities, (batch, classes), of x (batch, ...)."""
        parts = []
        for draw in range(self.n * len(self.transforms)):
            with nullcontext() if self.seed is None else seeded(key(self.seed, draw), x.device):
                logits = self.model(self.transforms[draw % len(self.transforms)](x))
            parts.append(logits if self.average == "logits" else logits.log_softmax(1))
        every = torch.stack(parts)
        if self.average == "logits":
            return every.mean(0)
        return every.logsumexp(0) - torch.tensor(len(parts), dtype=every.dtype, device=every.device).log()

    def extra_repr(self) -> str:
        return f"n={self.n}, average={self.average!r}, seed={self.seed}"


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators seeded, and then as they were."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.random.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
