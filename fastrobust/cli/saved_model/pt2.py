"""Programs saved with `torch.export.save`, read without `torch.export.load`.

torch's own loader trusts the file: it unpickles parts of it, hands its expressions to `sympy.sympify` (which evaluates
them), executes its guards as Python, and looks its operations up by attribute. So the description of the graph (JSON)
and the raw bytes of the weights are read here, and only operations on our list are run. Files of torch 2.6 and later.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from ..errors import UserError
from . import pt2_operators
from .program import HERE, Program, Step, Value

__all__ = ["Graph", "is_archive", "read"]

MAJOR = 8  # of the schema, since torch 2.6
OLD = "serialized_exported_program.json"  # torch 2.6 and 2.7
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
MEMORY_FORMATS = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format,
}  # fmt: skip
PLAIN: dict[str, Any] = {"as_int": int, "as_float": (int, float), "as_bool": bool, "as_string": str}
LISTS: dict[str, Any] = {"as_ints": int, "as_floats": (int, float), "as_bools": bool, "as_strings": str}
NON_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}  # how the format writes them


@dataclass(frozen=True)
class Graph:
    """A program that was read, and what it says of itself.

    Attributes:
        program: maps a batch to logits.
        shape: of the input, the batch first; None where any size will do.
        classes: number of logits, if it is a number.
        dtype: of the input.
    """

    program: Program
    shape: tuple[int | None, ...]
    classes: int | None
    dtype: torch.dtype


def is_archive(names: list[str]) -> bool:
    """Whether a zip file with these members is a program of `torch.export`."""
    return OLD in names or any("/models/" in f"/{name}" and name.endswith(".json") for name in names)


def read(archive: ZipFile) -> Graph:
    """The program in an archive. UserError if it is not one that is run from a file; others where it is malformed."""
    if any(member.compress_type != ZIP_STORED for member in archive.infolist()):
        raise UserError("its members are compressed, which torch.export.save does not do")
    members = {name: name.removeprefix(_root(archive)) for name in archive.namelist()}
    files = {short: name for name, short in members.items()}
    if any("/custom_obj_" in name or "/opaque_obj_" in name for name in archive.namelist()):
        raise UserError("it holds pickled objects, which could run code; export a network made of tensors")
    models = [name for name in files if name == OLD or (name.startswith("models/") and name.endswith(".json"))]
    if len(models) != 1:
        raise UserError(f"it must hold one program, got {len(models)}")
    if "byteorder" in files and archive.read(files["byteorder"]) != b"little":
        raise UserError("its weights are big-endian")
    content = json.loads(archive.read(files[models[0]]))
    version = content["schema_version"]
    if version["major"] != MAJOR:
        raise UserError(
            f"its schema is {version['major']}.{version['minor']}, and only {MAJOR} is known; "
            "export it again with torch 2.6 or later"
        )
    module = content["graph_module"]
    name = models[0].removeprefix("models/").removesuffix(".json")
    held = {kind: _tensors(archive, files, kind, name) for kind in ("weights", "constants")}
    return _graph(module, held["weights"], held["constants"])


def _root(archive: ZipFile) -> str:
    """The folder that holds all members: torch names it after the file."""
    first = archive.namelist()[0].split("/")[0] + "/"
    return first if all(name.startswith(first) for name in archive.namelist()) else ""


def _tensors(archive: ZipFile, files: Mapping[str, str], kind: str, name: str) -> dict[str, Tensor]:
    """The weights, or the constants, by their name in the model."""
    old = {"weights": "serialized_state_dict.pt", "constants": "serialized_constants.pt"}[kind]
    for pickled in (f"data/{kind}/{name}.pt", old):
        if pickled in files:
            data = archive.read(files[pickled])
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True) if data else {}
            if not all(isinstance(tensor, Tensor) for tensor in found.values()):
                raise UserError(f"its {kind} must be tensors")
            return dict(found)
    config = json.loads(archive.read(files[f"data/{kind}/{name}_{kind}_config.json"]))["config"]
    return {key: _tensor(archive, files, f"data/{kind}/", entry) for key, entry in config.items()}


def _tensor(archive: ZipFile, files: Mapping[str, str], folder: str, entry: Mapping[str, Any]) -> Tensor:
    """A tensor from its raw bytes. torch checks that sizes and strides stay within them."""
    if entry["use_pickle"]:
        raise UserError("it holds a pickled tensor of a class of its own, which could run code")
    meta, data = entry["tensor_meta"], archive.read(files[folder + entry["path_name"]])
    if meta["layout"] != 7:
        raise UserError("it holds a sparse tensor")
    sizes, strides = ([dimension["as_int"] for dimension in meta[key]] for key in ("sizes", "strides"))
    dtype = DTYPES[meta["dtype"]]
    if not data:
        return torch.zeros(sizes, dtype=dtype)
    flat = torch.frombuffer(bytearray(data), dtype=dtype)
    return flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"])


def _graph(module: Mapping[str, Any], weights: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Graph:
    graph, signature = module["graph"], module["signature"]
    tensors, sources = {}, []
    for entry in signature["input_specs"]:
        ((kind, spec),) = entry.items()
        if kind in ("parameter", "buffer", "tensor_constant"):
            key = spec[f"{kind}_name"]
            tensors[spec["arg"]["name"]] = weights[key] if key in weights else constants[key]
        elif kind == "user_input" and "as_tensor" in spec["arg"]:
            sources.append(spec["arg"]["as_tensor"]["name"])
        elif kind not in ("constant_input", "user_input"):
            raise UserError(f"it takes a {kind.replace('_', ' ')}, and must take one tensor")
    if len(sources) != 1:
        raise UserError(f"it must take one tensor, got {len(sources)}")
    results = []
    for entry in signature["output_specs"]:
        ((kind, spec),) = entry.items()
        if kind != "user_output":
            raise UserError(
                f"it writes to its own state ({kind.replace('_', ' ')}); call model.eval() before exporting"
            )
        results.append(spec["arg"].get("as_tensor", {}).get("name"))
    if len(results) != 1 or results[0] is None:
        raise UserError(f"it must return one tensor of logits, got {len(results)} results")
    fixed = {*tensors, sources[0]}
    steps = [_step(node, fixed) for node in graph["nodes"]]
    program = Program(tensors, sources[0], steps, results[0])
    entering, leaving = (graph["tensor_values"][name] for name in (sources[0], results[0]))
    shape = tuple(dimension.get("as_int") for dimension in entering["sizes"])
    classes = leaving["sizes"][1].get("as_int") if len(leaving["sizes"]) == 2 else None
    return Graph(program, shape, classes, DTYPES[entering["dtype"]])


def _step(node: Mapping[str, Any], fixed: set[str]) -> Step:
    target = node["target"]
    try:
        run = pt2_operators.find(target)
    except ValueError as error:
        raise UserError(str(error)) from None
    given = [(entry["name"], _argument(entry["arg"])) for entry in node["inputs"]]
    if any(name in pt2_operators.TRAINING and value is True for name, value in given):
        raise UserError(f"{target} is in training mode; call model.eval() before exporting")
    if pt2_operators.writes(run) and isinstance(given[0][1], Value) and given[0][1].name in fixed:
        raise UserError(f"{target} writes to its input or a weight; call model.eval() before exporting")
    outputs, several = _outputs(node["outputs"])
    schema = getattr(run, "_schema", None)
    if schema is None:
        return Step(run, tuple(value for _, value in given), {}, outputs, several)
    values, args = dict(given), []
    names = [argument.name for argument in schema.arguments]
    if not set(values) <= set(names):
        raise UserError(f"{target} has no argument {sorted(set(values) - set(names))[0]!r}")
    for argument in schema.arguments:  # by position as far as it goes: some names, such as "self", cannot be keywords
        if argument.kwarg_only or argument.name not in values:
            break
        args.append(values.pop(argument.name))
    return Step(run, tuple(args), values, outputs, several)


def _argument(argument: Mapping[str, Any]) -> Any:
    """An argument as plain data, by an exhaustive list of kinds."""
    ((kind, value),) = argument.items()
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return Value(value["name"])
    if kind == "as_tensors":
        return [Value(each["name"]) for each in value]
    if kind in ("as_optional_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
        return _one(value)
    if kind in ("as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return [_one(each) for each in value]
    if kind in PLAIN:
        value = NON_FINITE.get(value, value) if kind == "as_float" else value
        if isinstance(value, PLAIN[kind]):
            return value
    if kind in LISTS:
        value = [NON_FINITE.get(each, each) if kind == "as_floats" else each for each in value]
        if all(isinstance(each, LISTS[kind]) for each in value):
            return value
    if kind == "as_scalar_type":
        return DTYPES[value]
    if kind == "as_memory_format":
        return MEMORY_FORMATS[value]
    if kind == "as_layout" and value == 7:
        return torch.strided
    if kind == "as_device":
        return HERE
    raise UserError(f"an operation takes an argument {kind!r} of a kind that is not read from a file")


def _one(value: Mapping[str, Any]) -> Any:
    """A tensor or None, a size or the name of one."""
    ((kind, inner),) = value.items()
    return Value(inner) if kind == "as_name" else _argument(value)


def _outputs(outputs: list[Mapping[str, Any]]) -> tuple[tuple[str, ...], bool]:
    """Names of what an operation makes, and whether that is a sequence."""
    if len(outputs) == 1 and "as_tensors" in outputs[0]:
        return tuple(each["name"] for each in outputs[0]["as_tensors"]), True
    names = []
    for output in outputs:
        ((kind, value),) = output.items()
        if kind == "as_none":
            names.append("")
        elif kind in ("as_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"):
            names.append(value["name"] if kind == "as_tensor" else value["as_name"])
        else:
            raise UserError(f"an operation gives a {kind!r}, which is not read from a file")
    return tuple(names), len(names) > 1
