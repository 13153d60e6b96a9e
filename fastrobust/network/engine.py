"""From the lowered graph to the native engine's tape: one rule per ATen operation.

A rule reads a node and appends to the tape; it raises `Unsupported` where the engine has no layer for what the node
asks. Tensors of the tape are placeholders of the lowered graph, by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fastrobust.network import pools
from fastrobust.network.capture import args_of
from fastrobust.network.lower import Lowered, overwrites
from fastrobust.network.moves import MOVES, order_of
from fastrobust.network.rules import Rules, operations
from fastrobust.network.tape import (
    ACTIVATION,
    ADD,
    AFFINE,
    CONCAT,
    CONTRACT,
    MULTIPLY,
    RELU,
    Tape,
    Unsupported,
    image,
    meta,
    pair,
)  # fmt: skip

__all__ = ["build", "rule"]

aten = torch.ops.aten

rule: Rules[int] = Rules("layer in the engine")


def build(lowered: Lowered, weights: Sequence[Tensor], sample: tuple[int, ...], dtype: torch.dtype) -> Tape:
    """The tape of a lowered network with these weights, for samples of this shape.

    Raises:
        Unsupported: naming what the engine lacks, with its place in the user's code.
    """
    if dtype != torch.float32:
        raise Unsupported(f"the engine computes in float32, the input is {str(dtype).removeprefix('torch.')}")
    if len(sample) > 3:
        raise Unsupported(f"the engine takes samples of up to 3 dimensions, got {len(sample)}")
    tape = Tape(sample)
    placeholders = [n for n in lowered.forward.graph.nodes if n.op == "placeholder"]
    tape.places[placeholders[0]] = 0
    for i, (node, value) in enumerate(zip(placeholders[1:], weights, strict=True)):
        tape.weights[node] = i
        node.meta["val"] = value
    for node in operations(lowered.forward.graph):
        if node.op == "output":
            if tape.source(args_of(node)[0]) != len(tape.ops) or tape.values[-1][1:] != (1, 1) or not tape.ops:
                raise Unsupported("the result is not a vector of features from the last layer")
            break
        tape.places[node] = rule.apply(node, tape, node)
    tape.take_features()
    return tape


# --- rules ------------------------------------------------------------------------------------------------------


@rule(aten.linear.default)
def _linear(tape: Tape, node: Node) -> int:
    source = tape.source(args_of(node)[0])
    weight = meta(args_of(node)[1])
    outputs, inputs = weight.shape
    if tape.values[source] != (inputs, 1, 1):
        raise Unsupported(f"its input must be a vector of {inputs} features")
    return tape.append(CONTRACT, source, (outputs, 1, 1), **_filters(tape, node, weight))


@rule(aten.conv2d.default, aten.conv2d.padding, aten.conv1d.default, aten.conv1d.padding)
def _convolution(tape: Tape, node: Node) -> int:
    source = tape.source(args_of(node)[0])
    weight = meta(args_of(node)[1])
    dims = weight.dim() - 2
    rest = list(args_of(node)[3:])
    stride, padding, dilation, groups = (rest + [1, 0, 1, 1][len(rest) :])[:4]
    stride, dilation = pair(stride, dims), pair(dilation, dims)
    kernel = (1,) * (2 - dims) + tuple(weight.shape[2:])
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(t % 2 for t in total):
            raise Unsupported("padding 'same' with an even kernel pads one side more")
        padding = tuple(t // 2 for t in total)
    else:
        padding = (0, 0) if padding == "valid" else pair(padding, dims, 0)
    _, height, width = tape.values[source]
    if dims == 1 and height != 1:
        raise Unsupported("its input must have one row")
    out = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip((height, width), padding, dilation, kernel, stride, strict=True)
    ]
    return tape.append(
        CONTRACT, source, (weight.shape[0], out[0], out[1]), **_filters(tape, node, weight), kernel=kernel,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip


@rule(aten.relu.default, aten.relu_.default)
def _relu(tape: Tape, node: Node) -> int:
    source = _alone(tape, node)
    if tape.sole_reader(source) and source == len(tape.ops) and source and not tape.ops[-1].get("relu"):
        tape.ops[-1]["relu"] = True
        return source
    return tape.append(RELU, source, tape.values[source], relu=True)


# ATen operation -> (Function of csrc/include/fastrobust/engine.h, defaults of its two parameters)
ACTIVATIONS: dict[Any, tuple[int, tuple[float, ...]]] = {
    aten.leaky_relu.default: (0, (0.01,)),
    aten.leaky_relu_.default: (0, (0.01,)),
    aten.sigmoid.default: (1, ()),
    aten.sigmoid_.default: (1, ()),
    aten.tanh.default: (2, ()),
    aten.tanh_.default: (2, ()),
    aten.silu.default: (3, ()),
    aten.silu_.default: (3, ()),
    aten.softplus.default: (6, (1.0, 20.0)),
    aten.elu.default: (7, (1.0,)),
    aten.elu_.default: (7, (1.0,)),
    aten.hardtanh.default: (8, (-1.0, 1.0)),
    aten.hardtanh_.default: (8, (-1.0, 1.0)),
    aten.relu6.default: (8, (0.0, 6.0)),
    aten.relu6_.default: (8, (0.0, 6.0)),
}


@rule(*ACTIVATIONS)
def _activation(tape: Tape, node: Node) -> int:
    source = _alone(tape, node)
    function, defaults = ACTIVATIONS[node.target]
    given = tuple(float(a) for a in args_of(node)[1:])
    if node.kwargs or any(a != 1.0 for a in given[len(defaults) :]):  # elu: two more scales
        raise Unsupported("parameters other than the usual ones")
    alpha, beta = (*given[: len(defaults)], *defaults[len(given) :], 1.0, 0.0)[:2]
    return tape.append(ACTIVATION, source, tape.values[source], function=function, alpha=alpha, beta=beta)


@rule(aten.gelu.default)
def _gelu(tape: Tape, node: Node) -> int:
    source = tape.source(args_of(node)[0])
    return tape.append(
        ACTIVATION, source, tape.values[source], function=5 if node.kwargs.get("approximate") == "tanh" else 4
    )


@rule(aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor)
def _add(tape: Tape, node: Node) -> int:
    sign = 1.0 if "add" in str(node.target) else -1.0
    alpha = sign * float(dict[str, Any](node.kwargs).get("alpha", 1))
    left, right = args_of(node)
    if right in tape.places:
        source, other = _alone(tape, node), tape.places[right]
        _same_shape(left, right)
        return tape.append(ADD, source, tape.values[source], in2=other, alpha=alpha)
    source = _alone(tape, node)
    channels = tape.values[source][0]
    if not isinstance(right, Node):
        return tape.append(AFFINE, source, tape.values[source], bias=tape.constant(alpha * float(right), channels))
    if alpha != 1.0:
        raise Unsupported("a constant may only be added")
    last = tape.ops[-1] if tape.ops and source == len(tape.ops) else {}
    if last.get("kind") == AFFINE and "bias" not in last and not last.get("relu") and tape.sole_reader(source):
        last["bias"] = _by_channel(tape, right, left)
        return source
    return tape.append(AFFINE, source, tape.values[source], bias=_by_channel(tape, right, left))


@rule(aten.mul.Tensor, aten.mul_.Tensor, aten.div.Tensor, aten.div_.Tensor)
def _multiply(tape: Tape, node: Node) -> int:
    source, (left, right) = _alone(tape, node), args_of(node)
    divide = "div" in str(node.target)
    shape = tape.values[source]
    if node.kwargs or (divide and isinstance(right, Node)):
        raise Unsupported("only divisions by constants")
    if not isinstance(right, Node):
        factor = 1.0 / float(right) if divide else float(right)
        return tape.append(AFFINE, source, shape, weight=tape.constant(factor, shape[0]))
    if right not in tape.places:
        return tape.append(AFFINE, source, shape, weight=_by_channel(tape, right, left))
    _same_shape(left, right)
    return tape.append(MULTIPLY, source, shape, in2=tape.places[right])


@rule(aten.cat.default)
def _concat(tape: Tape, node: Node) -> int:
    parts, dim = (*args_of(node), 0)[:2]
    if dim % meta(node).dim() != 1:
        raise Unsupported("only along the channels")
    place = tape.source(parts[0])
    for part in parts[1:]:
        other = tape.source(part)
        (c, h, w), (d, *size) = tape.values[place], tape.values[other]
        if size != [h, w]:
            raise Unsupported("its inputs differ in shape")
        place = tape.append(CONCAT, place, (c + d, h, w), in2=other)
    return place


@rule(*MOVES)
def _move(tape: Tape, node: Node) -> int:
    source = tape.source(args_of(node)[0])
    if len(args_of(node)[0].users) > 1 and overwrites(node):
        raise Unsupported("overwrites what others read")
    return tape.rearrange(source, image(tuple(meta(node).shape[1:])), order_of(node))


rule(aten.max_pool2d.default)(pools.max_pool)
rule(aten.avg_pool2d.default)(pools.average_pool)
rule(aten.adaptive_avg_pool2d.default)(pools.adaptive_average_pool)
rule(aten.mean.dim)(pools.mean)


# --- what the rules share ---------------------------------------------------------------------------------------


def _alone(tape: Tape, node: Node) -> int:
    """The first input; one that is overwritten must have no other reader, nor share memory with one."""
    first = args_of(node)[0]
    source = tape.source(first)
    if overwrites(node):
        shared = first.target in MOVES
        if len(first.users) > 1 or shared or first.op == "placeholder":
            raise Unsupported("overwrites what others read")
    return source


def _same_shape(left: Node, right: Node) -> None:
    if meta(left).shape[1:] != meta(right).shape[1:]:
        raise Unsupported("its inputs differ in shape")


def _filters(tape: Tape, node: Node, weight: Tensor) -> dict[str, int]:
    if node.kwargs:
        raise Unsupported("keyword arguments")
    found = {"weight": tape.tensor(_weight(tape, args_of(node)[1]), weight.numel())}
    if len(args_of(node)) > 2 and args_of(node)[2] is not None:
        found["bias"] = tape.tensor(_weight(tape, args_of(node)[2]), weight.shape[0])
    return found


def _weight(tape: Tape, node: Any) -> Node:
    if not isinstance(node, Node) or node not in tape.weights:
        raise Unsupported("its weights depend on the input")
    if meta(node).dtype != torch.float32:
        raise Unsupported("its weights are not float32")
    return node


def _by_channel(tape: Tape, node: Any, left: Any) -> int:
    """A constant with one number a channel of `left`, such as (1, channels, 1, 1)."""
    value, dims = meta(_weight(tape, node)), meta(left).dim()
    channels = tape.values[tape.source(left)][0]
    shape = (1,) * (dims - value.dim()) + tuple(value.shape)
    if shape != (1, channels, *[1] * (dims - 2)):
        raise Unsupported(f"a constant must have one number a channel, got shape {tuple(value.shape)}")
    return tape.tensor(node, channels)
