"""``python -m benchmarks.suite [SECTION ...] [--seeds N] [--points N]``: attacks beside their official or public code.

The network is the robust one of `make demo` (out/robust.pt: a small CNN adversarially trained on MNIST-5k, Linf 0.2),
the points the first of its test split. Both sides run in one process and take turns; each ratio is the median over the
rounds. The peers must import: autoattack (github.com/fra31/auto-attack), adv_lib (adversarial-library), foolbox,
torchattacks, art (adversarial-robustness-toolbox). Results go to benchmarks/results/suite.json, with --page also the
tables between the marks of docs/attacks/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import black_box, patches, peers, savings
from benchmarks.turns import Lines, Problem, put
from fastrobust.evaluation.environment import environment

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "suite.json", HERE.parent / "docs" / "attacks" / "benchmarks.md"
SECTIONS: dict[str, Callable[[Problem], tuple[Lines, Any]]] = {
    "autoattack": peers.autoattack, "apgd": peers.apgd, "minimum": peers.minimum,
    "square": black_box.square, "hopskipjump": black_box.hopskipjump, "transfer": black_box.transfer,
    "patch": patches.patches,
    "cycles": savings.cycles, "waste": savings.waste, "sweeps": savings.sweeps,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all if none")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--queries", type=int, nargs="+", default=[1000, 5000], help="of Square in AutoAttack")
    parser.add_argument("--checkpoint", type=Path, default=HERE.parent / "out" / "robust.pt")
    parser.add_argument("--page", action="store_true", help="replace the tables in docs/attacks/benchmarks.md")
    args = parser.parse_args(arguments)
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(unknown)}")
    problem = Problem(args.checkpoint, args.points, args.seeds, args.queries)
    RESULTS.parent.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.sections or SECTIONS:
        lines, record = SECTIONS[name](problem)
        print(f"\n{name}\n" + "\n".join(lines), flush=True)
        results[name] = {"environment": environment(), "points": args.points, "rows": record}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        if args.page:
            put(PAGE, name, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
