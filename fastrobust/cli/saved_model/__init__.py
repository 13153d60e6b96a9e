"""Trained networks as files: ours, programs of `torch.export` and ONNX. Nothing in a file is executed as code.

What a file is is told by its content, not by its name.
"""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor, nn

from .. import model_file
from ..errors import UserError, describe
from . import onnx, pt2
from .program import FixedBatch

__all__ = ["SavedModel", "open_model"]

INSTEAD = "export the network with torch.export.save(torch.export.export(model.eval(), (x,)), FILE.pt2)"


@dataclass(frozen=True)
class SavedModel:
    """A network from a file.

    Attributes:
        network: maps (batch, *in_shape) to (batch, classes); on the CPU, in eval mode.
        kind: "checkpoint", "torch.export" or "ONNX".
        in_shape: a sample's shape; None in it where any size will do.
        classes: number of logits; None if the file does not say.
        dtype: of the input.
        data: the name of the data it was trained on; None if the file does not say.
        batch: the only batch size it takes by itself (then `network` cuts batches into parts of it); None for any.
    """

    network: nn.Module
    kind: str
    in_shape: tuple[int | None, ...]
    classes: int | None
    dtype: torch.dtype = torch.float32
    data: str | None = None
    batch: int | None = None


def open_model(path: Path) -> SavedModel:
    """Read a network. UserError, in one line, for a file that is not there, holds none, or could run code."""
    if not path.is_file():
        raise UserError(f"no such model file: {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about pickles, which are refused in one line of ours
            return _open(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ImportError as error:
        raise UserError(describe(error)) from error
    except Exception as error:  # zipfile, json, pickle, protobuf and torch raise many kinds on damaged files
        raise UserError(f"{path}: damaged, or not what it seems: {describe(error) or type(error).__name__}") from error


def _open(path: Path) -> SavedModel:
    with path.open("rb") as file:
        start = file.read(2)
    if is_zipfile(path):
        with ZipFile(path) as archive:
            names = archive.namelist()
            if pt2.is_archive(names):
                return _of_graph(pt2.read(archive), "torch.export")
        inner = {name.partition("/")[2] for name in names}
        if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
            raise UserError(f"a TorchScript file, which holds code that runs when it is loaded; {INSTEAD}")
        if "data.pkl" in inner:
            return _of_checkpoint(path)
        raise UserError(f"a zip file that holds no network; {INSTEAD}")
    if start[:1] == b"\x80":
        return _of_checkpoint(path)
    if start[:1] == b"\x08" or path.suffix == ".onnx":  # a protocol buffer whose first field is a number
        return _of_graph(onnx.read(path), "ONNX")
    raise UserError("not a network: it must be a file of `fastrobust train` or `demo`, of torch.export.save, or ONNX")


def _of_checkpoint(path: Path) -> SavedModel:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"it holds pickled Python objects, perhaps a whole module, which run code when they are loaded; {INSTEAD}"
        ) from None
    except (BadZipFile, RuntimeError, EOFError) as error:
        raise UserError(f"damaged: {describe(error)}") from error
    if not (isinstance(content, dict) and "architecture" in content):
        tensors = isinstance(content, dict) and any(isinstance(value, Tensor) for value in content.values())
        what = "weights only, and not the network they belong to" if tensors else "something else than a network"
        raise UserError(f"it holds {what}; {INSTEAD}")
    network, architecture, fields = model_file.load(path)
    return SavedModel(network, "checkpoint", architecture.in_shape, architecture.classes, data=fields["data"])


def _of_graph(graph: pt2.Graph, kind: str) -> SavedModel:
    if len(graph.shape) < 2:
        raise UserError(f"its input must be (batch, ...), got {graph.shape}")
    if not graph.dtype.is_floating_point:
        raise UserError(f"its input must be floating-point, got {graph.dtype}")
    network: Any = graph.program
    batch = graph.shape[0]
    if batch is not None:
        network = FixedBatch(network, batch)
    return SavedModel(network.eval(), kind, graph.shape[1:], graph.classes, graph.dtype, batch=batch)
