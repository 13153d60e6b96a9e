"""Adversarial patch (Brown et al., 2017): one patch that fools wherever, however large and however turned it lies."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fastrobust import _checks
from fastrobust.attacks._attack import SLOTS, check_call
from fastrobust.attacks._objective import LOSSES, Objective
from fastrobust.attacks._points import Points
from fastrobust.attacks._victim import Model, Victim
from fastrobust.ops import _geometry as geometry
from fastrobust.ops._rounding import philox, uniform
from fastrobust.threat import Box

__all__ = ["AdversarialPatch"]

PLACES, ORDER = 40, 41  # Philox streams


class AdversarialPatch:
    """One universal patch, found by gradient steps over images with random places, scales and rotations.

    ``patch = AdversarialPatch(net, 12, target=3).fit(x, y)`` raises E[log p(target | A(patch, x, place, turn, scale))]
    with Adam; without a target it raises the loss of the labels. Placements are Philox numbers with key `seed` and
    counter (sample id, draw): an image gets the same one in any batch.

    Args:
        model: maps images (batch, channels, height, width) to logits (batch, classes); left as it was.
        size: (height, width) of the patch in pixels, or one number for both.
        target: class to be predicted; None: any but the label.
        steps: steps of `fit`, each on `batch_size` images.
        lr: Adam's step length, as a share of the box's width.
        scale: (least, most) factors of the size at which it is placed.
        rotation: largest turn to either side, in degrees.
        batch_size: images a step.
        loss: "ce", "margin", "dlr" or a callable (logits, y) -> (batch,).
        box: (lo, hi), numbers or tensors of a sample's shape; the patch is kept in it.
        eot: draws of a random model over which a gradient is averaged; places are drawn anyway.
        compile: "auto", True or False, as in `PGD`.
        seed: key of placements and of the order of images, 0 .. 2^64 - 1.
        progress: show a progress bar.

    Attributes:
        patch: (channels, *size), the patch; None before `fit`. May be set.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        model: Model,
        size: int | tuple[int, int],
        target: int | None = None,
        *,
        steps: int = 500,
        lr: float = 0.05,
        scale: tuple[float, float] = (0.8, 1.2),
        rotation: float = 22.5,
        batch_size: int = 16,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "ce",
        box: Box = (0.0, 1.0),
        eot: int = 1,
        compile: str | bool = "auto",
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        pair = (size, size) if isinstance(size, int) else size
        if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
            raise ValueError(f"AdversarialPatch: size must be one or two integers >= 1, got {size!r}")
        if target is not None and (not isinstance(target, int) or target < 0):
            raise ValueError(f"AdversarialPatch: target must be None or an integer >= 0, got {target!r}")
        for key, count in (("steps", steps), ("batch_size", batch_size), ("eot", eot)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"AdversarialPatch: {key} must be an integer >= 1, got {count!r}")
        for key, number in (("lr", lr), ("rotation", rotation)):
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"AdversarialPatch: {key} must be finite and >= 0, got {number!r}")
        if not (len(scale) == 2 and 0 < scale[0] <= scale[1] < math.inf):
            raise ValueError(f"AdversarialPatch: scale must be (least, most) with 0 < least <= most, got {scale!r}")
        if not callable(loss) and loss not in set(LOSSES) - {"kl"}:
            raise ValueError(f"AdversarialPatch: loss must be 'ce', 'margin', 'dlr' or a callable, got {loss!r}")
        if compile not in ("auto", True, False):
            raise ValueError(f"AdversarialPatch: compile must be 'auto', True or False, got {compile!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"AdversarialPatch: seed must be in 0 .. 2^64 - 1, got {seed!r}")
        _checks.check_box("AdversarialPatch", box)
        self.model, self.size, self.target, self.steps, self.lr = model, pair, target, steps, lr
        self.scale, self.rotation, self.batch_size, self.box = scale, rotation, batch_size, box
        self.compile, self.seed, self.progress = compile, seed, progress
        self.patch: Tensor | None = None
        self._victim = Victim("AdversarialPatch", model, "eval", None)
        self._objective = Objective("AdversarialPatch", self._victim, loss, target is not None, eot)

    def fit(self, x: Tensor, y: Tensor) -> Tensor:
        """Find the patch, from the middle of the box, on images (batch, channels, height, width) with labels (batch,).

        Returns:
            (channels, *size), in x's dtype (float32 for 16-bit images); `self.patch` too.
        """
        ids = self._check(x, y, None)
        if len(x) == 0:
            raise ValueError("AdversarialPatch: x must hold an image at least, got none")
        with self._victim.borrowed(x.device):
            x = x.detach().clone()
            low, high = self._ends(x)
            # Of a box by pixels, what allows all of a channel's.
            low = low.expand(x.shape[1:]).flatten(1).amin(1)[:, None, None]
            high = high.expand(x.shape[1:]).flatten(1).amax(1)[:, None, None]
            patch = ((low + high) / 2).expand(x.shape[1], *self.size).contiguous().requires_grad_()
            steps = torch.optim.Adam([patch], self.lr * float((high - low).max()))
            self._victim.compile(x, self.compile, -(-self.steps * self.batch_size // len(x)))
            labels = self._labels(y)
            self._objective.check_classes(self._victim.logits(x[:1]).shape[1], labels)
            for step in tqdm(range(self.steps), "patch", disable=not self.progress):
                at = self._batch(ids, step)
                placed = self._place(x[at], patch, torch.arange(len(at), device=x.device), self.seed, step + 1)
                _, _, slope = self._objective.gradient(placed.detach(), Points(x[at], labels[at], at, 0.0, 0.0))
                (descent,) = torch.autograd.grad(placed, patch, -slope / len(at))
                patch.grad = descent.nan_to_num(0.0, 0.0, 0.0)
                steps.step()
                with torch.no_grad():
                    patch.copy_(torch.minimum(torch.maximum(patch, low), high))
        self.patch = patch.detach()
        return self.patch

    def apply(self, x: Tensor, seed: int | None = None, index: Tensor | None = None, draw: int = 0) -> Tensor:
        """Images (batch, channels, height, width) with the patch on them, differentiable in them and in `self.patch`.

        Args:
            seed: key of the placements; `self.seed` if None, which `fit` used with draws 1 .. steps.
            index: (batch,) int64 sample ids; 0 .. batch - 1 if None.
            draw: which placement of each sample.
        """
        if self.patch is None:
            raise ValueError("AdversarialPatch: patch must be set before it is applied: call fit first")
        index = self._check(x, None, index)
        if self.patch.shape[0] != x.shape[1]:
            raise ValueError(f"AdversarialPatch: x must have {self.patch.shape[0]} channels, got {x.shape[1]}")
        return self._place(x, self.patch, index, self.seed if seed is None else seed, draw)

    def success(
        self, x: Tensor, y: Tensor, seed: int | None = None, index: Tensor | None = None, draw: int = 0
    ) -> Tensor:
        """Whether the model says the target, or something else than y, with the patch at one place: (batch,) bool.

        An image whose label is the target is no success. Arguments as those of `apply`.
        """
        index, labels = self._check(x, y, index), self._labels(y)
        fooled = torch.zeros_like(y, dtype=torch.bool)
        if len(x) == 0:
            return fooled
        with self._victim.borrowed(x.device), torch.no_grad():
            for at in torch.arange(len(x), device=x.device).split(SLOTS.get(x.device.type, SLOTS["cuda"])):
                placed = self.apply(x[at].detach(), seed, index[at], draw)
                work = Points(placed, labels[at], index[at], 0.0, 0.0)
                fooled[at] = self._objective.verdict(placed, work)[1]
        return fooled if self.target is None else fooled & (y != self.target)

    def _labels(self, y: Tensor) -> Tensor:
        return y if self.target is None else torch.full_like(y, self.target)

    # --- placement ---

    def _place(self, x: Tensor, patch: Tensor, index: Tensor, seed: int, draw: int) -> Tensor:
        """The patch on each image, sampled bilinearly where it lies."""
        (height, width), (tall, wide) = x.shape[2:], self.size
        words = philox(seed, torch.zeros_like(index), draw, index, PLACES)
        down, right, turned, sized = (uniform(word) for word in words)
        turn = (2 * turned - 1) * math.radians(self.rotation)
        size = self.scale[0] + (self.scale[1] - self.scale[0]) * sized
        cos, sin = turn.cos(), turn.sin()
        # Anywhere in the image, as a whole; in the middle where it is too large for that.
        centre_y = _between(size * (tall * cos.abs() + wide * sin.abs()) / 2, height, down)
        centre_x = _between(size * (wide * cos.abs() + tall * sin.abs()) / 2, width, right)
        rows = torch.arange(height, device=x.device, dtype=torch.float64)[None, :, None] + 0.5 - _column(centre_y)
        columns = torch.arange(width, device=x.device, dtype=torch.float64)[None, None, :] + 0.5 - _column(centre_x)
        cos, sin, size = _column(cos), _column(sin), _column(size)
        grid = torch.stack(
            [2 * (cos * columns + sin * rows) / (size * wide), 2 * (cos * rows - sin * columns) / (size * tall)], -1
        )
        covers = (grid.abs() <= 1).all(-1)[:, None]
        shown = F.grid_sample(
            patch.expand(len(x), *patch.shape), grid.to(patch.dtype), padding_mode="border", align_corners=False
        )
        low, high = self._ends(x)
        return torch.where(covers, torch.minimum(torch.maximum(shown, low), high).to(x.dtype), x)

    def _batch(self, ids: Tensor, step: int) -> Tensor:
        """The images of a step: passes over all of them, each in an order of its own."""
        count = len(ids)
        first = step * self.batch_size
        passes = range(first // count, (first + self.batch_size - 1) // count + 1)
        zero = torch.zeros_like(ids)
        orders = [philox(self.seed, zero, number, ids, ORDER)[0].argsort(stable=True) for number in passes]
        begin = first - passes[0] * count
        return torch.cat(orders)[begin : begin + self.batch_size]

    def _ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The box, rounded inwards to the dtype of x, at least float32."""
        like = x if x.dtype in _checks.ITERATES else x.float()
        return geometry.ends(like, *_checks.box_ends("AdversarialPatch", self.box, like))

    def _check(self, x: Tensor, y: Tensor | None, index: Tensor | None) -> Tensor:
        """Of arguments; returns the sample ids."""
        if y is None:
            _checks.check_points("AdversarialPatch", x, self.box, _checks.FLOATS)
            y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        check_call("AdversarialPatch", x, y, index, self.box)
        if x.dim() != 4:
            raise ValueError(
                f"AdversarialPatch: x must have shape (batch, channels, height, width), got {tuple(x.shape)}"
            )
        return torch.arange(len(x), device=x.device) if index is None else index


def _between(half: Tensor, length: int, share: Tensor) -> Tensor:
    """Where the middle of something of this half length lies, for it to lie within 0 .. length."""
    room = (length - 2 * half).clamp_min(0)
    return length / 2 + (share - 0.5) * room


def _column(values: Tensor) -> Tensor:
    return values[:, None, None]
