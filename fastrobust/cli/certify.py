"""``fastrobust certify``: how much of a saved network's accuracy is proven."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastrobust import attacks, bounds, evaluation
from fastrobust.evaluation import certify_report
from fastrobust.evaluation.environment import environment
from fastrobust.network import CaptureError

from .arguments import DATA_HELP, count, number, real, whole
from .attack import check, points
from .errors import UserError, user_input
from .saved_model import open_model

EXAMPLES = """examples:
  fastrobust certify runs/pgd/model.pt --eps 0.01 0.02 0.05 --limit 100
  fastrobust certify net.pt2 --data images:photos --norm L2 --eps 0.25 0.5
  fastrobust certify net.onnx --data npz:points.npz --eps 2/255 --cascade crown --sound exact
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser of all commands."""
    parser = commands.add_parser(
        "certify",
        help="prove a trained network's accuracy, and report what is proven",
        description="Prove a saved network's accuracy with bounds that hold in floating point, and attack what is not\n"
        "proven. Nothing in a model file is executed as code.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="model.pt of `train` or `demo`; torch.export's .pt2; .onnx")
    add("--data", metavar="NAME", help=f"{DATA_HELP}, or npz:FILE (arrays x and y); a model.pt knows its own")
    add("--split", default="test", choices=("test", "val", "train"), help="which part of it; npz:FILE has but one")
    add("--limit", type=count, metavar="N", help="only N samples, all classes alike")
    add("--norm", default="Linf", choices=("Linf", "L2", "L1"), help="norm of the ball")
    add("--eps", type=number, nargs="+", required=True, metavar="X", help="radii, such as 0.02 or 2/255")
    add("--box", type=real, nargs=2, default=(0.0, 1.0), metavar=("LO", "HI"), help="valid inputs")
    add("--cascade", nargs="+", default=bounds.CASCADE, choices=bounds.CASCADE, metavar="METHOD",
        help=f"bounds to try in turn, of {', '.join(bounds.CASCADE)}")  # fmt: skip
    add("--sound", default="float32", choices=("float32", "exact"), help="what the proof holds for")
    add("--attack-steps", type=whole, default=20, metavar="N", help="PGD steps for counterexamples; 0: no attack")
    add("--batch-size", type=count, default=64, metavar="N", help="samples at a time")
    add("--seed", type=whole, default=0, metavar="N", help="seed of the attack")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where to run")
    add("--out", type=Path, metavar="FOLDER", help="where the results go; MODEL.certify when not given")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Certify, print the table, write the files."""
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
    out = args.out or args.model.with_name(f"{args.model.name}.certify")
    with user_input():
        out.mkdir(parents=True, exist_ok=True)
    began, radii = time.perf_counter(), sorted({0.0, *args.eps})
    hide = True if args.quiet else None  # None: where stderr is no terminal
    with tqdm(total=len(x) * len(radii), unit="point", disable=hide, file=sys.stderr) as bar:

        def progress(eps: float, done: int, total: int, certified: int) -> None:
            bar.set_postfix_str(f"eps {eps:.4g}, certified so far {certified / total:.1%}", refresh=False)
            bar.update(max(0, radii.index(eps) * total + done - bar.n))

        def attack_at(eps: float) -> attacks.PGD:
            alpha = 2.5 * eps / args.attack_steps
            return attacks.PGD(network, norm=args.norm, eps=eps, alpha=alpha, steps=args.attack_steps,
                               box=tuple(args.box), seed=args.seed)  # fmt: skip

        try:
            found = evaluation.sandwich(
                network, x, y, radii, args.norm, tuple(args.box), cascade=args.cascade, sound=args.sound,
                attack_at=attack_at if args.attack_steps else None, batch_size=args.batch_size, progress=progress,
            )  # fmt: skip
        except (CaptureError, ValueError) as error:
            raise UserError(f"{args.model}: {error}") from error
    with user_input():
        digest = hashlib.sha256(args.model.read_bytes()).hexdigest()
    results = {
        "schema": certify_report.SCHEMA,
        "model": {"path": str(args.model), "sha256": digest, "kind": saved.kind,
                  "in_shape": list(x.shape[1:]), "classes": classes},
        "data": name,
        "samples": len(x),
        "clean": evaluation.accuracy(network, x, y),
        "guarantee": found.guarantee,
        "settings": {"norm": args.norm, "box": list(args.box), "cascade": list(args.cascade), "sound": args.sound,
                     "attack_steps": args.attack_steps, "seed": args.seed, "split": args.split, "limit": args.limit,
                     "batch_size": args.batch_size, "device": str(device)},
        "curve": certify_report.curve(found),
        "points": certify_report.points(found),
        "seconds": time.perf_counter() - began,
        "environment": environment(),
    }  # fmt: skip
    print(certify_report.text(results))
    with user_input():
        for missing in certify_report.write(results, out):
            print(f"fastrobust certify: {missing}", file=sys.stderr)
    print(f"{results['seconds']:.1f} s, {out}")
    return 0
