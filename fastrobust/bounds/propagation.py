"""Interval bound propagation for training: samples and boxes through a network in one pass, with gradients.

Nothing here allows for rounding: what a trained network's boxes prove is for `fastrobust.bounds.margins` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fastrobust import ops
from fastrobust.bounds.affine import Affine, Convolution, Linear
from fastrobust.bounds.captured import program_for
from fastrobust.bounds.elements import BatchNorm, Concat, Move, Sum
from fastrobust.bounds.fused import chain, fused_activation, fused_target
from fastrobust.bounds.guarantee import Guarantee
from fastrobust.bounds.interval import Interval, Region
from fastrobust.bounds.layers import Boxes, Layer, Lines, Sums, Tensors
from fastrobust.bounds.nonlinear import Activation, Elementwise, MaxPool, Product, Relu
from fastrobust.bounds.products import products
from fastrobust.bounds.program import AFFINE, Program, Step, below

__all__ = ["Propagated", "Propagation", "Wide", "propagation_for"]

PLAIN = Guarantee("none")
Act = tuple[str, float, float]
IDENTITY: Act = ("identity", 0.0, 0.0)
Remake = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Wide:
    """A value of the network for samples and boxes: scale * (points, radius) + shift, where these are given.

    Attributes:
        points: (rows + boxes, ...); the last ones are the boxes' centres.
        radius: (boxes, ...).
        scale, shift: (channels,), not applied yet: what comes next does it in passing.
        remake, source: `remake(*source)` gives points and radius again, so that no backward pass needs to keep them.
    """

    points: Tensor
    radius: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    remake: Remake | None = None
    source: tuple[Any, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.points) - len(self.radius)

    def settled(self) -> Wide:
        """With scale and shift applied."""
        return self if self.scale is None and self.shift is None else self.through(IDENTITY)

    def through(self, act: Act) -> Wide:
        """With an activation applied, too."""
        source = (self.points, self.radius, self.scale, self.shift, *act)
        return Wide(*ops.interval_act(*source), remake=ops.interval_act, source=source)

    def reshaped(self, shape: tuple[int, ...]) -> Wide:
        """Elements as they are, in another shape of a sample."""
        points, radius = _reshaped((self.points, self.radius), shape)
        if self.remake is None:
            return Wide(points, radius)
        remake = partial(_remade, self.remake, shape)
        return Wide(points, radius, remake=remake, source=self.source)

    def ends(self) -> tuple[Tensor, Tensor]:
        """(rows + boxes, ...) lower and upper ends, those of a sample equal; nothing may be left to apply."""
        rows, boxes = self.points[: self.rows], self.points[self.rows :]
        return torch.cat([rows, boxes - self.radius]), torch.cat([rows, boxes + self.radius])

    def box(self) -> Interval:
        """Of the boxes alone, with scale and shift applied."""
        value = self.settled()
        centre = value.points[self.rows :]
        return Interval(centre - value.radius, centre + value.radius)


def _reshaped(parts: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return parts[0].reshape(-1, *shape), parts[1].reshape(-1, *shape)


def _remade(remake: Remake, shape: tuple[int, ...], *source: Any) -> tuple[Tensor, Tensor]:
    return _reshaped(remake(*source), shape)


def _between(lower: Tensor, upper: Tensor, rows: int) -> Wide:
    """Of ends (rows + boxes, ...), for samples and boxes."""
    boxes = lower[rows:] / 2 + upper[rows:] / 2
    return Wide(torch.cat([lower[:rows], boxes]), (upper[rows:] - lower[rows:]) / 2)


@dataclass(frozen=True)
class Propagated:
    """What a network makes of samples and boxes.

    Attributes:
        logits: (rows, classes) of the samples.
        values: the program's values, for what needs more than the outputs; () unless asked for.
        program: the network's layers.
        tensors: what their numbers point to, with the batch's statistics in the place of running ones.
    """

    logits: Tensor
    values: Sequence[Wide]
    program: Program
    tensors: Sequence[Tensor]
    _before: Wide
    _head: tuple[Tensor, Tensor | None] | None

    def margins(self, y: Tensor) -> Tensor:
        """(boxes, classes) lower bounds of z_y - z_j, 0 at y: `ops.interval_margins` where a linear layer is last."""
        if self._head is None:
            box = self._before.box()
            return (box.lower.gather(1, y[:, None]) - box.upper).scatter(1, y[:, None], 0.0)
        value = self._before
        weight, bias = (None if part is None else part.to(value.radius.dtype) for part in self._head)
        assert weight is not None
        return ops.interval_margins(value.points[value.rows :], value.radius, weight, bias, y)

    def crown_margins(self, y: Tensor) -> Tensor:
        """(boxes, classes) those of CROWN-IBP (Zhang et al., ICLR 2020), float64; the values must have been kept."""
        classes = self.logits.shape[1]
        others = torch.arange(classes - 1, device=y.device)
        others = others + (others >= y[:, None])
        eye = torch.eye(classes, dtype=self.logits.dtype, device=y.device)
        found = self._crown(eye[y][:, None] - eye[others])
        return found.new_zeros(len(y), classes).scatter(1, others, found)

    def fused_cross_entropy(self, y: Tensor, share: float = 0.0) -> Tensor:
        """(boxes,) upper bounds by loss fusion (Xu et al., NeurIPS 2020), float64; the values must have been kept.

        exp(cross-entropy) = sum_j exp(z_j - z_y). Each term lies below its chord on the interval that `margins` gives,
        so one linear function a box goes back through the network, not one a class.

        Args:
            share: in [0, 1], weight of the sum that `margins` give by themselves in its place.
        """
        high = -self.margins(y).double()  # z_j - z_y <= high
        centre = self._centre().double()
        low = 2 * (centre - centre.gather(1, y[:, None])) - high
        top = high.amax(1, keepdim=True).detach()
        width = (high - low).clamp(min=1e-9)
        most = (high - top).exp()
        chord = most * -torch.expm1(-width) / width
        weight = chord.to(self.logits.dtype)
        own = F.one_hot(y, weight.shape[1]).to(weight.dtype)
        rise = -self._crown((own * weight.sum(1, keepdim=True) - weight)[:, None])[:, 0]
        fused = rise + (most - chord * high).sum(1)
        return ((1 - share) * fused + share * most.sum(1)).log() + top[:, 0]

    def _crown(self, weight: Tensor) -> Tensor:
        """(boxes, rows) at most the minima of <weight, logits>, weight (boxes, rows, classes)."""
        steps: list[Step] = []
        for k, step in enumerate(self.program.steps):
            end = step.inputs[0] if isinstance(step.layer, Elementwise) else k + 1
            source = chain(self.program.steps, end).source
            fused = end <= k or (k + 1 == self.program.outputs and source < end)
            inputs = (source,) if fused else step.inputs
            steps.append(step._replace(layer=_Remade(self, k), inputs=inputs))
        none, box = [None] * len(steps), self.values[0].box()
        weight, boxes = weight.to(box.lower.dtype), [box] * len(steps)  # these layers find boxes and lines themselves
        return below(steps, Region(box), len(steps), weight, boxes, none, self.tensors, PLAIN)

    def _centre(self) -> Tensor:
        """(boxes, classes) logits at the boxes' centres, or the centres of the logits' boxes."""
        centre = self._before.points[self._before.rows :]
        return centre if self._head is None else F.linear(centre, *self._head)

    def cross_entropy(self, y: Tensor) -> Tensor:
        """(boxes,) that of the worst logits, whose margins are `margins`."""
        return F.cross_entropy(-self.margins(y), y, reduction="none")


class _Remade(Layer):
    """A step back, for which the backward pass keeps the weight that came and makes boxes and lines again."""

    def __init__(self, found: Propagated, number: int) -> None:
        self.found, self.number = found, number

    def back(self, weight: Tensor, inputs: Boxes, lines: Lines | None, tensors: Tensors, sums: Sums) -> list[Tensor]:
        if torch.is_grad_enabled():
            found = checkpoint(self._back, weight, use_reentrant=False, preserve_rng_state=False)
        else:
            found = self._back(weight)
        sums.add(found[-1])
        return list(found[:-1])

    def _back(self, weight: Tensor) -> tuple[Tensor, ...]:
        k, steps, tensors = self.number, self.found.program.steps, self.found.tensors
        step, boxes = steps[k], _Boxes(self.found.values)
        line = None
        if not isinstance(step.layer, AFFINE):
            read = [boxes[i] for i in step.inputs]
            out = read[0] if isinstance(step.layer, (Relu, MaxPool)) else boxes[k + 1]  # these do not ask for it
            line = step.layer.relax(read, out, tensors, PLAIN)
        last = fused_target(steps, k + 1, boxes, tensors, PLAIN) if k + 1 == len(steps) else None
        fused, line = last or fused_activation(steps, k, line, boxes, tensors, PLAIN)
        own = Sums(torch.zeros((), dtype=torch.float64, device=weight.device), weight, PLAIN)
        product = [boxes[i] for i in fused.inputs] if isinstance(fused.layer, Product) else []
        return (*fused.layer.back(weight, product, line, tensors, own), own.value.expand(weight.shape[:2]))


class _Boxes(Sequence[Interval]):
    """Those of values, when they are asked for."""

    def __init__(self, values: Sequence[Wide]) -> None:
        self.values = values

    def __getitem__(self, i: Any) -> Any:
        return self.values[i].box()

    def __len__(self) -> int:
        return len(self.values)


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
        return _between(pooled[: len(lower)], torch.cat([pooled[:rows], pooled[len(lower) :]]), rows)
    box = layer.interval([Interval(*value.ends()) for value in plain], tensors, PLAIN)
    return _between(box.lower, box.upper, rows)


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
