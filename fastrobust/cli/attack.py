"""``fastrobust attack``: how much of a network's accuracy is left under PGD."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from fastrobust import data, evaluation
from fastrobust.attacks import PGD
from fastrobust.evaluation.environment import environment
from fastrobust.training.checkpoint import write_atomic

from . import model_file
from .arguments import DATA_HELP, count, number, whole
from .errors import UserError, user_input


def add_parser(commands: Any) -> None:
    """Add the command to the parser of all commands."""
    parser = commands.add_parser(
        "attack",
        help="attack a trained network and report what is left of its accuracy",
        description="Attack a network of `fastrobust train` or `demo` with PGD. Several eps make a curve:\n"
        "a sample broken at a smaller eps counts as broken at a larger one.",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="model.pt, robust.pt, ...")
    parser.add_argument("--data", metavar="NAME", help=f"{DATA_HELP}; the checkpoint's own when not given")
    parser.add_argument("--split", default="test", choices=("test", "val", "train"), help="which part of it")
    parser.add_argument("--limit", type=count, metavar="N", help="only N samples, all classes alike")
    parser.add_argument("--eps", type=number, nargs="+", required=True, metavar="X", help="radii, such as 0.2 or 8/255")
    parser.add_argument("--norm", default="Linf", choices=("Linf", "L2", "L1"), help="norm of the ball")
    parser.add_argument("--steps", type=count, default=20, metavar="N", help="steps")
    parser.add_argument("--alpha", type=number, metavar="X", help="step size; 2.5 eps / steps when not given")
    parser.add_argument("--restarts", type=count, default=1, metavar="N", help="random starts")
    parser.add_argument("--loss", default="ce", choices=("ce", "margin", "dlr"), help="what the attack maximises")
    parser.add_argument("--batch-size", type=count, default=250, metavar="N", help="samples at a time")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the random starts")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results; CHECKPOINT.attack.json when not given")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Attack, print the table, write the JSON."""
    model, architecture, content = model_file.load(args.checkpoint)
    name = args.data or content["data"]
    with user_input():
        part = getattr(data.load(name), args.split)
    if part.in_shape != architecture.in_shape or part.classes != architecture.classes:
        raise UserError(
            f"{args.checkpoint} takes inputs {architecture.in_shape} of {architecture.classes} classes, but "
            f"{name} has {part.in_shape} of {part.classes}"
        )
    if args.limit:
        part = data.split(part, (min(args.limit, len(part)),))[0]
    eps = sorted({0.0, *args.eps})
    began = time.perf_counter()

    def attack_at(e: float) -> PGD:
        return PGD(
            model,
            eps=e,
            alpha=2.5 * e / args.steps if args.alpha is None else args.alpha,
            steps=args.steps,
            norm=args.norm,
            restarts=args.restarts,
            loss=args.loss,
            seed=args.seed,
            early_stop=True,
        )

    result = evaluation.sweep(model, part.images, part.labels, attack_at, eps, args.batch_size)
    seconds = time.perf_counter() - began
    restarts = "" if args.restarts == 1 else f", {args.restarts} restarts"
    print(f"{args.checkpoint} on {len(part)} samples of {name} ({args.split}), {args.norm} PGD-{args.steps}{restarts}")
    for e, share in zip(result.eps, result.accuracy, strict=True):
        print(f"  eps {e:<8.5g} {100 * share:6.1f}%{'  clean' if e == 0 else ''}")
    out = args.out or args.checkpoint.with_suffix(".attack.json")
    settings = {key: getattr(args, key) for key in ("split", "norm", "steps", "alpha", "restarts", "loss", "seed")}
    results = {
        "schema": 1,
        "checkpoint": str(args.checkpoint),
        "data": name,
        "samples": len(part),
        "settings": settings,
        "eps": list(result.eps),
        "accuracy": list(result.accuracy),
        "seconds": seconds,
        "environment": environment(),
    }
    with user_input():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, json.dumps(results, indent=1) + "\n")
    print(f"{seconds:.1f} s, {out}")
    return 0
