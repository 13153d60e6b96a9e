"""ONNX files, read with the `onnx` package and run by operations of our own.

A file is data: protocol buffers, and no code is made of it. Weights in files beside it are read only from its own
folder. Converters exist (onnx2torch); they generate Python from the file's names, and that one needs torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrobust.data.optional import need

from ..errors import UserError
from .onnx_operators import DTYPES, OPERATORS
from .program import Program, Step, Value
from .pt2 import Graph

__all__ = ["read"]

# Inputs that say how, not what: numbers, given as plain lists where they are constants.
NUMBERS = {
    "Clip": (1, 2), "ConstantOfShape": (0,), "Dropout": (1, 2), "Expand": (1,), "Pad": (1, 2), "ReduceL2": (1,),
    "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,), "ReduceSum": (1,), "Reshape": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Unsqueeze": (1,),
}  # fmt: skip
OPSETS = (7, 24)  # whose meaning of the operations above is known


def read(path: Path) -> Graph:
    """The network in an ONNX file. UserError if it is not one that is run; others where it is malformed."""
    onnx: Any = need("onnx", "onnx", "reading ONNX files", "onnx")
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    if not graph.node:
        raise UserError("it holds no network")
    if len(model.functions):
        raise UserError("it defines functions of its own; inline them with onnx.inliner.inline_local_functions")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise UserError(f"its operator set is {opset}, and {OPSETS[0]} to {OPSETS[1]} are known")
    if len(graph.sparse_initializer):
        raise UserError("it holds sparse weights")
    tensors = {entry.name: _tensor(onnx, entry, path) for entry in graph.initializer}
    inputs = [entry for entry in graph.input if entry.name not in tensors]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise UserError(f"it must have one input and one output, got {len(inputs)} and {len(graph.output)}")
    steps = []
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise UserError(f"it uses {node.op_type!r} of {node.domain!r}, an operation outside the standard")
        if node.op_type == "Constant":
            tensors[node.output[0]] = _constant(_attributes(onnx, node, path))
        else:
            steps.append(_step(onnx, node, opset, tensors, path))
    source, result = inputs[0], graph.output[0]
    if source.type.tensor_type.elem_type not in DTYPES:
        raise UserError("its input must be a tensor of floating-point numbers")
    leaving = _shape(result)
    return Graph(
        Program(tensors, source.name, steps, result.name), _shape(source),
        leaving[1] if len(leaving) == 2 else None, DTYPES[source.type.tensor_type.elem_type],
    )  # fmt: skip


def _shape(value: Any) -> tuple[int | None, ...]:
    kind = value.type.tensor_type
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim)


def _step(onnx: Any, node: Any, opset: int, tensors: Mapping[str, Tensor], path: Path) -> Step:
    if node.op_type not in OPERATORS:
        raise UserError(f"it uses {node.op_type!r}, which is not among the operations that are run from a file")
    attributes = _attributes(onnx, node, path) | {"opset": opset, "results": len(node.output)}
    inputs: list[Any] = []
    for position, name in enumerate(node.input):
        if position in NUMBERS.get(node.op_type, ()) and name in tensors:
            inputs.append(tensors[name].flatten().tolist())
        else:
            inputs.append(Value(name) if name else None)
    wanted = [name for name in node.output if name]
    if len(wanted) > 1 and node.op_type != "Split":
        raise UserError(f"it uses more than the first result of {node.op_type!r}")
    return Step(OPERATORS[node.op_type], (attributes, *inputs), {}, tuple(node.output[: max(1, len(wanted))]),
                node.op_type == "Split")  # fmt: skip


def _attributes(onnx: Any, node: Any, path: Path) -> dict[str, Any]:
    found = {}
    for entry in node.attribute:
        if entry.ref_attr_name or entry.type in (entry.GRAPH, entry.GRAPHS, entry.SPARSE_TENSOR, entry.SPARSE_TENSORS):
            raise UserError(f"{node.op_type!r} holds a graph, or something else that is not read from a file")
        value = onnx.helper.get_attribute_value(entry)
        if entry.type == entry.TENSOR:
            value = _tensor(onnx, value, path)
        found[entry.name] = value.decode() if isinstance(value, bytes) else value
    return found


def _constant(attributes: Mapping[str, Any]) -> Tensor:
    ((kind, value),) = attributes.items()
    if kind not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise UserError(f"a constant is a {kind!r}")
    return value if isinstance(value, Tensor) else torch.tensor(value)


def _tensor(onnx: Any, entry: Any, path: Path) -> Tensor:
    if entry.data_location == entry.EXTERNAL:
        entry.raw_data = _beside(entry, path)
        entry.data_location = entry.DEFAULT
        del entry.external_data[:]
    if entry.data_type not in DTYPES:
        raise UserError(f"the weight {entry.name!r} has the type {entry.data_type}, which is not read from a file")
    array = onnx.numpy_helper.to_array(entry)
    if entry.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(array.astype("float32")).bfloat16()
    return torch.from_numpy(array.copy())


def _beside(entry: Any, path: Path) -> bytes:
    """The bytes of a weight that lies in another file, which must be in the model's folder, and no link out of it."""
    where = {pair.key: pair.value for pair in entry.external_data}
    name = where.get("location", "")
    file = path.parent / name
    if not name or name != Path(name).name or name in (".", "..") or file.is_symlink() or not file.is_file():
        raise UserError(f"the weight {entry.name!r} must lie in a file in the model's own folder, got {name!r}")
    offset, length = int(where.get("offset", 0)), int(where.get("length", -1))
    if offset < 0 or offset + max(length, 0) > file.stat().st_size:
        raise UserError(f"the weight {entry.name!r} ends after the end of {name!r}")
    with file.open("rb") as opened:
        opened.seek(offset)
        data: bytes = opened.read(length)
        return data
