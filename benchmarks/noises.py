"""``python -m benchmarks.noises [--page]``: radii of all noises at equal standard deviation.

For CIFAR-10's 3072 elements and a standard deviation of 1 an element: the radius against the lower bound of the class's
probability, in each norm. Nothing is drawn: these are the formulas. With --page the tables go to
docs/smoothing/noises.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.turns import Lines, put
from fastrobust.smoothing import Exp1, Exp2, ExpInf, Gaussian, Laplace, Pow1, Pow2, PowInf, Uniform, UniformBall
from fastrobust.smoothing.scaled import Scaled

PAGE = Path(__file__).resolve().parents[1] / "docs" / "smoothing" / "noises.md"
DIM = 3072
P = (0.6, 0.75, 0.9, 0.99, 0.999, 0.9999)
NOISES: dict[str, list[tuple[str, Gaussian | Scaled]]] = {
    "L1": [
        ("`Uniform`", Uniform(1)),
        ("`ExpInf`, k = 1", ExpInf(1, norm="L1")),
        ("`ExpInf`, k = 10", ExpInf(1, k=10, norm="L1")),
        ("`ExpInf`, k = 10, j = 1000", ExpInf(1, k=10, j=1000, norm="L1")),
        ("`PowInf`, a = d + 1000", PowInf(1, a=DIM + 1000, norm="L1")),
        ("`Laplace`", Laplace(1)),
        ("`Exp1`, k = 4", Exp1(1, k=4)),
        ("`Pow1`, a = d + 1000", Pow1(1, a=DIM + 1000)),
        ("`Gaussian` (its radius in L2)", Gaussian(1)),
    ],
    "L2": [
        ("`Gaussian`", Gaussian(1)),
        ("`Exp2`, k = 1", Exp2(1)),
        ("`Exp2`, k = 2, j = 2048", Exp2(1, k=2, j=2048)),
        ("`Exp2`, k = 2, j = 3064", Exp2(1, k=2, j=3064)),
        ("`Pow2`, k = 2, a = d/2 + 100", Pow2(1, k=2, a=DIM / 2 + 100)),
        ("`Pow2`, k = 2, a = d/2 + 4", Pow2(1, k=2, a=DIM / 2 + 4)),
        ("`UniformBall`", UniformBall(1)),
    ],
    "Linf": [
        ("`Gaussian` (its radius in L2, over sqrt(d))", Gaussian(1)),
        ("`Laplace`", Laplace(1, norm="Linf")),
        ("`ExpInf`, k = 1", ExpInf(1)),
        ("`ExpInf`, k = 8", ExpInf(1, k=8)),
        ("`PowInf`, a = d + 1000", PowInf(1, a=DIM + 1000)),
        ("`Uniform`", Uniform(1, norm="Linf")),
    ],
}


def radii(noise: Gaussian | Scaled, norm: str) -> list[float]:
    at = noise if isinstance(noise, Gaussian) else noise.at_deviation(1.0, DIM)
    other = {("L2", "Linf"): DIM**-0.5}.get((noise.norm, norm), 1.0)
    return [other * float(r) for r in at.radius(np.array(P), DIM)]


def table(norm: str) -> Lines:
    factor = 1000 if norm == "Linf" else 1
    rows = [(label, radii(noise, norm)) for label, noise in NOISES[norm]]
    best = [max(found[i] for _, found in rows) for i in range(len(P))]
    lines = ["| p | " + " | ".join(f"{p:g}" for p in P) + " |", "|---|" + "---:|" * len(P)]
    for label, found in rows:
        marks = ["**" if r == b else "" for r, b in zip(found, best, strict=True)]
        cells = (f"{mark}{factor * r:.3f}{mark}" for r, mark in zip(found, marks, strict=True))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args(argv)
    for norm in NOISES:
        lines = table(norm)
        print(f"\n{norm}\n" + "\n".join(lines), flush=True)
        if args.page:
            put(PAGE, norm, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
