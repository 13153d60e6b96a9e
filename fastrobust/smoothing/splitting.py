"""Derandomised splitting noise: certificates in L1 by counting, without statistics (docs/smoothing/exact.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastrobust.network.capture import in_eval
from fastrobust.ops import _rounding as rounding
from fastrobust.smoothing.grid import check_levels, grid_points
from fastrobust.smoothing.sampling import count_votes, engine_for

__all__ = ["DeterministicSmooth", "ExactCertificate", "Splitting"]

STREAM = 7  # of Philox: the elements' offsets
LEAST, MOST = 16, 1000  # copies at a time, and numbers in them: on a CPU as many as its caches hold
NUMBERS = {"cpu": 2**19, "cuda": 2**24}
MOST_COPIES = 2**21  # of an image: half numbers of that size are exact in float32


@dataclass(frozen=True)
class Splitting:
    """Splitting noise on images of whole grey levels (Levine and Feizi, ICML 2021).

    An element k / levels is replaced by the centre of the cell that holds it. Cells are cut at t + 1/2 and every
    `period` grey levels from there, and end with the box 0 .. 1. Copy number c has t = (offset + c) mod period, with an
    offset for each element; so `period` copies are all there are.

    Attributes:
        lam: the paper's lambda, in units of the box 0 .. 1: half the length of a cell.
        levels: elements are k / levels, k = 0 .. levels.
        seed: of the offsets. It is a part of the smoothed classifier, as a weight is: fix it before training.
    """

    lam: float
    levels: int = 255
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.lam, (int, float)) and math.isfinite(self.lam) and self.lam > 0):
            raise ValueError(f"Splitting: lam must be a finite number > 0, got {self.lam!r}")
        check_levels("Splitting", self.levels)
        if not 1 <= self.period <= MOST_COPIES:
            raise ValueError(
                f"Splitting: lam must make 1 .. {MOST_COPIES} copies, floor(2 lam levels), got {self.lam!r}"
            )
        if not (isinstance(self.seed, int) and 0 <= self.seed < 2**64):
            raise ValueError(f"Splitting: seed must be in 0 .. 2^64 - 1, got {self.seed!r}")

    @property
    def period(self) -> int:
        """How many copies an image has: floor(2 lam levels)."""
        return math.floor(round(2 * self.lam * self.levels, 9))

    def offsets(self, shape: torch.Size, device: torch.device | str = "cpu") -> Tensor:
        """The elements' offsets, 0 .. period - 1, int64 in the shape of one sample."""
        dim = math.prod(shape)
        zero = torch.zeros((), dtype=torch.int64, device=device)
        words = rounding.philox(self.seed, torch.arange((dim + 3) // 4, device=device), 0, zero, STREAM)
        return (torch.stack(words, -1).flatten()[:dim] % self.period).view(shape)

    def copies(self, x: Tensor, image: Tensor, copy: Tensor) -> Tensor:
        """Noisy copies (slots, ...): slot s is copy number copy[s] (modulo `period`) of x[image[s]].

        With random copy numbers this is the noise to train with.

        Args:
            x: (batch, ...), float32 or float64, of k / levels.
            image, copy: (slots,) int64.

        Raises:
            ValueError, TypeError: where x is off the grid, leaves 0 .. 1, or is no such tensor.
        """
        return self._split(self._points(x), image, copy, x.dtype)

    def _points(self, x: Tensor) -> Tensor:
        k = grid_points("Splitting", x, self.levels)
        if x.dim() < 2:
            raise ValueError(f"Splitting: x must have shape (batch, ...), got {tuple(x.shape)}")
        if k.numel() and (int(k.min()) < 0 or int(k.max()) > self.levels):
            raise ValueError(f"Splitting: x must lie in 0 .. 1, got values in [{x.min():g}, {x.max():g}]")
        return k

    def _split(self, k: Tensor, image: Tensor, copy: Tensor, dtype: torch.dtype) -> Tensor:
        """In floats that hold whole and half numbers: all is exact but the last division."""
        q, each = self.period, (-1, *[1] * (k.dim() - 1))
        t = self.offsets(k.shape[1:], k.device).to(dtype) + (copy % q).to(dtype).view(each)
        cell = (k.to(dtype)[image] - t - 0.5).div_(q).floor_()  # never near a whole number: half a grey level away
        start = t.add_(0.5).add_(cell.mul_(q))
        return start.clamp(min=0).add_(start.add_(q).clamp_(max=self.levels)).div_(2 * self.levels)


@dataclass(frozen=True)
class ExactCertificate:
    """Of the smoothed classifier g, never of f; nothing in it is a matter of chance.

    Attributes:
        prediction: (batch,) int64: g's class; -1 where no copy had a vote.
        radius: (batch,) float64, in L1 and units of the box: for every image of whole grey levels at most that far from
            x, g says the same. A whole number of grey levels.
        votes: (batch, classes) int64.
    """

    prediction: Tensor
    radius: Tensor
    votes: Tensor


class DeterministicSmooth:
    """g(x) = the class that f says of most of the noisy copies of x, the lower one of equals; all copies are tried.

    Args:
        model: f, from (batch, ...) to logits (batch, classes); run in eval mode and left as it is. What it says of a
            row must not depend on other rows.
        num_classes: how many logits there are.
        noise: `Splitting(lam)`.
        compile: "auto", True or False: the native engine, where it serves.
        progress: show a bar.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, noise: Splitting, *, compile: str | bool = "auto",
        progress: bool = False,
    ) -> None:  # fmt: skip
        where = type(self).__name__
        if not isinstance(model, nn.Module):
            raise TypeError(f"{where}: model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"{where}: num_classes must be an integer >= 1, got {num_classes!r}")
        if not isinstance(noise, Splitting):
            raise TypeError(f"{where}: noise must be a Splitting, as Splitting(0.5), got {noise!r}")
        if compile not in ("auto", True, False):
            raise ValueError(f"{where}: compile must be 'auto', True or False, got {compile!r}")
        self.model, self.num_classes, self.noise = model, num_classes, noise
        self.compile, self.progress = compile, progress

    def predict(self, x: Tensor) -> Tensor:
        """g(x), (batch,); -1 where no copy had a vote. Arguments as those of `certify`."""
        return self.certify(x).prediction

    def certify(self, x: Tensor) -> ExactCertificate:
        """g(x) and its radius.

        Args:
            x: (batch, ...), float32 or float64, of k / levels in 0 .. 1.
        """
        votes = self.votes(x)
        classes = torch.arange(self.num_classes, device=x.device)
        first = (votes * self.num_classes - classes).argmax(1)  # the lower class of equals, on any device
        most = votes.gather(1, first[:, None])[:, 0]
        # A rival of a lower number wins a draw. A step of one grey level moves one vote: the gap shrinks by two.
        rivals = votes + (classes < first[:, None])
        rivals = rivals.scatter(1, first[:, None], 0).amax(1)
        steps = torch.div(most - rivals, 2, rounding_mode="floor").clamp(min=0)
        return ExactCertificate(torch.where(most > 0, first, -1), steps.double() / self.noise.levels, votes)

    def votes(self, x: Tensor) -> Tensor:
        """How many of the copies f says each class of; those whose logits hold a NaN have no vote.

        Returns:
            (batch, num_classes) int64.
        """
        k = self.noise._points(x)
        compiled = engine_for(self.model, x, self.compile)
        counts = torch.zeros(len(x), self.num_classes, dtype=torch.int64, device=x.device)
        checked = compiled is not None
        with in_eval(self.model), torch.no_grad():
            for slots in tqdm(list(self._batches(x, compiled is not None)), "copies", disable=not self.progress):
                image = torch.div(slots, self.noise.period, rounding_mode="floor")
                copies = self.noise._split(k, image, slots % self.noise.period, x.dtype)
                logits = (compiled or self.model)(copies)
                if logits.dim() != 2 or logits.shape[1] != self.num_classes:
                    found = logits.shape[1] if logits.dim() == 2 else f"of shape {tuple(logits.shape)}"
                    raise ValueError(
                        f"{type(self).__name__}: num_classes must be the model's, {found}, got {self.num_classes}"
                    )
                if not checked:
                    self._check_rows(copies, logits)
                    checked = True
                count_votes(logits, image, counts)
        return counts

    def _batches(self, x: Tensor, any_place: bool) -> Iterator[Tensor]:
        """Slots, copy after copy and image after image.

        PyTorch's kernels may round a row otherwise in a batch of another size or in another place of it. So there each
        image has batches of its own, and each copy always the same place in them: its vote is a function of its input.
        The engine's rows are the same in any batch, and its batches go on over images.
        """
        numbers = NUMBERS.get(x.device.type, NUMBERS["cuda"])
        rows = max(LEAST, min(MOST, numbers // max(1, x[:1].numel())))
        total = len(x) * self.noise.period
        whole = total if any_place else self.noise.period
        for start in range(0, total, max(1, whole)):
            for begin in range(start, start + whole, rows):
                yield torch.arange(begin, min(begin + rows, start + whole), device=x.device)

    def _check_rows(self, copies: Tensor, logits: Tensor) -> None:
        """That the first half of the rows does not depend on the second one."""
        half = (len(copies) + 1) // 2
        other = torch.cat([copies[:half], 1 - copies[half:]])
        if not torch.equal(self.model(other)[:half].nan_to_num(), logits[:half].nan_to_num()):
            raise ValueError(f"{type(self).__name__}: model must treat each row by itself, its logits depend on others")
