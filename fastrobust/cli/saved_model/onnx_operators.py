"""ONNX operations of classifiers in PyTorch, by the operator's specification (onnx.ai/onnx/operators).

An operation takes the inputs of its node, None where one is left out, and a dictionary of its attributes. Sizes, axes
and other whole numbers may come as constants (lists) or as int64 tensors that other operations made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["OPERATORS", "numbers"]

Attributes = Mapping[str, Any]
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def numbers(values: Any) -> list[int]:
    """Whole numbers from an attribute or a tensor."""
    return [int(v) for v in (values.flatten().tolist() if isinstance(values, Tensor) else values)]


def _number(value: Any) -> float:
    """A single number from an attribute, a constant or a tensor."""
    return float(value[0] if isinstance(value, list) else value)


def _axes(a: Attributes, given: Any) -> list[int] | None:
    """Axes are an attribute in older operator sets and an input in newer ones."""
    given = a.get("axes") if given is None else given
    return None if given is None else numbers(given)


def _pads(x: Tensor, a: Attributes, size: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """What is added before and after each spatial axis, last axis first, as `F.pad` takes it."""
    rank, mode = len(size), a.get("auto_pad", "NOTSET")
    pads = list(a.get("pads", [0] * 2 * rank)) if mode == "NOTSET" else [0] * 2 * rank
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        for k in range(rank):
            length = x.shape[2 + k]
            reach = (-(-length // strides[k]) - 1) * strides[k] + (size[k] - 1) * dilations[k] + 1
            total = max(reach - length, 0)
            less, more = total // 2, total - total // 2
            pads[k], pads[rank + k] = (less, more) if mode == "SAME_UPPER" else (more, less)
    return [end for k in reversed(range(rank)) for end in (pads[k], pads[rank + k])]


def _conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    rank = x.dim() - 2
    strides, dilations = (list(a.get(key, [1] * rank)) for key in ("strides", "dilations"))
    pads = _pads(x, a, w.shape[2:], strides, dilations)
    run: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    even = pads[::2] == pads[1::2] and min(pads) >= 0
    x = x if even else F.pad(x, pads)
    return run(x, w, b, strides, pads[::2][::-1] if even else 0, dilations, a.get("group", 1))


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    size = a["kernel_shape"]
    strides, dilations = (list(a.get(key, [1] * len(size))) for key in ("strides", "dilations"))
    x = F.pad(x, _pads(x, a, size, strides, dilations), value=-torch.inf)
    run: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(size) - 1]
    return run(x, size, strides, 0, dilations, bool(a.get("ceil_mode", 0)))


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    size = a["kernel_shape"]
    if a.get("ceil_mode", 0) or any(d != 1 for d in a.get("dilations", [])):
        raise ValueError("AveragePool with ceil_mode or dilations is not run")
    strides = list(a.get("strides", [1] * len(size)))
    pads = _pads(x, a, size, strides, [1] * len(size))
    run: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1]
    means = run(F.pad(x, pads), size, strides)
    if a.get("count_include_pad", 0) or not any(pads):
        return means
    return means / run(F.pad(torch.ones_like(x[:1, :1]), pads), size, strides)  # the share that is no padding


def _batch_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if a.get("training_mode", 0):
        raise ValueError("BatchNormalization is in training mode")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, a.get("epsilon", 1e-5))


def _gemm(a: Attributes, x: Tensor, w: Tensor, c: Tensor | None = None) -> Tensor:
    x, w = (x.t() if a.get("transA", 0) else x), (w.t() if a.get("transB", 0) else w)
    product: Tensor = a.get("alpha", 1.0) * (x @ w)
    return product if c is None else product + a.get("beta", 1.0) * c


def _reshape(a: Attributes, x: Tensor, shape: Any) -> Tensor:
    sizes = numbers(shape)
    if not a.get("allowzero", 0):
        sizes = [x.shape[k] if size == 0 else size for k, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1) % x.dim() if a.get("axis", 1) != x.dim() else x.dim()
    if axis == 1:
        return x.flatten(1)
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


def _squeeze(a: Attributes, x: Tensor, axes: Any = None) -> Tensor:
    chosen = _axes(a, axes)
    return x.squeeze() if chosen is None else x.squeeze(chosen)


def _unsqueeze(a: Attributes, x: Tensor, axes: Any = None) -> Tensor:
    chosen = _axes(a, axes) or []
    for axis in sorted(axis % (x.dim() + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def _slice(a: Attributes, x: Tensor, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    first, last = numbers(a["starts"] if starts is None else starts), numbers(a["ends"] if ends is None else ends)
    chosen = _axes(a, axes) or range(len(first))
    by = [1] * len(first) if steps is None else numbers(steps)
    for start, end, axis, step in zip(first, last, chosen, by, strict=True):
        if step < 1:
            raise ValueError("Slice with a negative step is not run")
        at = [slice(None)] * (axis % x.dim()) + [slice(start, end, step)]
        x = x[tuple(at)]
    return x


def _gather(a: Attributes, x: Tensor, at: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.dim()
    at = torch.where(at < 0, at + x.shape[axis], at)
    return x.index_select(axis, at.flatten()).reshape(*x.shape[:axis], *at.shape, *x.shape[axis + 1 :])


def _pad(a: Attributes, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    if axes is not None:
        raise ValueError("Pad of chosen axes is not run")
    ends = numbers(a["pads"] if pads is None else pads)
    flat = [end for k in reversed(range(x.dim())) for end in (ends[k], ends[x.dim() + k])]
    mode = a.get("mode", "constant")
    if mode == "constant":
        return F.pad(x, flat, value=_number(a.get("value", 0.0) if value is None else value))
    kept = flat[: 2 * (x.dim() - 2)]
    if any(flat[len(kept) :]) or mode not in ("reflect", "edge"):
        raise ValueError(f"Pad of the batch or of channels by {mode!r} is not run")
    return F.pad(x, kept, mode={"reflect": "reflect", "edge": "replicate"}[mode])


def _clip(a: Attributes, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    ends = [a.get(key) if end is None else _number(end) for key, end in (("min", low), ("max", high))]
    return x if ends == [None, None] else x.clamp(ends[0], ends[1])


def _softmax(log: bool) -> Callable[..., Tensor]:
    def run(a: Attributes, x: Tensor) -> Tensor:
        function = F.log_softmax if log else F.softmax
        if a["opset"] >= 13:
            return function(x, a.get("axis", -1))
        rows = x.flatten(a.get("axis", 1))  # over all axes from this one on
        return function(rows, -1).reshape(x.shape)

    return run


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(a: Attributes, x: Tensor, axes: Any = None) -> Tensor:
        chosen = _axes(a, axes) or []
        if not chosen and a.get("noop_with_empty_axes", 0):
            return x
        return function(x, chosen or list(range(x.dim())), keepdim=bool(a.get("keepdims", 1)))

    return run


def _dropout(a: Attributes, x: Tensor, ratio: Any = None, training: Any = None) -> Tensor:
    if training is not None and _number(training):
        raise ValueError("Dropout is in training mode")
    return x


def _split(a: Attributes, x: Tensor, sizes: Any = None) -> Any:
    sizes = a.get("split") if sizes is None else sizes
    if sizes is None:
        return x.tensor_split(a["results"], a.get("axis", 0))
    return x.split(numbers(sizes), a.get("axis", 0))


def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = a.get("axis", -1) % x.dim()
    normal = F.layer_norm(x, x.shape[axis:], None, None, a.get("epsilon", 1e-5)) * scale
    return normal if bias is None else normal + bias


def _gelu(a: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=a.get("approximate", "none"))


def _constant_of_shape(a: Attributes, shape: Any) -> Tensor:
    value = a.get("value", torch.zeros(1))
    return torch.full(numbers(shape), value.item(), dtype=value.dtype)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operation without attributes."""
    return lambda a, *x: function(*x)


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": _conv, "MaxPool": _max_pool, "AveragePool": _average_pool, "BatchNormalization": _batch_norm,
    "GlobalAveragePool": _plain(lambda x: x.mean(list(range(2, x.dim())), keepdim=True)),
    "GlobalMaxPool": _plain(lambda x: x.amax(list(range(2, x.dim())), keepdim=True)),
    "LayerNormalization": _layer_norm, "Dropout": _dropout, "Gemm": _gemm, "MatMul": _plain(torch.matmul),
    "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Slice": _slice,
    "Transpose": lambda a, x: x.permute(a.get("perm", list(range(x.dim()))[::-1])),
    "Concat": lambda a, *x: torch.cat(x, a["axis"]), "Split": _split, "Gather": _gather, "Pad": _pad,
    "Shape": lambda a, x: torch.tensor(x.shape[a.get("start", 0) : a.get("end")], device=x.device),
    "Expand": lambda a, x, shape: x.expand(torch.broadcast_shapes(x.shape, numbers(shape))),
    "ConstantOfShape": _constant_of_shape, "Identity": _plain(lambda x: x),
    "Cast": lambda a, x: x.to(DTYPES[a["to"]]),
    "Clip": _clip, "Relu": _plain(torch.relu), "Sigmoid": _plain(torch.sigmoid), "Tanh": _plain(torch.tanh),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)), "Gelu": _gelu,
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)), "PRelu": _plain(lambda x, s: torch.where(x < 0, s * x, x)),
    "Selu": lambda a, x: a.get("gamma", 1.05070102214813) * F.elu(x, a.get("alpha", 1.67326319217681)),
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": _plain(F.hardswish), "Softplus": _plain(F.softplus), "Softsign": _plain(F.softsign),
    "Softmax": _softmax(False), "LogSoftmax": _softmax(True), "Erf": _plain(torch.erf),
    "Add": _plain(torch.add), "Sub": _plain(torch.sub), "Mul": _plain(torch.mul), "Div": _plain(_divide),
    "Pow": _plain(torch.pow), "Neg": _plain(torch.neg), "Abs": _plain(torch.abs), "Sqrt": _plain(torch.sqrt),
    "Exp": _plain(torch.exp), "Log": _plain(torch.log), "Reciprocal": _plain(torch.reciprocal),
    "Min": _plain(lambda *x: torch.stack(torch.broadcast_tensors(*x)).amin(0)),
    "Max": _plain(lambda *x: torch.stack(torch.broadcast_tensors(*x)).amax(0)),
    "Sum": _plain(lambda *x: sum(x[1:], x[0])), "Where": _plain(torch.where),
    "ReduceMean": _reduce(torch.mean), "ReduceSum": _reduce(torch.sum), "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin), "ReduceL2": _reduce(lambda x, d, keepdim: x.norm(2, d, keepdim)),
}  # fmt: skip
