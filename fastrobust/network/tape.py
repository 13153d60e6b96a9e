"""The engine's tape: a network as plain data, in the form that `fastrobust._C.Engine` takes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

__all__ = ["KINDS", "Shape", "Tape", "Unsupported", "elements", "image"]

KINDS = ("contract", "add", "affine", "relu", "max_pool", "avg_pool", "rearrange", "activation", "multiply",
         "concat")  # fmt: skip
CONTRACT, ADD, AFFINE, RELU, MAX_POOL, AVG_POOL, REARRANGE, ACTIVATION, MULTIPLY, CONCAT = range(len(KINDS))

Shape = tuple[int, int, int]


class Unsupported(Exception):
    """The engine has no layer for a node; the message names it and its place."""


class Tape:
    """Values and layers, in the form that `fastrobust._C.Engine` takes.

    Attributes:
        values: shapes (channels, rows, columns); values[0] is the input.
        ops: a dict a layer, whose result is the next value.
        tensors: for each tensor the number of the lowered graph's weight that it is, and the number of its elements;
            -1 - i stands for constants[i].
        constants: tensors that no parameter determines.
    """

    def __init__(self, sample: tuple[int, ...]) -> None:
        self.values: list[Shape] = [image(sample)]
        self.ops: list[dict[str, Any]] = []
        self.tensors: list[tuple[int, int]] = []
        self.constants: list[Tensor] = []
        self.weights: dict[Node, int] = {}
        self.places: dict[Node, int] = {}  # which value a node is

    def append(self, kind: int, source: int, shape: Shape, **rest: Any) -> int:
        self.ops.append({"kind": kind, "in": source, **rest})
        self.values.append(shape)
        return len(self.ops)

    def tensor(self, node: Node, size: int) -> int:
        entry = (self.weights[node], size)
        if entry not in self.tensors:
            self.tensors.append(entry)
        return self.tensors.index(entry)

    def constant(self, value: float, size: int) -> int:
        self.constants.append(torch.full((size,), value))
        self.tensors.append((-len(self.constants), size))
        return len(self.tensors) - 1

    def source(self, node: Any) -> int:
        if not isinstance(node, Node) or node not in self.places:
            raise Unsupported(f"{node} is not computed from the input")
        return self.places[node]

    def sole_reader(self, source: int) -> bool:
        """Whether only one operation reads a value, under whatever name."""
        return all(len(node.users) == 1 for node, place in self.places.items() if place == source)

    def rearrange(self, source: int, shape: Shape, order: list[int]) -> int:
        """Element i of the result is element order[i] of the input, or 0 for -1. No op where nothing moves."""
        if shape == self.values[source] and order == list(range(len(order))):
            return source
        return self.append(REARRANGE, source, shape, order=order)

    def take_features(self) -> None:
        """Where the input is only read as a vector of features, it is one: a sample's elements lie in that order."""
        first, *rest = self.ops
        alone = not any(0 in (op["in"], op.get("in2")) for op in rest)
        whole = list(range(elements(self.values[0])))
        if rest and alone and first["kind"] == REARRANGE and first["order"] == whole and not first.get("relu"):
            del self.ops[0], self.values[0]
            for op in self.ops:
                op.update({key: op[key] - 1 for key in ("in", "in2") if key in op})

    def multiplications(self) -> int:
        """Of weights with activations, in a forward pass of one sample."""
        counts = [
            elements(out) * self.values[op["in"]][0] // op.get("groups", 1) * math.prod(op.get("kernel", (1, 1)))
            for op, out in zip(self.ops, self.values[1:], strict=True) if op["kind"] == CONTRACT
        ]  # fmt: skip
        return sum(counts)

    def __str__(self) -> str:
        lines = [f"v0 {_times(self.values[0])}  input"]
        for i, (op, shape) in enumerate(zip(self.ops, self.values[1:], strict=True), 1):
            reads = ", ".join(f"v{op[k]}" for k in ("in", "in2") if k in op)
            skip = ("kind", "in", "in2", "row_begin", "row_end", "column_begin", "column_end", "divisor", "source")
            rest = " ".join(f"{k}={v}" for k, v in op.items() if k not in skip)
            lines.append(f"v{i} {_times(shape)}  {KINDS[op['kind']]}({reads}) {rest}".rstrip())
        return "\n".join(lines)


def image(sample: tuple[int, ...]) -> Shape:
    """(features), (channels, columns) or (channels, rows, columns) as channels, rows and columns; else features."""
    if not sample:
        raise Unsupported("a value that has one number a sample and no dimension for it")
    if len(sample) == 1 or len(sample) > 3:
        return math.prod(sample), 1, 1
    return (sample[0], 1, sample[1]) if len(sample) == 2 else (sample[0], sample[1], sample[2])


def elements(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape))
