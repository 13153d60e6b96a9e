"""What `attack` and `certify` are given alike: a saved network, points that fit it, and a folder for the results."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrobust import data, evaluation

from .arguments import DATA_HELP, count, number, real, whole
from .errors import UserError, describe, user_input
from .saved_model import SavedModel, open_model


class Target(NamedTuple):
    """A network and points (n, ...) with labels (n,), on the device that was asked for."""

    network: nn.Module
    x: Tensor
    y: Tensor
    out: Path
    about: dict[str, Any]
    """What the results say of them: the keys model, data, samples."""
    batch: int | None
    """How many samples the network takes at a time, if it is fixed."""
    rows: Tensor
    """(n,) int64: the points' numbers in their part of the data."""


def add_arguments(
    parser: argparse.ArgumentParser, norms: tuple[str, ...], batch_size: int, required: bool = True
) -> None:
    """Add the arguments that say what is attacked or certified, where, and where the results go."""
    add, folder = parser.add_argument, f"MODEL.{parser.prog.split()[-1]}"
    add("model", type=Path, metavar="MODEL", help="model.pt of `train` or `demo`; torch.export's .pt2; .onnx")
    add("--data", metavar="NAME", help=f"{DATA_HELP}, or npz:FILE (arrays x and y); a model.pt knows its own")
    add("--split", default="test", choices=("test", "val", "train"), help="which part of it; npz:FILE has but one")
    add("--limit", type=count, metavar="N", help="only N samples, all classes alike")
    add("--norm", default="Linf", choices=norms, help="norm of the ball")
    add("--eps", type=number, nargs="+", required=required, metavar="X", help="radii, such as 0.02 or 8/255")
    add("--box", type=real, nargs=2, default=(0.0, 1.0), metavar=("LO", "HI"), help="valid inputs")
    add("--batch-size", type=count, default=batch_size, metavar="N", help="samples at a time")
    add("--seed", type=whole, default=0, metavar="N", help="seed of the random draws")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where to run")
    add("--out", type=Path, metavar="FOLDER", help=f"where the results go; {folder} when not given")
    add("--quiet", action="store_true", help="no progress bar")


def open_target(args: argparse.Namespace, command: str) -> Target:
    """Read the model and its points, and make the folder. UserError if anything does not fit."""
    if args.box[0] >= args.box[1]:
        raise UserError(f"--box: LO must be below HI, got {args.box[0]:g} {args.box[1]:g}")
    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here")
    device, saved = torch.device(args.device), open_model(args.model)
    with user_input():
        name, x, y, rows = _points(args, saved)
        digest = hashlib.sha256(args.model.read_bytes()).hexdigest()
    network = saved.network.to(device)
    x, y = x.to(device, saved.dtype), y.to(device)
    classes = _check(args.model, saved, x[:2], int(y.max()) + 1)
    out = args.out or args.model.with_name(f"{args.model.name}.{command}")
    with user_input():
        out.mkdir(parents=True, exist_ok=True)
    about = {
        "model": {"path": str(args.model), "sha256": digest, "kind": saved.kind,
                  "in_shape": list(x.shape[1:]), "classes": classes},
        "data": name,
        "samples": len(x),
    }  # fmt: skip
    return Target(network, x, y, out, about, saved.batch, rows)


def settings(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What the results say of how it was done."""
    common = {"norm": args.norm, "box": list(args.box), "seed": args.seed, "split": args.split, "limit": args.limit,
              "batch_size": args.batch_size, "device": args.device}  # fmt: skip
    return {**more, **common}


def _points(args: argparse.Namespace, saved: SavedModel) -> tuple[str, Tensor, Tensor, Tensor]:
    """The data's name, and points (n, ...), labels and numbers (n,). UserError if they do not fit the model."""
    name = args.data or saved.data
    if name is None:
        raise UserError(f"--data: needed, since a file of {saved.kind} does not say what it was trained on")
    if name.startswith("npz:"):
        x, y = data.read_npz(name.removeprefix("npz:"))
        classes = int(y.max()) + 1
    else:
        part = getattr(data.load(name), args.split)
        x, y, classes = part.images, part.labels, part.classes
    shape = tuple(x.shape[1:])
    fits = len(shape) == len(saved.in_shape) and all(b in (None, a) for a, b in zip(shape, saved.in_shape, strict=True))
    if not fits or (saved.classes is not None and classes > saved.classes):
        wants = tuple("any" if size is None else size for size in saved.in_shape)
        of = "" if saved.classes is None else f" of {saved.classes} classes"
        raise UserError(f"{args.model} takes inputs {wants}{of}, but {name} has {shape} of {classes}")
    if not len(x):
        raise UserError(f"--split: {name} has no sample in {args.split}")
    rows = torch.arange(len(x))
    if args.limit:
        rows = data.split_rows(y, (min(args.limit, len(x)),))[0]
        x, y = x[rows], y[rows]
    low, high = x.min().item(), x.max().item()
    if low < args.box[0] or high > args.box[1]:
        raise UserError(f"--box: {name} has values in [{low:g}, {high:g}], outside {args.box[0]:g} to {args.box[1]:g}")
    return name, x, y, rows


def _check(path: Path, saved: SavedModel, x: Tensor, classes: int) -> int:
    """The number of logits. UserError if the network does not run on x, or not in a way that can be attacked."""
    x = x.detach().clone().requires_grad_()
    try:
        with evaluation.eval_mode(saved.network):
            logits: Any = saved.network(x)
    except Exception as error:  # what a file makes torch do can fail in any way
        raise UserError(f"{path} does not run on inputs {tuple(x.shape)}: {describe(error)}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] < classes:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{path} must return logits ({len(x)}, {classes} or more), got {got}")
    if not logits.is_floating_point() or not logits.requires_grad:
        raise UserError(f"{path} must return floating-point logits with a gradient with respect to its input")
    return logits.shape[1]
