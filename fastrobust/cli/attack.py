"""``fastrobust attack``: how much of a saved network's accuracy is left under an attack."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from fastrobust.evaluation import attack_report
from fastrobust.evaluation.environment import environment

from .arguments import count, number
from .attackers import ATTACKS, options_of
from .attackers import run as attack
from .errors import user_input
from .target import add_arguments, open_target, settings

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
    add_arguments(parser, ("Linf", "L2", "L1", "L0"), batch_size=250)
    add = parser.add_argument
    add("--attack", default="pgd", choices=tuple(ATTACKS), help="the attack")
    add("--steps", type=count, metavar="N", help="its steps; the usual number when not given")
    add("--alpha", type=number, metavar="X", help="step size of pgd; 2.5 eps / steps when not given")
    add("--restarts", type=count, metavar="N", help="random starts; 1 when not given")
    add("--loss", choices=("ce", "margin", "dlr"), help="what pgd and apgd maximise; ce when not given")
    add("--queries", type=count, metavar="N", help="queries of square; 5000 when not given")
    add("--state", type=Path, metavar="FILE", help="from where a killed autoattack continues")
    add("--save-points", action="store_true", help="write the adversarial points, too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Attack, print the table, write the files."""
    options = options_of(args)
    target = open_target(args, "attack")
    if target.batch is not None and args.batch_size % target.batch:
        note(args, f"the model takes {target.batch} samples at a time; export it with a dynamic batch to go faster")
    radii = sorted({0.0, *args.eps})
    began = time.perf_counter()
    try:
        found = attack(target.network, target.x, target.y, args, options, radii)
    except KeyboardInterrupt:
        left = "nothing was written" if args.state is None else f"the same command continues from {args.state}"
        print(f"\ninterrupted; {left}", file=sys.stderr)
        return 130
    results = {
        "schema": attack_report.SCHEMA,
        **target.about,
        "settings": settings(args, attack=args.attack, **options, minimum_norm=ATTACKS[args.attack].minimum_norm),
        "curve": attack_report.curve(radii, found.correct),
        "broken_at": attack_report.finite(found.broken_at),
        **found.notes,
        "seconds": time.perf_counter() - began,
        "environment": environment(),
    }
    print(attack_report.text(results))
    with user_input():
        for missing in attack_report.write(results, target.out):
            print(f"fastrobust attack: {missing}", file=sys.stderr)
        if args.save_points:
            attack_report.save_points(target.out, target.x, found.x_adv, target.y, found.broken_at)
    print(f"{results['seconds']:.1f} s, {target.out}")
    return 0


def note(args: argparse.Namespace, text: str) -> None:
    """One line on stderr, unless it is to be quiet."""
    if not args.quiet:
        print(f"fastrobust attack: {text}", file=sys.stderr)
