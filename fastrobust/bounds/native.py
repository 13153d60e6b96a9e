"""Boxes of a network's layers by the native engine, in one call, with the terms of docs/bounds/soundness.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastrobust import _backend
from fastrobust.bounds.affine import Affine, Convolution, Linear, Pooling
from fastrobust.bounds.elements import Concat, Move, Scale, Sum
from fastrobust.bounds.guarantee import SAFE, Guarantee, finite
from fastrobust.bounds.interval import Interval, Region
from fastrobust.bounds.layers import Layer
from fastrobust.bounds.nonlinear import Activation, MaxPool, Relu
from fastrobust.network import engine
from fastrobust.network.rules import operations
from fastrobust.network.tape import AFFINE, Tape, Unsupported, elements

if TYPE_CHECKING:
    from fastrobust.bounds.program import Program

__all__ = ["Native"]

EXACT = (Relu, MaxPool, Move, Concat)  # make no error, but where the ends of boxes are rounded outwards


class Native:
    """A program as a tape of the engine, up to its last layer that is not affine; batch norm is not folded.

    Attributes:
        value: whose box it finds; no layer behind reads what was before.

    Raises:
        Unsupported: where the engine has no sound rule for a layer.
    """

    def __init__(self, program: Program, tensors: Sequence[Tensor]) -> None:
        network, steps = program.network, program.steps
        native = _backend.module_for(network.device)
        if network.device.type != "cpu" or native is None or len(network.shape) > 3:
            raise Unsupported("the engine serves float32 on a CPU")
        bent = [k for k, step in enumerate(steps) if not isinstance(step.layer, (Affine, Sum, Concat))]
        self.value = max(bent, default=-1) + 1
        if not bent or any(i < self.value for step in steps[self.value :] for i in step.inputs):
            raise Unsupported("layers behind the last that is not affine read what was before")
        self.shape = program.shape(self.value)
        self.tape, self.layers = Tape(tuple(network.shape)), list[Layer]()
        self.scales: list[tuple[int, Scale]] = []  # for each two constants of the tape: where they are, and whose
        self._read(program, tensors)
        self.engine = native.Engine(self.tape.values, self.tape.ops, [count for _, count in self.tape.tensors])

    def _read(self, program: Program, tensors: Sequence[Tensor]) -> None:
        graph, tape = program.lowered.forward.graph, self.tape
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        tape.places[placeholders[0]], at = 0, [0]  # where the program's values are
        tape.weights.update({node: i for i, node in enumerate(placeholders[1:])})
        for node, step in zip(operations(graph), program.steps[: self.value], strict=False):
            if isinstance(step.layer, Scale):
                tape.places[node] = self._scale(step.layer, at[step.inputs[0]], tensors)
            elif isinstance(step.layer, (*EXACT, Linear, Convolution, Sum, Pooling)) or _is_leaky(step.layer):
                tape.places[node] = engine.rule.apply(node, tape, node)
            else:
                raise Unsupported(f"{type(step.layer).__name__} has no sound boxes in the engine")
            at.append(tape.places[node])
            self.layers += [step.layer] * (len(tape.ops) - len(self.layers))
        last = tape.values[-1]
        if at[-1] != len(tape.ops):
            raise Unsupported("the last layer is not the last of the tape")
        if last[1:] != (1, 1):
            tape.rearrange(len(tape.ops), (elements(last), 1, 1), list(range(elements(last))))
            self.layers.append(Relu())  # makes no error, either
        before = len(tape.ops)
        tape.take_features()
        del self.layers[: before - len(tape.ops)]

    def _scale(self, layer: Scale, source: int, tensors: Sequence[Tensor]) -> int:
        channels = self.tape.values[source][0]
        for part in layer.factors(tensors):
            if part is not None and part.numel() not in (1, channels if part.shape[1] == channels else 1):
                raise Unsupported("a scale that differs within a channel")
        self.scales.append((len(self.tape.constants), layer))
        weight, bias = self.tape.constant(1.0, channels), self.tape.constant(0.0, channels)
        return self.tape.append(AFFINE, source, self.tape.values[source], weight=weight, bias=bias)

    def box(self, region: Region, tensors: Sequence[Tensor], g: Guarantee) -> Interval:
        """That of the value, from a box of inputs, with the network's parameters as they are in `tensors`."""
        constants = self.tape.constants
        for at, layer in self.scales:
            size = constants[at].numel()
            for k, part in enumerate(layer.factors(tensors)[:2]):
                if part is not None:
                    constants[at + k] = part.to(torch.float32).flatten().expand(size).contiguous()
        weights = [(tensors[i] if i >= 0 else constants[-1 - i]).contiguous() for i, _ in self.tape.tensors]
        self.engine.load([weight.data_ptr() for weight in weights])
        lower, upper = region.box.lower.contiguous(), region.box.upper.contiguous()
        low, high = (lower.new_empty(len(lower), self.tape.values[-1][0]) for _ in range(2))
        roundings = self.engine.roundings
        widenings = [self._widening(k, roundings[k], tensors, g) for k in range(len(self.layers))] if g.sound else []
        if len(lower):
            self.engine.boxes(
                lower.data_ptr(), upper.data_ptr(), len(lower), low.data_ptr(), high.data_ptr(),
                [(own, net, 0 if slack is None else slack.data_ptr()) for own, net, slack in widenings],
                _backend.threads(),
            )  # fmt: skip
        return Interval(*finite(*(end.view(len(lower), *self.shape) for end in (low, high))))

    def _widening(
        self, op: int, roundings: int, tensors: Sequence[Tensor], g: Guarantee
    ) -> tuple[float, float, Tensor | None]:
        """Relative errors of the sums of the engine and of evaluations, and absolute ones by channel."""
        layer, channels = self.layers[op], self.tape.values[op + 1][0]
        if isinstance(layer, Sum):
            own, net, count, size = g.own_error(3), g.net_error(3), 4, None
        elif isinstance(layer, Affine) and not isinstance(layer, Move):
            products = isinstance(layer, (Linear, Convolution))  # which the engine adds up in chains
            own, net = g.own_error((roundings if products else layer.fan) + 3), g.net_error(layer.fan + 1)
            count, size = 2 * layer.fan + 2, layer.bias_size(tensors)
        else:
            return 0.0, 0.0, None
        slack = torch.full((channels,), g.underflow(count))
        if size is not None:
            slack = slack + (own + net) * size.flatten().to(slack.dtype)
        return own, net, slack * SAFE


def _is_leaky(layer: Layer) -> bool:
    op = layer.function.op if isinstance(layer, Activation) else None
    return op is not None and op[0] == "leaky_relu"
