"""``fastrobust attack``: how much of a saved network's accuracy is left under an attack."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrobust import data, evaluation
from fastrobust.evaluation import attack_report
from fastrobust.evaluation.environment import environment

from .arguments import DATA_HELP, count, number, real, whole
from .attackers import ATTACKS, options_of
from .attackers import run as attack
from .errors import UserError, describe, user_input
from .saved_model import SavedModel, open_model

EXAMPLES = """examples:
  fastrobust attack runs/pgd/model.pt --eps 0.1 0.2 0.3
  fastrobust attack net.pt2 --data images:photos --norm L2 --attack fmn --eps 0.25 0.5 1
  fastrobust attack net.onnx --data npz:points.npz --box -1 1 --attack autoattack --eps 8/255 --state net.state
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser of all commands."""
    parser = commands.add_parser(
        "attack",
        help="attack a trained network and report what is left of its accuracy",
        description="Attack a saved network. Several eps make a curve: a sample broken at a smaller eps counts as\n"
        "broken at a larger one. Nothing in a model file is executed as code.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="model.pt of `train` or `demo`; torch.export's .pt2; .onnx")
    add("--data", metavar="NAME", help=f"{DATA_HELP}, or npz:FILE (arrays x and y); a model.pt knows its own")
    add("--split", default="test", choices=("test", "val", "train"), help="which part of it; npz:FILE has but one")
    add("--limit", type=count, metavar="N", help="only N samples, all classes alike")
    add("--norm", default="Linf", choices=("Linf", "L2", "L1", "L0"), help="norm of the ball")
    add("--eps", type=number, nargs="+", required=True, metavar="X", help="radii, such as 0.2 or 8/255")
    add("--box", type=real, nargs=2, default=(0.0, 1.0), metavar=("LO", "HI"), help="valid inputs")
    add("--attack", default="pgd", choices=tuple(ATTACKS), help="the attack")
    add("--steps", type=count, metavar="N", help="its steps; the usual number when not given")
    add("--alpha", type=number, metavar="X", help="step size of pgd; 2.5 eps / steps when not given")
    add("--restarts", type=count, metavar="N", help="random starts; 1 when not given")
    add("--loss", choices=("ce", "margin", "dlr"), help="what pgd and apgd maximise; ce when not given")
    add("--queries", type=count, metavar="N", help="queries of square; 5000 when not given")
    add("--state", type=Path, metavar="FILE", help="from where a killed autoattack continues")
    add("--batch-size", type=count, default=250, metavar="N", help="samples at a time")
    add("--seed", type=whole, default=0, metavar="N", help="seed of the random draws")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where to run")
    add("--out", type=Path, metavar="FOLDER", help="where the results go; MODEL.attack when not given")
    add("--save-points", action="store_true", help="write the adversarial points, too")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Attack, print the table, write the files."""
    options = options_of(args)
    if args.box[0] >= args.box[1]:
        raise UserError(f"--box: LO must be below HI, got {args.box[0]:g} {args.box[1]:g}")
    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here")
    device, saved = torch.device(args.device), open_model(args.model)
    with user_input():
        name, x, y = points(args, saved)
    network = saved.network.to(device)
    x, y = x.to(device, saved.dtype), y.to(device)
    classes = check(args.model, saved, x[:2], int(y.max()) + 1)
    out = args.out or args.model.with_name(f"{args.model.name}.attack")
    with user_input():
        out.mkdir(parents=True, exist_ok=True)
    if saved.batch is not None and args.batch_size % saved.batch:
        note(args, f"the model takes {saved.batch} samples at a time; export it with a dynamic batch to go faster")
    radii = sorted({0.0, *args.eps})
    began = time.perf_counter()
    try:
        found = attack(network, x, y, args, options, radii)
    except KeyboardInterrupt:
        left = "nothing was written" if args.state is None else f"the same command continues from {args.state}"
        print(f"\ninterrupted; {left}", file=sys.stderr)
        return 130
    with user_input():
        digest = hashlib.sha256(args.model.read_bytes()).hexdigest()
    results = {
        "schema": attack_report.SCHEMA,
        "model": {"path": str(args.model), "sha256": digest, "kind": saved.kind,
                  "in_shape": list(x.shape[1:]), "classes": classes},
        "data": name,
        "samples": len(x),
        "settings": {"attack": args.attack, "norm": args.norm, "box": list(args.box), "seed": args.seed, **options,
                     "minimum_norm": ATTACKS[args.attack].minimum_norm, "split": args.split, "limit": args.limit,
                     "batch_size": args.batch_size, "device": str(device)},
        "curve": attack_report.curve(radii, found.correct),
        "broken_at": attack_report.finite(found.broken_at),
        **found.notes,
        "seconds": time.perf_counter() - began,
        "environment": environment(),
    }  # fmt: skip
    print(attack_report.text(results))
    with user_input():
        for missing in attack_report.write(results, out):
            print(f"fastrobust attack: {missing}", file=sys.stderr)
        if args.save_points:
            attack_report.save_points(out, x, found.x_adv, y, found.broken_at)
    print(f"{results['seconds']:.1f} s, {out}")
    return 0


def note(args: argparse.Namespace, text: str) -> None:
    """One line on stderr, unless it is to be quiet."""
    if not args.quiet:
        print(f"fastrobust attack: {text}", file=sys.stderr)


def points(args: argparse.Namespace, saved: SavedModel) -> tuple[str, Tensor, Tensor]:
    """The data's name, and the points (n, ...) and labels (n,) to attack. UserError if they do not fit the model."""
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
    if args.limit:
        rows = data.split_rows(y, (min(args.limit, len(x)),))[0]
        x, y = x[rows], y[rows]
    low, high = x.min().item(), x.max().item()
    if low < args.box[0] or high > args.box[1]:
        raise UserError(f"--box: {name} has values in [{low:g}, {high:g}], outside {args.box[0]:g} to {args.box[1]:g}")
    return name, x, y


def check(path: Path, saved: SavedModel, x: Tensor, classes: int) -> int:
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
