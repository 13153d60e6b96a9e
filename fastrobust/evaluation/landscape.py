"""Slices of the loss landscape: the loss and the prediction on a plane through each point."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastrobust import _checks, ops
from fastrobust.attacks._attack import check_call
from fastrobust.attacks._victim import Victim
from fastrobust.attacks.eot import seeded
from fastrobust.data.keys import key
from fastrobust.threat import Box

from . import directions as ways

__all__ = ["Landscape", "landscape"]

LOSSES = ("ce", "margin")


@dataclass(frozen=True)
class Landscape:
    """The planes x + a d1 + b d2 around a batch of points, clipped to the box.

    Attributes:
        axis: (r,) float64, the values of a and of b, in x's units; the middle one is 0.
        loss: (batch, r, r) the loss at [i, a, b].
        prediction: (batch, r, r) int64, the predicted class; -1 where a logit is NaN.
        first: (batch, ...) the directions d1.
        second: (batch, ...) the directions d2.
        kind: "ce" or "margin".
        norm: the norm of the directions.
    """

    axis: Tensor
    loss: Tensor
    prediction: Tensor
    first: Tensor
    second: Tensor
    kind: str
    norm: str


def landscape(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float,
    *,
    norm: str = "Linf",
    directions: str | tuple[Tensor, Tensor] = "gradient",
    resolution: int = 25,
    loss: str = "ce",
    index: Tensor | None = None,
    seed: int = 0,
    box: Box = (0.0, 1.0),
    batch_size: int = 250,
) -> Landscape:
    """The loss on the plane x + a d1 + b d2 for a and b in [-radius, radius].

    A smooth slope speaks for gradients that an attack can follow; terraces, noise and cliffs around a flat middle speak
    against (Athalye et al., ICML 2018). Points are clipped to the box, as an attack's are: outside of it a model
    promises nothing. Each sample is looked at by itself, in passes of `batch_size` points of its plane, so that its
    result depends neither on the others nor on how they are split. A random model draws from torch's generators seeded
    with (seed, sample id), which are put back.

    Args:
        model: maps (batch, ...) to logits (batch, classes); run in eval mode and left as it was.
        x: (batch, ...) points in the box, float32 or float64.
        y: (batch,) int64 labels.
        radius: how far a and b go, > 0, in x's units.
        norm: "Linf", "L2" or "L1": the directions have norm 1, so that a is a distance in it.
        directions: "gradient": d1 is the loss gradient at x (its signs for Linf), d2 a random vector of signs made
            orthogonal to it. A gradient that is zero, or not finite, makes d1 zero: the picture does not change along
            a. Or a pair of tensors (batch, ...), or of a sample's shape, taken as they are.
        resolution: r, points along an axis; odd, so that the middle one is x itself.
        loss: "ce", or "margin": max_{j != y} z_j - z_y, above 0 where the model errs.
        index: (batch,) int64 ids of the samples, which key the random direction; 0 .. batch - 1 if None.
        seed: key of the random draws.
        box: (lo, hi), numbers or tensors of a sample's shape.
        batch_size: points in a forward pass.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    name = "landscape"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: model must be a torch.nn.Module, got {type(model).__name__}")
    _checks.check_norm(name, norm)
    _checks.check_box(name, box)
    _checks.check_tensor(name, "x", x, _checks.ITERATES)
    check_call(name, x, y, index, box)
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"{name}: radius must be finite and > 0, got {radius!r}")
    if not isinstance(resolution, int) or resolution < 3 or resolution % 2 == 0:
        raise ValueError(f"{name}: resolution must be an odd integer >= 3, got {resolution!r}")
    if loss not in LOSSES:
        raise ValueError(f"{name}: loss must be 'ce' or 'margin', got {loss!r}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"{name}: batch_size must be an integer >= 1, got {batch_size!r}")
    given = _given(name, directions, x)
    axis = torch.linspace(-radius, radius, resolution, dtype=torch.float64, device=x.device)
    axis[resolution // 2] = 0.0
    victim = Victim(name, model, "eval", None)
    with torch.inference_mode(False):
        x, y = x.detach().clone(), y.clone()  # the caller's may be inference tensors
        ids = torch.arange(len(x), device=x.device) if index is None else index
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        values = torch.zeros(len(x), resolution**2, dtype=x.dtype, device=x.device)
        classes = torch.zeros(len(x), resolution**2, dtype=torch.int64, device=x.device)
        for row in (slice(number, number + 1) for number in range(len(x))):
            with seeded(key(seed, int(ids[row])), x.device), victim.borrowed(x.device):
                if given is None:
                    first[row] = ways.steepest(ways.gradient(victim, x[row], y[row], loss)[1], norm)
                    second[row] = ways.across(first[row], norm, seed, ids[row])
                else:
                    first[row], second[row] = given[0][row], given[1][row]
                done = 0
                for points in _plane(x[row], first[row], second[row], axis, batch_size):
                    with torch.no_grad():
                        logits = victim.logits(ways.clip(points, box), exact=True)
                    found = ops.logit_loss(logits, y[row].expand(len(points)).contiguous(), loss)
                    part = slice(done, done + len(points))
                    values[row, part], classes[row, part] = found.loss.to(x.dtype), found.prediction
                    done += len(points)
    planes = (-1, resolution, resolution)
    return Landscape(axis, values.view(planes), classes.view(planes), first, second, loss, norm)


def _plane(x: Tensor, first: Tensor, second: Tensor, axis: Tensor, size: int) -> Iterator[Tensor]:
    """The points x + a d1 + b d2 of one sample, b running faster, `size` at a time."""
    shape = (-1, *[1] * (x.dim() - 1))
    a, b = (grid.flatten().to(x.dtype).view(shape) for grid in torch.meshgrid(axis, axis, indexing="ij"))
    for start in range(0, len(a), size):
        yield x + a[start : start + size] * first + b[start : start + size] * second


def _given(name: str, directions: str | tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor] | None:
    """A pair of directions like x, or None where they are to be found."""
    if isinstance(directions, str):
        if directions != "gradient":
            raise ValueError(f"{name}: directions must be 'gradient' or a pair of tensors, got {directions!r}")
        return None
    if not (isinstance(directions, (tuple, list)) and len(directions) == 2):
        raise TypeError(f"{name}: directions must be 'gradient' or a pair of tensors, got {directions!r}")
    found = []
    for way in directions:
        _checks.check_tensor(name, "directions", way, _checks.FLOATS)
        if way.shape not in (x.shape, x.shape[1:]):
            shapes = f"{tuple(x.shape)} or {tuple(x.shape[1:])}"
            raise ValueError(f"{name}: directions must have shape {shapes}, got {tuple(way.shape)}")
        if not bool(torch.isfinite(way).all()):
            raise ValueError(f"{name}: directions must be finite, got NaN or infinite values")
        found.append(way.detach().to(x).expand_as(x))
    return found[0], found[1]
