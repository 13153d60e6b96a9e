"""A network as bounds see it: its layers in order, and linear functions of their results brought back to the input."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastrobust.bounds.affine import Affine, Concat, Move, Scale, Sum
from fastrobust.bounds.guarantee import Guarantee
from fastrobust.bounds.interval import Interval, Region
from fastrobust.bounds.layers import Layer, Lines, Sums, dot_size
from fastrobust.bounds.rules import rule
from fastrobust.network import trust
from fastrobust.network.capture import Network, args_of, capture, in_eval
from fastrobust.network.lower import Lowered, unfolded
from fastrobust.network.rules import operations
from fastrobust.network.tape import Unsupported

__all__ = ["Program", "Step", "below", "program_for"]

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
        exact: for each value, whether its box follows from those before as tightly as linear functions could find it:
            an affine function of the input whose products are all in one layer, or a function of one other value.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._lowered: Lowered = unfolded(network)
        self.steps: list[Step] = []
        self.exact = [True]
        self._products = [0]
        self._read_graph()

    def _read_graph(self) -> None:
        graph = self._lowered.forward.graph
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
        return list(self._lowered.weights(*held))

    def forward(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The outputs at x (batch, ...)."""
        out: Tensor = self._lowered.forward(x, *tensors)
        return out

    def interval(self, value: int, boxes: Sequence[Interval], tensors: Sequence[Tensor], g: Guarantee) -> Interval:
        """The box of a value from those of the values before."""
        step = self.steps[value - 1]
        return step.layer.interval([boxes[i] for i in step.inputs], tensors, g)


def below(
    program: Program, region: Region, target: int, weight: Tensor, boxes: Sequence[Interval],
    lines: Sequence[Lines | None], tensors: Sequence[Tensor], g: Guarantee, *, flat: bool = False,
    extra: Mapping[int, Tensor] | None = None, seen: dict[int, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """At most the minimum of <weight, value> over the region; backward, layer by layer.

    Args:
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
        step = program.steps[value - 1]
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


class _Entry(NamedTuple):
    """A program, and what the model looked like then."""

    program: Program
    looks: list[Any]
    shapes: list[torch.Size]


_programs: WeakKeyDictionary[nn.Module, dict[Any, _Entry]] = WeakKeyDictionary()
SAMPLES, CLOSE = 4, 1e-3  # on which a program is compared with its model, and how nearly they must agree


def program_for(where: str, model: nn.Module, x: Tensor) -> Program:
    """The model's program for inputs like x; captured once, as long as the model looks and answers the same.

    Raises:
        CaptureError: if the model cannot be exported, or is not deterministic.
        ValueError: naming an operation without a rule, hooks, weights that are not finite or of another dtype than x;
            or if the model's answers are not those of its graph.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: model must be a torch.nn.Module, got {type(model).__name__}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        if tensor.dtype != x.dtype:
            raise ValueError(f"{where}: x must have the model's dtype, {name!r} is {tensor.dtype}, got {x.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{where}: the model's {name!r} holds NaN or Inf")
    key, known = (tuple(x.shape[1:]), x.dtype, x.device), _programs.setdefault(model, {})
    entry = known.get(key)
    if entry is None or not _still_fits(model, entry) or _differs(entry.program, model, x[:SAMPLES]):
        known.pop(key, None)
        reason = trust.hooks(model)
        if reason:
            raise ValueError(f"{where}: {reason}, which bounds would not see")
        try:
            program = Program(capture(model, x))
        except Unsupported as error:
            raise ValueError(f"{where}: {error}") from None
        if _differs(program, model, x[:1]) or _differs(program, model, x[:SAMPLES]):
            raise ValueError(f"{where}: the model's answers differ from those of its captured graph")
        entry = known[key] = _Entry(program, _looks(model), [t.shape for t in program.network.tensors()])
    reason = _too_small(entry.program, x.dtype)
    if reason:
        raise ValueError(f"{where}: {reason}")
    return entry.program


def _still_fits(model: nn.Module, entry: _Entry) -> bool:
    now = _looks(model)
    if len(now) != len(entry.looks) or not all(map(operator.is_, now, entry.looks)):
        return False
    return [t.shape for t in entry.program.network.tensors()] == entry.shapes


def _looks(model: nn.Module) -> list[Any]:
    """As `trust.looks`, and which parameters and buffers there are, and what lies in lists and dictionaries."""
    found = trust.looks(model)
    for module in model.modules():
        for value in module.__dict__.values():
            found += _contents(value, 4)
    return found


def _contents(value: Any, depth: int) -> list[Any]:
    if depth == 0 or isinstance(value, (nn.Module, Tensor)):
        return [value]
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set)):
        return [len(value), *(part for each in value for part in _contents(each, depth - 1))]
    return [value]


def _differs(program: Program, model: nn.Module, x: Tensor) -> bool:
    """Whether the model's answers at x are not those of its graph."""
    if not len(x):
        return False
    with in_eval(model), torch.inference_mode(False), torch.no_grad():
        ours, theirs = program.forward(x.clone(), program.tensors()), model(x.clone())
    if not isinstance(theirs, Tensor) or ours.shape != theirs.shape:
        return True
    usable = torch.isfinite(ours) & torch.isfinite(theirs)
    apart = torch.where(usable, ours - theirs, 0).norm()
    return bool(apart > CLOSE * (1e-6 + torch.where(usable, theirs, 0).norm()))


def _too_small(program: Program, dtype: torch.dtype) -> str:
    """Scales below the smallest normal number have no relative accuracy."""
    tensors = program.tensors()
    for step in program.steps:
        scale = step.layer.factors(tensors)[0] if isinstance(step.layer, Scale) else None
        if scale is not None and bool(((scale != 0) & (scale.abs() < torch.finfo(dtype).smallest_normal)).any()):
            return f"a scale of {step.name} is smaller than the smallest normal number"
    return ""
