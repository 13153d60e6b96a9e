"""Layers as bounds see them: what they make of boxes, and of linear functions of their results.

`tensors` are what the layers' numbers point to: what the model's parameters are now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrobust.bounds.guarantee import Guarantee
from fastrobust.bounds.interval import Interval

__all__ = ["Boxes", "Layer", "Lines", "Sums", "Tensors", "Window", "cropped", "dot", "dot_size", "of_rows", "read_by",
           "sum_error", "total"]  # fmt: skip

Tensors = Sequence[Tensor]
Boxes = Sequence[Interval]
Window = tuple[slice, ...]  # of the dimensions behind the channels


@dataclass
class Sums:
    """The constant part of linear functions (batch, rows) of a network's input, and the error that it may have.

    Both are float64. The function is at least <weight, x> + value - error.
    """

    value: Tensor
    error: Tensor
    g: Guarantee

    def add(self, value: Tensor) -> None:
        """Add to the value. A sum of at most 2^10 terms has an error of at most 2^-43 of their sizes."""
        self.value = self.value + value
        if self.g.sound:
            self.error = self.error + 2.0**-43 * value.abs()

    def allow(self, error: Tensor | float) -> None:
        """Add to the error."""
        self.error = self.error + error


class Layer:
    """One operation; `interval` and `back` are its rules."""

    def interval(self, inputs: Boxes, tensors: Tensors, g: Guarantee) -> Interval:
        """The values that the layer can take, its inputs being independent within theirs."""
        raise NotImplementedError

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        """A lower bound of <weight, y> over the layer's result y, linear in its inputs.

        Args:
            weight: (batch, rows, ...).
            lines: of layers that are not affine, what `relax` gave.
            sums: takes the bound's constant part, and the errors made; its guarantee is the bound's.

        Returns:
            a weight for each input.
        """
        raise NotImplementedError

    def relax(self, inputs: Boxes, output: Interval, tensors: Tensors, g: Guarantee) -> Lines | None:
        """Linear functions of the inputs below and above the layer; None for an affine one."""
        return None

    def window(self, out: Window) -> tuple[Layer, Window] | None:
        """The layer that makes a window of the result, and what it reads of each input; None if that is not known."""
        return None


@dataclass
class Lines:
    """For each element: slope * x + intercept below and above the layer's result.

    Attributes:
        source: which element of the input x is, of each channel; None: the one at the same place.
        shares: of max pools, for a lower line that is a mean of a window's elements with these weights, (batch, rows,
            channels, elements of a window, windows).
        error, floor: of `fused` lines: what is to be allowed for each element's weight (batch, ...), a share of its
            magnitude, and for each function (batch, 1), float64.
    """

    low_slope: Tensor
    low: Tensor
    high_slope: Tensor
    high: Tensor
    source: Tensor | None = None
    shares: Tensor | None = None
    error: Tensor | None = None
    floor: Tensor | None = None

    def window(self, window: Window) -> Lines:
        """Of a window, where elements are those at the same place."""
        low_slope, low, high_slope, high = (
            cropped(end, window) for end in (self.low_slope, self.low, self.high_slope, self.high)
        )
        error = None if self.error is None else cropped(self.error, window)
        return Lines(low_slope, low, high_slope, high, error=error, floor=self.floor)


def cropped(value: Tensor, window: Window) -> Tensor:
    """A window of the last dimensions, but of those of size 1, which may stand for all."""
    sizes = value.shape[value.dim() - len(window) :]
    for dim, (n, part) in enumerate(zip(sizes, window, strict=True), -len(window)):
        value = value if n == 1 else value.narrow(dim, part.start, part.stop - part.start)
    return value


def read_by(
    out: Window, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], before: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Window, list[tuple[int, int]]] | None:  # fmt: skip
    """What a sliding kernel reads for a window of its results, and how many rows of padding before and after it.

    None where it reads nothing but padding.

    Args:
        size: of the input.
        before: rows of padding before the whole input.
    """
    window, pads = [], []
    for o, n, k, s, p, d in zip(out, size, kernel, stride, before, dilation, strict=True):
        first, last = o.start * s - p, (o.stop - 1) * s - p + d * (k - 1) + 1
        start, stop = max(0, first), min(n, last)
        if start >= stop:
            return None
        window.append(slice(start, stop))
        pads.append((start - first, last - stop))
    return tuple(window), pads


def sum_error(weight: Tensor) -> float:
    """Relative error of a float64 sum over the elements of a row of `weight` (batch, rows, ...), in any order."""
    return (weight.shape[2:].numel() + 4) * 2.0**-52


def total(weight: Tensor) -> Tensor:
    """The sum of the magnitudes of each row of `weight` (batch, rows, ...), float64, rounded generously up."""
    return weight.abs().flatten(2).sum(2, dtype=torch.float64) * (1 + sum_error(weight))


def dot(weight: Tensor, value: Tensor) -> Tensor:
    """<weight (batch, rows, ...), value>, summed in float64; its products are rounded before.

    Args:
        value: (1 or batch, ...), or (batch, 1 or rows, ...).
    """
    return (weight * of_rows(value, weight)).flatten(2).sum(2, dtype=torch.float64)


def of_rows(value: Tensor, weight: Tensor) -> Tensor:
    """(batch, 1 or rows, ...), like weight (batch, rows, ...); of a value (1 or batch, ...) alike for all rows."""
    return value if value.dim() == weight.dim() else value[:, None]


def dot_size(weight: Tensor, size: Tensor, g: Guarantee) -> Tensor:
    """At least <|weight|, size>, float64; size >= 0, of the shapes of a value of `dot`."""
    rows = weight.abs().flatten(2)
    if size.dim() == weight.dim():
        total = (rows * size.flatten(2)).sum(2).double()
    else:
        total = torch.matmul(rows, size.flatten(1)[:, :, None])[..., 0].double()
    return total * (1 + 2 * g.own_error(rows.shape[2] + 1)) + g.underflow(rows.shape[2])
