"""Interval bound propagation for training: samples and boxes through a network in one pass, with gradients.

Nothing here allows for rounding: what a trained network's boxes prove is for `fastrobust.bounds.margins` to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastrobust import ops
from fastrobust.bounds.affine import Affine, Convolution, Linear
from fastrobust.bounds.captured import program_for
from fastrobust.bounds.elements import BatchNorm, Concat, Move, Sum
from fastrobust.bounds.interval import Interval
from fastrobust.bounds.layers import Layer
from fastrobust.bounds.nonlinear import Activation, MaxPool, Relu
from fastrobust.bounds.products import products
from fastrobust.bounds.program import Program
from fastrobust.bounds.propagated import IDENTITY, PLAIN, Act, Propagated, Wide, between

__all__ = ["Propagation", "propagation_for"]


class Propagation:
    """A model compiled for training with boxes: its graph is read once, its parameters are those of the moment.

    Args:
        example: (batch, ...) like the samples to come.

    Raises:
        as `fastrobust.bounds.ibp`.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.program: Program = program_for("Propagation", model, example)
        steps = self.program.steps
        readers = [[k for k, step in enumerate(steps) if value in step.inputs] for value in range(len(steps) + 1)]
        self.last_use = [max(found, default=len(steps)) for found in readers]
        last = steps[-1].layer
        flat = len(self.program.shape(steps[-1].inputs[0])) == 1
        self.head = last if isinstance(last, Linear) and flat else None
        # Batch norm and the activation behind it are one operation: of which step which activation.
        self.joined: dict[int, Act] = {}
        for k, step in enumerate(steps[:-1]):
            act = _act_of(steps[k + 1].layer)
            if isinstance(step.layer, BatchNorm) and act is not None and readers[k + 1] == [k + 1]:
                self.joined[k] = act

    def __call__(self, x: Tensor, lower: Tensor, upper: Tensor, keep: bool = False) -> Propagated:
        """Samples x (rows, ...), of which there may be none, and boxes between lower and upper (boxes, ...).

        Batch norm in training mode takes the statistics of the samples, of the boxes' centres where there are none,
        and moves the running ones once. Other parts run as in eval mode.

        Args:
            keep: keep all values.

        Raises:
            ValueError: for dropout in training mode.
        """
        norms: dict[int, _BatchNorm] = {}
        for name, module in self.program.network.model.named_modules():
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
                raise ValueError(f"Propagation: {name!r} drops elements at random, which boxes do not allow for")
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                norms[module.running_mean.data_ptr()] = module
        tensors = self.program.tensors()
        values = {0: Wide(torch.cat([x, lower / 2 + upper / 2]), (upper - lower) / 2)}
        ahead: Wide | None = None
        steps = self.program.steps if self.head is None else self.program.steps[:-1]
        for k, step in enumerate(steps):
            inputs = [values[i] for i in step.inputs]
            if isinstance(step.layer, BatchNorm):
                norm = norms.get(tensors[step.layer.mean].data_ptr())
                out = ahead = _normalise(step.layer, inputs[0], tensors, norm, self.joined.get(k, IDENTITY))
                if keep and k in self.joined:
                    out = _scaled(step.layer, inputs[0], tensors)
            elif k - 1 in self.joined and ahead is not None:
                out = ahead
            else:
                out = _forward(step.layer, inputs, tensors)
            values[k + 1] = out
            for i in () if keep else set(step.inputs):
                if self.last_use[i] == k:
                    del values[i]
        before = values[len(steps)].settled()
        kept = list(values.values()) if keep else ()
        if self.head is None:
            return Propagated(before.points[: len(x)], kept, self.program, tensors, before, None)
        bias = None if self.head.at_bias is None else tensors[self.head.at_bias]
        weight = tensors[self.head.weight]
        logits = F.linear(before.points[: len(x)], weight, bias)
        return Propagated(logits, kept, self.program, tensors, before, (weight, bias))


_known: WeakKeyDictionary[nn.Module, dict[Any, Propagation]] = WeakKeyDictionary()


def propagation_for(model: nn.Module, x: Tensor) -> Propagation:
    """The model's, compiled once for samples of a shape, dtype and device; its structure must not change."""
    key, known = (tuple(x.shape[1:]), x.dtype, x.device), _known.setdefault(model, {})
    if key not in known:
        known[key] = Propagation(model, x)
    return known[key]


# --- layers -----------------------------------------------------------------------------------------------------


def _act_of(layer: Layer) -> Act | None:
    """Name and parameters of an activation that `ops.interval_act` knows."""
    if isinstance(layer, Relu):
        return "relu", 0.0, 0.0
    return layer.function.op if isinstance(layer, Activation) else None


def _forward(layer: Layer, inputs: Sequence[Wide], tensors: Sequence[Tensor]) -> Wide:
    act = _act_of(layer)
    if act is not None:
        return inputs[0].through(act)
    plain = [value.settled() for value in inputs]
    x = plain[0]
    if isinstance(layer, (Linear, Convolution)):
        out = Wide(*products(layer, x.points, x.radius, tensors[layer.weight], x.remake, x.source))
        bias = None if layer.at_bias is None else tensors[layer.at_bias].to(out.points.dtype)
        if bias is not None and isinstance(layer, Linear) and out.points.dim() > 2:
            return Wide(out.points + bias, out.radius)
        return replace(out, shift=bias)
    if isinstance(layer, Move) and layer.order is None:
        return x.reshaped(layer.shape)
    if isinstance(layer, Sum):
        y = plain[1]
        return Wide(x.points + layer.alpha * y.points, x.radius + abs(layer.alpha) * y.radius)
    if isinstance(layer, Concat):
        points, radius = (torch.cat([getattr(v, part) for v in plain], layer.dim) for part in ("points", "radius"))
        return Wide(points, radius)
    if isinstance(layer, Affine):
        points, bias = layer.linear(x.points, tensors), layer.bias(tensors)
        points = points if bias is None else points + bias.to(points.dtype)
        return Wide(points, layer.linear(x.radius, tensors, absolute=True))
    rows = x.rows
    if isinstance(layer, MaxPool):
        lower, upper = x.ends()
        pooled = layer.pool(torch.cat([lower, upper[rows:]]))
        return between(pooled[: len(lower)], torch.cat([pooled[:rows], pooled[len(lower) :]]), rows)
    box = layer.interval([Interval(*value.ends()) for value in plain], tensors, PLAIN)
    return between(box.lower, box.upper, rows)


def _normalise(layer: BatchNorm, x: Wide, tensors: list[Tensor], norm: _BatchNorm | None, act: Act) -> Wide:
    """Batch norm, then an activation. In training mode the batch's statistics take the running ones' place."""
    if norm is None or not norm.training:
        pending = _scaled(layer, x, tensors)
        return pending if act[0] == "identity" else pending.through(act)
    # A shift goes out of the result and into the mean alone.
    raw = x.settled() if x.scale is not None else x
    weight, bias = (None if k is None else tensors[k] for k in (layer.weight, layer.at_bias))
    rows = raw.rows or len(raw.points)
    out = ops.interval_norm(raw.points, raw.radius, weight, bias, rows, layer.eps, *act)
    mean = out.mean if raw.shift is None else out.mean + raw.shift
    tensors[layer.mean], tensors[layer.var] = mean, out.var
    _move_statistics(norm, mean.detach(), out.var.detach(), rows * prod(raw.points.shape[2:]))
    source = (raw.points, raw.radius, weight, bias, out.mean.detach(), out.var.detach(), layer.eps, *act)
    return Wide(out.points, out.radius, remake=_renormalised, source=source)


def _scaled(layer: BatchNorm, x: Wide, tensors: Sequence[Tensor]) -> Wide:
    """Batch norm with the statistics in `tensors`, its scale and shift not applied yet."""
    scale, shift, _ = layer.factors(tensors)
    assert scale is not None
    assert shift is not None
    x = x.settled() if x.scale is not None else x
    scale, shift = scale.flatten().to(x.points.dtype), shift.flatten().to(x.points.dtype)
    return Wide(x.points, x.radius, scale, shift if x.shift is None else scale * x.shift + shift)


def _renormalised(
    points: Tensor, radius: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float,
    *act: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return ops.interval_act(points, radius, scale, shift, *act)


@torch.no_grad()
def _move_statistics(norm: _BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
    """As a batch-norm layer does in a training step: unbiased variance, its momentum."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    factor = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if factor is None:
            factor = 1.0 / float(norm.num_batches_tracked)
    assert factor is not None
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), factor)
    norm.running_var.lerp_((var * (count / max(1, count - 1))).to(norm.running_var.dtype), factor)
