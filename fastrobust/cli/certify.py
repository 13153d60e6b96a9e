"""``fastrobust certify``: how much of a saved network's accuracy is proven."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from tqdm import tqdm

from fastrobust import attacks, bounds, evaluation
from fastrobust.evaluation import certify_report
from fastrobust.evaluation.environment import environment
from fastrobust.network import CaptureError

from . import smoothing
from .arguments import whole
from .errors import UserError, user_input
from .target import add_arguments, open_target, settings

EXAMPLES = """examples:
  fastrobust certify runs/pgd/model.pt --eps 0.01 0.02 0.05 --limit 100
  fastrobust certify net.pt2 --data images:photos --norm L2 --eps 0.25 0.5
  fastrobust certify net.onnx --data npz:points.npz --eps 2/255 --cascade crown --sound exact
  fastrobust certify runs/noisy/model.pt --method smoothing --sigma 0.25 --eps 0.25 0.5
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser of all commands."""
    parser = commands.add_parser(
        "certify",
        help="prove a trained network's accuracy, and report what is proven",
        description="Prove a saved network's accuracy with bounds that hold in floating point, and attack what is not\n"
        "proven; or certify the smoothed classifier made of it, by votes under noise. Nothing in a model file is\n"
        "executed as code.",
        epilog=EXAMPLES,
    )
    add_arguments(parser, ("Linf", "L2", "L1"), batch_size=64, required=False)
    parser.set_defaults(norm=None, seed=None)
    parser.add_argument("--method", default="bounds", choices=("bounds", "smoothing"), help="how to certify")
    add = parser.add_argument_group("bounds", "of norm Linf and seed 0 if not given").add_argument
    add("--cascade", nargs="+", default=bounds.CASCADE, choices=bounds.CASCADE, metavar="METHOD",
        help=f"bounds to try in turn, of {', '.join(bounds.CASCADE)}")  # fmt: skip
    add("--sound", default="float32", choices=("float32", "exact"), help="what the proof holds for")
    add("--attack-steps", type=whole, default=20, metavar="N", help="PGD steps for counterexamples; 0: no attack")
    smoothing.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Certify, print the table, write the files."""
    if args.method == "smoothing":
        return smoothing.run(args)
    if args.eps is None:
        raise UserError("--eps: needed by --method bounds")
    args.norm, args.seed = args.norm or "Linf", args.seed or 0
    target = open_target(args, "certify")
    network, x, y = target.network, target.x, target.y
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
    results = {
        "schema": certify_report.SCHEMA,
        **target.about,
        "clean": evaluation.accuracy(network, x, y),
        "guarantee": found.guarantee,
        "settings": settings(args, cascade=list(args.cascade), sound=args.sound, attack_steps=args.attack_steps),
        "curve": certify_report.curve(found),
        "points": certify_report.points(found),
        "seconds": time.perf_counter() - began,
        "environment": environment(),
    }
    print(certify_report.text(results))
    with user_input():
        for missing in certify_report.write(results, target.out):
            print(f"fastrobust certify: {missing}", file=sys.stderr)
    print(f"{results['seconds']:.1f} s, {target.out}")
    return 0
