"""A network as bounds see it: its layers in order, and linear functions of their results brought back to the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrobust.bounds.affine import Affine
from fastrobust.bounds.elements import Concat, Move, Scale, Sum
from fastrobust.bounds.guarantee import Guarantee
from fastrobust.bounds.interval import Interval, Region
from fastrobust.bounds.layers import Layer, Lines, Sums, dot_size
from fastrobust.bounds.native import Native
from fastrobust.bounds.rules import rule
from fastrobust.network.capture import Network, args_of
from fastrobust.network.lower import Lowered, unfolded
from fastrobust.network.rules import operations
from fastrobust.network.tape import Unsupported

__all__ = ["AFFINE", "Program", "Step", "below"]

AFFINE = (Affine, Sum, Concat)


class Step(NamedTuple):
    """One layer; values are numbered from 0, the input, and the result of steps[k] is value k + 1."""

    layer: Layer
    inputs: tuple[int, ...]
    name: str
    shape: torch.Size


class Program:
    """A captured network as steps, the last of which gives the outputs.

    Attributes:
        lowered: its graph, every operation that rounds being the user's.
        exact: for each value, whether its box follows from those before as tightly as linear functions could find it:
            an affine function of the input whose products are all in one layer, or a function of one other value.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.lowered: Lowered = unfolded(network)
        self.steps: list[Step] = []
        self.exact = [True]
        self._products = [0]
        self._read_graph()

    def _read_graph(self) -> None:
        graph = self.lowered.forward.graph
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        weights = {node: k for k, node in enumerate(placeholders[1:])}
        with torch.no_grad():
            for node, value in zip(weights, self.tensors(), strict=True):
                node.meta["val"] = value
        places: dict[Any, int] = {placeholders[0]: 0}
        for node in operations(graph):
            if node.op == "output":
                if places.get(args_of(node)[0]) != len(self.steps) or not self.steps:
                    raise Unsupported("the result is not that of the last layer")
                return
            layer, sources = rule.apply(node, node, weights)
            shape = torch.Size(map(int, node.meta["val"].shape[1:]))
            self._append(Step(layer, tuple(places[s] for s in sources), node.name, shape))
            places[node] = len(self.steps)

    def _append(self, step: Step) -> None:
        self.steps.append(step)
        layer, first = step.layer, step.inputs[0]
        if isinstance(layer, Scale) or (isinstance(layer, Move) and not layer.fan_back):
            products, exact = self._products[first], self.exact[first]
        elif isinstance(layer, Affine):
            products = min(2, self._products[first] + 1)
            exact = products < 2
        else:  # a function of one value takes that value's box to the best there is
            products, exact = 2, len(step.inputs) == 1
        self._products.append(products)
        self.exact.append(exact)

    @cached_property
    def native(self) -> Native | None:
        """Its boxes by the native engine, where that serves."""
        try:
            with torch.no_grad():
                return Native(self, self.tensors())
        except (Unsupported, ValueError):  # ValueError: the engine's own limits
            return None

    @property
    def outputs(self) -> int:
        """The number of the outputs' value."""
        return len(self.steps)

    def shape(self, value: int) -> torch.Size:
        """A sample's shape there."""
        return self.steps[value - 1].shape if value else torch.Size(self.network.shape)

    def tensors(self) -> list[Tensor]:
        """What the layers' numbers point to, as the model's parameters are now; with their gradients if enabled."""
        held = self.network.held() if torch.is_grad_enabled() else self.network.tensors()
        return list(self.lowered.weights(*held))

    def forward(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The outputs at x (batch, ...)."""
        out: Tensor = self.lowered.forward(x, *tensors)
        return out

    def interval(self, value: int, boxes: Sequence[Interval], tensors: Sequence[Tensor], g: Guarantee) -> Interval:
        """The box of a value from those of the values before."""
        step = self.steps[value - 1]
        return step.layer.interval([boxes[i] for i in step.inputs], tensors, g)


def below(
    steps: Sequence[Step], region: Region, target: int, weight: Tensor, boxes: Sequence[Interval],
    lines: Sequence[Lines | None], tensors: Sequence[Tensor], g: Guarantee, *, flat: bool = False,
    extra: Mapping[int, Tensor] | None = None, seen: dict[int, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """At most the minimum of <weight, value> over the region; backward, layer by layer.

    Args:
        steps: a program's.
        target: the number of the value.
        weight: (batch, rows, ...).
        boxes: of all values before the target.
        lines: for each step the lines of a layer that is not affine.
        flat: stop at the first layers that are not affine, at their boxes.
        extra: more weights, on values before the target: their products are known to be at most 0, and are added.
        seen: takes the weight on each value.

    Returns:
        (batch, rows), float64.
    """
    zero = weight.new_zeros(weight.shape[:2], dtype=torch.float64)
    sums = Sums(zero, zero, g)
    pending: dict[int, Tensor] = {target: weight}
    for value in range(target, 0, -1):
        w = pending.pop(value, None)
        if extra is not None and value in extra:
            w = _joined(w, extra[value], boxes[value], g, sums)
        if w is None:
            continue
        if seen is not None:
            seen[value] = w
        step = steps[value - 1]
        if flat and not isinstance(step.layer, AFFINE):
            sums.add(Region(boxes[value]).least(w.flatten(2), g))
            continue
        inputs = [boxes[i] for i in step.inputs]
        for source, part in zip(step.inputs, step.layer.back(w, inputs, lines[value - 1], tensors, sums), strict=True):
            pending[source] = _joined(pending.get(source), part, boxes[source], g, sums)
    total = sums.value
    if 0 in pending:
        if seen is not None:
            seen[0] = pending[0]
        total = total + region.least(pending[0].flatten(2), g)
    if not g.sound:
        return total
    # Sums of float64, each of at most a thousand terms; what they add up to may cancel.
    size = sums.value.abs() + total.abs()
    lower = total - (sums.error * (1 + 2.0**-20) + 2.0**-40 * size)
    return lower.masked_fill(lower.isnan(), -torch.inf)


def _joined(weight: Tensor | None, part: Tensor, box: Interval, g: Guarantee, sums: Sums) -> Tensor:
    """The sum of two weights on a value."""
    if weight is None:
        return part
    total = weight + part
    if g.sound:
        sums.allow(g.own_error(2) * dot_size(total, box.size(), g))
    return total
