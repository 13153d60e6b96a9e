"""What the rules of bounds read of a graph's nodes; each raises `Unsupported` where a node is not what a rule needs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

from fastrobust.network.capture import args_of
from fastrobust.network.lower import alone, overwrites
from fastrobust.network.tape import Unsupported

__all__ = ["Weights", "alone_in_place", "beside", "each", "input_of", "is_input", "pair", "same_shape", "value_of",
           "weight_of"]  # fmt: skip

Weights = dict[Node, int]  # which of the tensors a node is, for those that no input reaches


def value_of(node: Any) -> Tensor:
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, Tensor):
        raise Unsupported(f"{node} has no known shape")
    return value


def is_input(node: Any, weights: Weights) -> bool:
    return isinstance(node, Node) and node not in weights


def input_of(node: Any, weights: Weights) -> Node:
    if not is_input(node, weights):
        raise Unsupported(f"{node} is not computed from the input")
    found: Node = node
    return found


def weight_of(node: Any, weights: Weights) -> int:
    if not isinstance(node, Node) or node not in weights:
        raise Unsupported("its weights depend on the input")
    return weights[node]


def beside(constant: Node, source: Node) -> tuple[int, ...]:
    """The shape of a constant with as many dimensions as the activation it is combined with."""
    shape, other = tuple(value_of(constant).shape), tuple(value_of(source).shape)
    full = (1,) * (len(other) - len(shape)) + shape
    if (
        len(full) != len(other)
        or full[0] != 1
        or any(a not in (1, b) for a, b in zip(full[1:], other[1:], strict=True))
    ):
        raise Unsupported(f"a constant of shape {shape} beside an activation {tuple(other[1:])}")
    return full


def same_shape(left: Node, right: Node) -> None:
    if value_of(left).shape[1:] != value_of(right).shape[1:]:
        raise Unsupported("its inputs differ in shape")


def alone_in_place(node: Node) -> None:
    if overwrites(node) and not alone(args_of(node)[0]):
        raise Unsupported("overwrites the input, or what others read")


def pair(value: Any) -> tuple[int, int]:
    rows, columns = each(value, 2)
    return rows, columns


def each(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * dims
    return values * dims if len(values) == 1 else values
