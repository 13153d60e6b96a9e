"""From ATen operations to the layers of bounds: one rule each."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fastrobust.bounds import activations
from fastrobust.bounds.affine import Convolution, Linear, Pooling
from fastrobust.bounds.elements import BatchNorm, Concat, Move, Scale, Sum
from fastrobust.bounds.layers import Layer, Tensors
from fastrobust.bounds.nodes import (
    Weights,
    alone_in_place,
    beside,
    each,
    input_of,
    is_input,
    pair,
    same_shape,
    value_of,
    weight_of,
)  # fmt: skip
from fastrobust.bounds.nonlinear import Activation, MaxPool, Product, Relu, Softmax
from fastrobust.network.capture import args_of
from fastrobust.network.moves import MOVES, order_of
from fastrobust.network.rules import Rules
from fastrobust.network.tape import Unsupported

__all__ = ["rule"]

aten = torch.ops.aten

rule: Rules[tuple[Layer, list[Node]]] = Rules("rule for bounds")


# --- products with weights --------------------------------------------------------------------------------------


@rule(aten.linear.default)
def _linear(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    source, weight, *rest = args_of(node)
    bias = weight_of(rest[0], weights) if rest and rest[0] is not None else None
    return Linear(weight_of(weight, weights), bias, tuple(value_of(weight).shape)), [input_of(source, weights)]


@rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
      aten.conv3d.padding)  # fmt: skip
def _convolution(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    source, weight, *rest = args_of(node)
    bias, stride, padding, dilation, groups = (rest + [None, 1, 0, 1, 1][len(rest) :])[:5]
    shape = tuple(value_of(weight).shape)
    dims = len(shape) - 2
    stride, dilation = each(stride, dims), each(dilation, dims)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, shape[2:], strict=True)]
        if any(t % 2 for t in total):
            raise Unsupported("padding 'same' with an even kernel pads one side more")
        padding = [t // 2 for t in total]
    padding = (0,) * dims if padding == "valid" else each(padding, dims)
    at_bias = None if bias is None else weight_of(bias, weights)
    size = tuple(value_of(source).shape[2:])
    layer = Convolution(weight_of(weight, weights), at_bias, shape, size, stride, padding, dilation, groups)
    return layer, [input_of(source, weights)]


@rule(aten.batch_norm.default)
def _batch_norm(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    source, weight, bias, mean, var, _, _, eps, *_ = args_of(node)
    value, (scale, shift) = value_of(source), (None if n is None else weight_of(n, weights) for n in (weight, bias))
    at_mean, at_var = weight_of(mean, weights), weight_of(var, weights)
    return BatchNorm(scale, shift, at_mean, at_var, eps, value.dim(), value.dtype), [input_of(source, weights)]


# --- sums and products ------------------------------------------------------------------------------------------


@rule(aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor)
def _add(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    left, right = args_of(node)
    alone_in_place(node)
    alpha = (1.0 if "add" in str(node.target) else -1.0) * float(dict[str, Any](node.kwargs).get("alpha", 1))
    if is_input(left, weights) and is_input(right, weights):
        same_shape(left, right)
        return Sum(alpha), [left, right]
    # alpha c + x, or c + alpha x.
    source, constant = (left, right) if is_input(left, weights) else (right, left)
    of_source, of_constant = (1.0, alpha) if source is left else (alpha, 1.0)
    return _scaled(source, None if of_source == 1.0 else of_source, constant, of_constant, weights)


@rule(aten.rsub.Scalar)
def _reversed_difference(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    source, constant, *rest = args_of(node)
    return _scaled(source, -float(rest[0]) if rest else -1.0, constant, 1.0, weights)


@rule(aten.neg.default)
def _negative(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    return _scaled(args_of(node)[0], -1.0, None, 1.0, weights)


@rule(aten.mul.Tensor, aten.mul_.Tensor, aten.div.Tensor, aten.div_.Tensor)
def _multiply(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    left, right = args_of(node)
    alone_in_place(node)
    divide = "div" in str(node.target)
    if node.kwargs:
        raise Unsupported("rounded division")
    if is_input(left, weights) and is_input(right, weights):
        if divide:
            raise Unsupported("division by an activation")
        if left is right:
            return Activation(activations.square()), [left]
        same_shape(left, right)
        return Product(), [left, right]
    source, constant = (left, right) if is_input(left, weights) else (right, left)
    if divide and source is right:
        raise Unsupported("division by an activation")
    if not isinstance(constant, Node):
        return _scaled(source, 1 / float(constant) if divide else float(constant), None, 1.0, weights)
    at, shape = weight_of(constant, weights), beside(constant, source)

    def factors(tensors: Tensors) -> tuple[Tensor, None, None]:
        value = tensors[at].double().reshape(shape)
        return 1 / value if divide else value, None, None

    return Scale(factors, value_of(source).dtype, 4), [source]


def _scaled(
    source: Any, scale: float | None, constant: Any, share: float, weights: Weights
) -> tuple[Layer, list[Node]]:
    """scale * source + share * constant."""
    source = input_of(source, weights)
    dtype, dims = value_of(source).dtype, value_of(source).dim()
    at = weight_of(constant, weights) if isinstance(constant, Node) else None
    shape = beside(constant, source) if isinstance(constant, Node) else (1,) * dims

    def factors(tensors: Tensors) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        like = next(iter(tensors), None)
        new = partial(torch.full, (1,) * dims, dtype=torch.float64, device=None if like is None else like.device)
        multiple = None if scale is None else new(scale)
        if constant is None:
            return multiple, None, None
        shift = (new(float(constant)) if at is None else tensors[at].double().reshape(shape)) * share
        return multiple, shift, shift.abs()

    return Scale(factors, dtype, 4), [source]


@rule(aten.cat.default)
def _concat(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    parts, dim = (*args_of(node), 0)[:2]
    dim %= value_of(node).dim()
    if dim == 0:
        raise Unsupported("along the batch")
    sources = [input_of(part, weights) for part in parts]
    return Concat(dim, [int(value_of(part).shape[dim]) for part in sources]), sources


# --- elementwise functions --------------------------------------------------------------------------------------


@rule(aten.relu.default, aten.relu_.default)
def _relu(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    alone_in_place(node)
    return Relu(), [input_of(args_of(node)[0], weights)]


def _leaky(slope: float = 0.01) -> activations.Function:
    if not 0 <= slope <= 1:
        raise Unsupported(f"a slope outside [0, 1]: {slope}")
    return activations.leaky_relu(slope)


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> activations.Function:
    if scale != 1 or input_scale != 1 or alpha < 0:
        raise Unsupported("parameters other than the usual ones")
    return activations.elu(alpha)


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> activations.Function:
    if not beta > 0:
        raise Unsupported(f"a beta that is not positive: {beta}")
    return activations.softplus(float(beta), float(threshold))


def _gelu(approximate: str = "none") -> activations.Function:
    return activations.gelu(approximate)


FUNCTIONS: dict[Any, Callable[..., activations.Function]] = {
    aten.leaky_relu.default: _leaky, aten.leaky_relu_.default: _leaky,
    aten.sigmoid.default: activations.sigmoid, aten.sigmoid_.default: activations.sigmoid,
    aten.tanh.default: activations.tanh, aten.tanh_.default: activations.tanh,
    aten.silu.default: activations.silu, aten.silu_.default: activations.silu,
    aten.gelu.default: _gelu, aten.elu.default: _elu, aten.elu_.default: _elu,
    aten.softplus.default: _softplus,
    aten.hardtanh.default: lambda low=-1.0, high=1.0: activations.hardtanh(float(low), float(high)),
    aten.hardtanh_.default: lambda low=-1.0, high=1.0: activations.hardtanh(float(low), float(high)),
    aten.relu6.default: lambda: activations.hardtanh(0.0, 6.0),
    aten.relu6_.default: lambda: activations.hardtanh(0.0, 6.0),
    aten.square.default: activations.square,
}  # fmt: skip


@rule(*FUNCTIONS)
def _function(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    alone_in_place(node)
    source, *parameters = args_of(node)
    function = FUNCTIONS[node.target](*parameters, **dict[str, Any](node.kwargs))
    return Activation(function), [input_of(source, weights)]


@rule(aten.pow.Tensor_Scalar)
def _power(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    source, exponent = args_of(node)
    if exponent != 2:
        raise Unsupported("a power other than 2")
    return Activation(activations.square()), [input_of(source, weights)]


@rule(aten.softmax.int)
def _softmax(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    source, dim, *rest = args_of(node)
    dim %= value_of(node).dim()
    if dim == 0:
        raise Unsupported("over the batch")
    if any(value is not None for value in (*rest, *node.kwargs.values())):
        raise Unsupported("in another dtype")
    return Softmax(dim), [input_of(source, weights)]


# --- pools and moves --------------------------------------------------------------------------------------------


@rule(aten.max_pool2d.default)
def _max_pool(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    source, kernel, *rest = args_of(node)
    if value_of(source).dim() != 4:
        raise Unsupported("only of samples (channels, rows, columns)")
    kernel = pair(kernel)
    stride = pair(rest[0]) if rest and rest[0] else kernel
    padding, dilation = (pair(rest[i]) if len(rest) > i else (n, n) for i, n in ((1, 0), (2, 1)))
    sample, shape = (tuple(value_of(n).shape[1:]) for n in (source, node))
    return MaxPool(kernel, stride, padding, dilation, sample, shape), [input_of(source, weights)]


@rule(aten.avg_pool1d.default, aten.avg_pool2d.default)
def _average_pool(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    source, kernel, *rest = args_of(node)
    dims = 1 if node.target is aten.avg_pool1d.default else 2
    kernel = each(kernel, dims)
    stride = each(rest[0], dims) if rest and rest[0] else kernel
    if dims == 2 and len(rest) > 4 and rest[4] is not None:
        raise Unsupported("another divisor than the window's")
    overlap = math.prod(-(-k // s) for k, s in zip(kernel, stride, strict=True))
    return _means(node, source, math.prod(kernel), overlap, weights)


@rule(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default)
def _adaptive_average_pool(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    source, dims = args_of(node)[0], 1 if node.target is aten.adaptive_avg_pool1d.default else 2
    sizes = [
        (int(n), int(k)) for n, k in zip(value_of(source).shape[-dims:], value_of(node).shape[-dims:], strict=True)
    ]
    count, overlap = (math.prod(-(-a // b) + 1 for a, b in pairs) for pairs in (sizes, [(k, n) for n, k in sizes]))
    return _means(node, source, count, overlap, weights)


@rule(aten.mean.dim)
def _mean(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    source, dims, *rest = args_of(node)
    if any(value is not None for value in (*rest[1:], node.kwargs.get("dtype"))):
        raise Unsupported("in another dtype")
    shape = value_of(source).shape
    dims = [d % len(shape) for d in dims]
    if 0 in dims:
        raise Unsupported("over the batch")
    return _means(node, source, math.prod(int(shape[d]) for d in dims), 1, weights)


def _means(node: Node, source: Any, count: int, overlap: int, weights: Weights) -> tuple[Layer, list[Node]]:
    function: Any = node.target
    rest, keywords = args_of(node)[1:], dict[str, Any](node.kwargs)
    sample = tuple(int(n) for n in value_of(source).shape[1:])
    return Pooling(lambda x: function(x, *rest, **keywords), sample, count, overlap), [input_of(source, weights)]


@rule(*MOVES)
def _move(node: Node, weights: Weights) -> tuple[Layer, list[Node]]:
    source = input_of(args_of(node)[0], weights)
    sample, shape = (tuple(int(n) for n in value_of(n).shape[1:]) for n in (source, node))
    return Move(order_of(node), sample, shape), [source]
