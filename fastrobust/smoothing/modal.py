"""Inputs of several modalities, of whose elements some are changed: certificates by random subsets of the elements.

Wang et al., "MMCert: Provable defense against adversarial attacks to multi-modal models", CVPR 2024; proofs in
docs/smoothing/exact.md.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrobust import _checks
from fastrobust.network.capture import in_eval
from fastrobust.ops.noise import check_range
from fastrobust.smoothing import statistics
from fastrobust.smoothing.sampling import check_alone, count_votes
from fastrobust.smoothing.words import words64

__all__ = ["ATTACKS", "ModalCertificate", "ModalSmooth", "Modality"]

ATTACKS = ("modify", "add", "delete")
STREAM = 6  # of Philox
ROWS, NUMBERS = 1000, 2**22  # copies, and numbers in them, at a time
TINY = 2**30  # subsets in all, up to which probabilities are rounded to multiples of one subset's
MARGIN = 2.0**-40  # absolute and relative, for errors of floating point

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Modality:
    """What a random subset of one modality's elements is, and how the network sees it.

    Attributes:
        keep: how many elements a copy has.
        dims: dimensions of the batch, increasing, that number its elements: (1,) for frames (batch, frames, ...),
            (2, 3) for pixels (batch, channels, height, width).
        form: "blank": a tensor of the same shape whose other elements hold `fill`. "gather": the kept elements alone,
            (batch, keep, ...), in their order. Only what is gathered can be certified where elements are added or
            deleted: in a blanked tensor those behind it move.
        fill: the value of blank elements.
    """

    keep: int
    dims: tuple[int, ...] = (1,)
    form: str = "blank"
    fill: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.keep, int) or self.keep < 1:
            raise ValueError(f"Modality: keep must be an integer >= 1, got {self.keep!r}")
        if not self.dims or list(self.dims) != sorted(set(self.dims)) or self.dims[0] < 1:
            raise ValueError(f"Modality: dims must be increasing dimensions >= 1, got {self.dims!r}")
        if self.form not in ("blank", "gather"):
            raise ValueError(f"Modality: form must be 'blank' or 'gather', got {self.form!r}")

    def elements(self, x: Tensor) -> int:
        """How many elements a sample of x has."""
        return math.prod(x.shape[d] for d in self.dims)

    def subsets(self, x: Tensor, kept: Tensor) -> Tensor:
        """What the network sees of x (slots, ...), where kept (slots, keep) are the numbers of the kept elements."""
        if self.form == "gather":
            rows = x.movedim(self.dims, tuple(range(1, 1 + len(self.dims)))).flatten(1, len(self.dims))
            return rows[torch.arange(len(x), device=x.device)[:, None], kept.sort(1).values]
        mask = torch.zeros(len(x), self.elements(x), dtype=torch.bool, device=x.device).scatter_(1, kept, True)
        shape = [size if d == 0 or d in self.dims else 1 for d, size in enumerate(x.shape)]
        return x.masked_fill(~mask.view(shape), self.fill)


def missing(elements: int, keep: int, most: int) -> Floats:
    """C(elements - r, keep) / C(elements, keep) for r = 0 .. most: the chance that a subset has none of r elements.

    A product of r quotients, (elements - keep - j) / (elements - j): each of the 2 r roundings has a relative error of
    at most 2^-53.
    """
    j = np.arange(most)
    return np.cumprod(np.concatenate([[1.0], np.maximum(elements - keep - j, 0) / (elements - j)]))


def gaps(elements: Sequence[int], keep: Sequence[int], most: Sequence[int], attack: Sequence[str]) -> Floats:
    """What p_A - p_B must exceed, 1 + N' / N - 2 E / N rounded up, for attacks on at most (r_1, r_2, ...) elements.

    N subsets before the attack, N' after it, E in both; infinite where there is none after it. An attack that adds to
    one modality and deletes from another can ask for less than a smaller one: the largest of all smaller ones counts.

    Returns:
        (most_1 + 1, most_2 + 1, ...).
    """
    after, both = np.ones(()), np.ones(())
    for n, k, r, kind in zip(elements, keep, most, attack, strict=True):
        each = np.arange(r + 1)
        error = (each + 1) * 2.0**-51
        if kind == "add":
            larger = 1 / np.cumprod(np.concatenate([[1.0], (n + each[1:] - k) / (n + each[1:])]))
            up, down = larger * (1 + error), np.ones(r + 1)
        else:
            less = missing(n, k, r)
            down = np.where(less < 1e-290, 0.0, less * (1 - error))
            up = np.ones(r + 1) if kind == "modify" else less * (1 + error) + 1e-290
            up = np.where((n - each < k) & (kind == "delete"), np.inf, up)
        after, both = np.multiply.outer(after, up), np.multiply.outer(both, down)
    needed = np.asarray((1 + after - 2 * both) * (1 + MARGIN) + MARGIN)
    for axis in range(needed.ndim):
        needed = np.maximum.accumulate(needed, axis)
    return needed


@dataclass(frozen=True)
class ModalCertificate:
    """Of the smoothed classifier g, never of f: that anything said of a sample is wrong has a probability <= alpha.

    Attributes:
        prediction: (batch,) int64: g's class; -1 where that is not certain.
        lower: (batch,) float64: a lower bound of its probability.
        upper: (batch,) float64: an upper bound of every other class's.
        elements, keep: how many elements the modalities have, and how many of them a copy.
        gathered: whether the network sees kept elements alone, for each modality.
        samples: copies a sample, those that chose the class included.
        seed: key of the subsets.
        fresh: whether the seed was drawn for this call.
    """

    prediction: Tensor
    lower: Tensor
    upper: Tensor
    elements: tuple[int, ...]
    keep: tuple[int, ...]
    gathered: tuple[bool, ...]
    samples: int
    seed: int
    fresh: bool

    def region(self, most: Sequence[int], attack: str | Sequence[str] = "modify") -> Tensor:
        """For which (r_1, r_2, ...) g says the same whatever at most r_i elements of each modality are attacked.

        Args:
            most: largest r_i of each modality.
            attack: "modify", "add" or "delete", for all modalities or for each.

        Returns:
            (batch, most_1 + 1, most_2 + 1, ...) bool.
        """
        kinds = [attack] * len(self.elements) if isinstance(attack, str) else list(attack)
        if len(kinds) != len(self.elements) or not set(kinds) <= set(ATTACKS):
            raise ValueError(f"region: attack must be {', '.join(ATTACKS)}, or one a modality, got {attack!r}")
        for kind, gathered in zip(kinds, self.gathered, strict=True):
            if kind != "modify" and not gathered:
                raise ValueError(f"region: attack {kind!r} needs modalities of form 'gather', got 'blank'")
        wanted = list(most)
        if len(wanted) != len(kinds) or not all(isinstance(r, Integral) and r >= 0 for r in wanted):
            raise ValueError(f"region: most must be an integer >= 0 for each of {len(kinds)} modalities, got {most!r}")
        for r, n, kind in zip(wanted, self.elements, kinds, strict=True):
            if r > n and kind != "add":
                raise ValueError(f"region: most must be at most the modality's {n} elements, got {r}")
        needed = torch.from_numpy(gaps(self.elements, self.keep, wanted, kinds)).to(self.lower.device)
        each = (-1, *[1] * needed.dim())
        return ((self.lower - self.upper).view(each) > needed) & (self.prediction >= 0).view(each)

    def holds(self, r: Sequence[int], attack: str | Sequence[str] = "modify") -> Tensor:
        """Whether g says the same whatever at most r_i elements of each modality are attacked: (batch,) bool."""
        return self.region(r, attack).flatten(1)[:, -1]


class ModalSmooth:
    """g(x_1, x_2, ...) = the class that f most probably says of random subsets of every modality's elements.

    Args:
        model: f, from a tensor for each modality to logits (batch, classes); run in eval mode and left as it is.
        num_classes: how many logits there are.
        modalities: one for each input.
        seed: key of the subsets, 0 .. 2^64 - 1. None: drawn afresh from the system at each call, and recorded.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, modalities: Sequence[Modality], *, seed: int | None = None
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"ModalSmooth: model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"ModalSmooth: num_classes must be an integer >= 1, got {num_classes!r}")
        self.modalities = tuple(modalities)
        if not self.modalities or not all(isinstance(m, Modality) for m in self.modalities):
            raise TypeError(f"ModalSmooth: modalities must be a Modality for each input, got {modalities!r}")
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**64):
            raise ValueError(f"ModalSmooth: seed must be None or in 0 .. 2^64 - 1, got {seed!r}")
        self.model, self.num_classes, self.seed = model, num_classes, seed

    def certify(
        self, inputs: Sequence[Tensor], n0: int = 100, n: int = 10_000, alpha: float = 0.001,
        index: Tensor | None = None,
    ) -> ModalCertificate:  # fmt: skip
        """n0 copies choose the class, n others bound its probability and those of all others, alpha / 2 for each side.

        Args:
            inputs: a tensor (batch, ...) for each modality, float32, float64 or int64 (tokens).
            index: (batch,) int64 ids that key the subsets; 0 .. batch - 1 if None.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"ModalSmooth: alpha must be between 0 and 1, got {alpha!r}")
        for name, count in (("n0", n0), ("n", n)):
            if not isinstance(count, Integral) or count < 1:
                raise ValueError(f"ModalSmooth: {name} must be an integer >= 1, got {count!r}")
        self._check(inputs)
        elements = [m.elements(x) for m, x in zip(self.modalities, inputs, strict=True)]
        keep = [m.keep for m in self.modalities]
        least, most = bounds(np.array([n]), np.array([0]), n, alpha, elements, keep)
        if not least > most:
            raise ValueError(f"ModalSmooth: n = {n} samples cannot certify anything at alpha = {alpha}; use more")
        key = secrets.randbits(64) if self.seed is None else self.seed
        chosen = self.votes(inputs, n0, key, index).argmax(1)[:, None]
        votes = self.votes(inputs, n, key, index, first=n0)
        won, second = votes.gather(1, chosen)[:, 0], votes.scatter(1, chosen, 0).amax(1)
        lower, upper = bounds(won.cpu().numpy(), second.cpu().numpy(), n, alpha, elements, keep)
        device = votes.device
        return ModalCertificate(
            torch.where(torch.from_numpy(lower > upper).to(device), chosen[:, 0], -1),
            torch.from_numpy(lower).to(device), torch.from_numpy(upper).to(device),
            tuple(elements), tuple(keep), tuple(m.form == "gather" for m in self.modalities),
            n0 + n, key, self.seed is None,
        )  # fmt: skip

    def votes(
        self, inputs: Sequence[Tensor], samples: int, seed: int, index: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """How often f says each class on copies first .. first + samples - 1 of each input: (batch, classes) int64.

        A copy whose logits hold a NaN has no vote. A copy depends on the seed, the sample's index and its number alone.
        """
        batch = self._check(inputs)
        device = inputs[0].device
        index = torch.arange(batch, device=device) if index is None else index
        _checks.check_labels("ModalSmooth", "index", index, inputs[0])
        check_range("ModalSmooth", "index", index, 2**32)
        if first + samples > 2**32:
            raise ValueError(f"ModalSmooth: copies must be numbered in 0 .. 2^32 - 1, got {first + samples - 1}")
        counts = torch.zeros(batch, self.num_classes, dtype=torch.int64, device=device)
        rows = max(1, min(ROWS, NUMBERS // max(1, sum(x[:1].numel() for x in inputs))))
        with in_eval(self.model), torch.no_grad():
            for begin in range(0, batch * samples, rows):
                slots = torch.arange(begin, min(begin + rows, batch * samples), device=device)
                image, copy = torch.div(slots, samples, rounding_mode="floor"), first + slots % samples
                copies = self.copies(inputs, image, copy, index, seed)
                logits: Any = self.model(*copies)
                if logits.dim() != 2 or logits.shape[1] != self.num_classes:
                    found = logits.shape[1] if logits.dim() == 2 else f"of shape {tuple(logits.shape)}"
                    raise ValueError(f"ModalSmooth: num_classes must be the model's, {found}, got {self.num_classes}")
                if not begin:
                    two = (torch.cat([part[:1], part[-1:]]) for part in copies)
                    check_alone("ModalSmooth", self.model(*two)[0], logits[0])
                count_votes(logits, image, counts)
        return counts

    def copies(
        self, inputs: Sequence[Tensor], image: Tensor, copy: Tensor, index: Tensor, seed: int
    ) -> tuple[Tensor, ...]:
        """What the network sees: slot s of each is a subset of sample image[s], its copy number copy[s].

        Every element has a random word of 64 bits; those with the least ones are kept. Also the noise to train with.
        """
        elements = [m.elements(x) for m, x in zip(self.modalities, inputs, strict=True)]
        parts = words64(seed, sum(elements), copy, index[image], STREAM).split(elements, 1)
        return tuple(
            m.subsets(x[image], part.topk(m.keep, 1, largest=False, sorted=False).indices)
            for m, x, part in zip(self.modalities, inputs, parts, strict=True)
        )

    def _check(self, inputs: Sequence[Tensor]) -> int:
        where = "ModalSmooth"
        if isinstance(inputs, Tensor) or len(inputs) != len(self.modalities):
            got = "one tensor" if isinstance(inputs, Tensor) else len(inputs)
            raise ValueError(f"{where}: inputs must be a list of {len(self.modalities)} tensors, got {got}")
        for x, modality in zip(inputs, self.modalities, strict=True):
            _checks.check_tensor(where, "inputs", x, (*_checks.ITERATES, torch.int64))
            if x.dim() <= modality.dims[-1]:
                raise ValueError(f"{where}: dims {modality.dims} must be those of inputs, got shape {tuple(x.shape)}")
            if len(x) != len(inputs[0]) or x.device != inputs[0].device:
                raise ValueError(f"{where}: inputs must have one batch size and device")
            if not _checks.is_finite(x):
                raise ValueError(f"{where}: inputs must be finite")
            if modality.keep > modality.elements(x):
                raise ValueError(
                    f"{where}: keep must be at most the modality's {modality.elements(x)} elements, got {modality.keep}"
                )
        return len(inputs[0])


def bounds(
    won: NDArray[np.int64], second: NDArray[np.int64], n: int, alpha: float, elements: Sequence[int],
    keep: Sequence[int],
) -> tuple[Floats, Floats]:  # fmt: skip
    """A lower bound of the class's probability and an upper one of all others', wrong with probability <= alpha.

    Args:
        won, second: votes of the class, and of that with the most votes among the others.
    """
    # Subsets are uniform but for equal words, with a probability of 2^-64 for each pair.
    slack = sum(e * e for e in elements) * 2.0**-65
    lower = np.maximum(statistics.lower_bound(won, n, alpha / 2) - slack, 0.0)
    upper = np.minimum(1 - statistics.lower_bound(n - second, n, alpha / 2) + slack, np.nextafter(1 - lower, 2))
    if max(elements) < 64:  # a probability is a whole number of subsets
        total = math.prod(math.comb(e, k) for e, k in zip(elements, keep, strict=True))
        if total <= TINY:
            lower = np.ceil(lower * total * (1 - 2.0**-50)) / total
            upper = np.floor(upper * total * (1 + 2.0**-50)) / total
    return lower, upper
