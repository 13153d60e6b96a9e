"""``python -m benchmarks.smoothing_tests [--log FILE:SIGMA:RADIUS ...] [--grid FILE:SIGMA] [--page]``: what tests need.

Expected samples and claims of each sequential test, computed exactly by dynamic programming, for given probabilities of
the class; and, where logs of `certify` in Cohen's columns (idx label predict radius correct time) are given, for those
that the logs imply: a logged radius is turned back into the count of votes behind it. A sample that abstained is taken
to have the probability 1/2. All tests look at the same numbers of samples and give up by the same rule, but for Horvath
et al. (ICLR 2022), who look four times. A grid of radii is simulated. Last, radii with and without the runner-up's
bound, for votes that are as expected. With --page tables go to docs/smoothing/statistics.md.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from benchmarks.turns import Lines, put
from fastrobust.smoothing import Gaussian
from fastrobust.smoothing.sequential import Sequential, looks_until, nested, sequential
from fastrobust.smoothing.statistics import lower_bound, upper_bound

Floats = NDArray[np.float64]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "smoothing" / "statistics.md"
ALPHA, N, RUNS = 0.001, 100_000, 100
NAMES = {"exact": "exact", "half_beta": "half-Beta", "kt": "KT", "union": "union bound", "horvath": "Horvath et al."}
POINTS = (0.5, 0.7, 0.8, 0.83, 0.84, 0.8443, 0.846, 0.85, 0.86, 0.88, 0.9, 0.95, 0.99, 0.999)
GRID = tuple(0.25 * k for k in range(1, 8))  # radius 0 needs p > 1/2 like any other, and is left to `certify`


def tests(p0: float) -> dict[str, Sequential]:
    """All but the fixed number."""
    looks = looks_until(N)
    found = {name: sequential(p0, ALPHA, looks, None, name) for name in NAMES if name != "horvath"}
    four = np.array([N // 1000, N // 100, N // 10, N])
    upper, lower = stats.binom.isf(ALPHA / 4, four, p0) + 1, stats.binom.ppf(ALPHA / 4, four, p0) - 1
    found["horvath"] = Sequential(p0, tuple(four.tolist()), tuple(map(int, upper)), tuple(map(int, lower)), ALPHA)
    return found


def fixed(p0: float, p: Floats) -> Floats:
    """Claims of the test with N samples."""
    return np.asarray(stats.binom.sf(stats.binom.isf(ALPHA, N, p0), N, p))


def outcomes(test: Sequential, p: Floats) -> tuple[Floats, Floats]:
    """Claims and samples at each p."""
    values, where = np.unique(p, return_inverse=True)
    found = np.array([test.outcome(float(q)) for q in values])[where]
    return found[:, 0], found[:, 1]


def implied(path: str, sigma: float) -> tuple[Floats, NDArray[np.bool_], Floats]:
    """The probability of each sample's class, whether it is the label, and the logged radius."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    radius = np.array([float(row["radius"]) for row in rows])
    said = np.array([int(row["predict"]) >= 0 for row in rows])
    bounds = lower_bound(np.arange(N + 1), N, ALPHA)
    count = np.minimum(np.searchsorted(bounds, special.ndtr(radius / sigma)), N)
    return np.where(said, count / N, 0.5), np.array([row["correct"] == "1" for row in rows]), radius


def of_points() -> Lines:
    """Samples and claims at given probabilities."""
    p0, p = Gaussian(0.5).probability(0.5, 1), np.array(POINTS)
    found = {name: outcomes(test, p) for name, test in tests(p0).items()}
    lines = [f"| p | {' | '.join(NAMES.values())} | {N:,} samples |", "|---:|" + "---:|" * (len(NAMES) + 1)]
    for i, (q, sure) in enumerate(zip(p, fixed(p0, p), strict=True)):
        cells = [f"{found[name][1][i]:,.0f} ({100 * found[name][0][i]:.1f}%)" for name in NAMES]
        lines.append(f"| {q:g} | {' | '.join(cells)} | {100 * sure:.1f}% |")
    return lines


def of_logs(logs: list[str]) -> Lines:
    """Mean samples and certified accuracy over the samples of each log."""
    lines = [
        f"| log, sigma, radius | {' | '.join(NAMES.values())} | {N:,} samples |", "|---|" + "---:|" * (len(NAMES) + 1)
    ]  # fmt: skip
    for given in logs:
        path, sigma, radius = given.rsplit(":", 2)
        p, correct, _ = implied(path, float(sigma))
        p0 = Gaussian(float(sigma)).probability(float(radius), 1)
        cells = list[str]()
        for test in tests(p0).values():
            claims, samples = outcomes(test, p)
            cells.append(f"{samples.mean():,.0f} / {100 * (claims * correct).mean():.2f}")
        whole = 100 * (fixed(p0, p) * correct).mean()
        lines.append(f"| {Path(path).name}, {sigma}, {radius} | {' | '.join(cells)} | {whole:.2f} |")
    return lines


def simulate(p: Floats, p0s: list[float]) -> tuple[Floats, Floats]:
    """Mean samples at each p, and the share of claims of each p0, for tests of all p0s on the same samples."""
    generator, looks = np.random.default_rng(0), looks_until(N)
    held = nested(p0s, ALPHA, looks)
    upper, lower = np.array([t.upper for t in held]), np.array([t.lower for t in held])
    every = np.repeat(p, RUNS)
    counts, samples = np.zeros(len(every), dtype=np.int64), np.zeros(len(every))
    claims, going = np.zeros((len(every), len(held)), bool), np.ones((len(every), len(held)), bool)
    for j, look in enumerate(looks):
        rows, draws = going.any(1), look - (looks[j - 1] if j else 0)
        counts[rows] += generator.binomial(draws, every[rows])
        samples[rows] += draws
        claims |= going & (counts[:, None] >= upper[:, j])
        going &= (counts[:, None] > lower[:, j]) & ~claims
    return samples.reshape(len(p), RUNS).mean(1), claims.reshape(len(p), RUNS, -1).mean(1)


def of_grids(logs: list[str]) -> Lines:
    """Mean samples for a whole grid of radii, and certified accuracy at each."""
    lines = [f"| log, sigma | samples | {' | '.join(f'r = {r:g}' for r in GRID)} |", "|---|---:|" + "---:|" * len(GRID)]
    for given in logs:
        path, sigma = given.rsplit(":", 1)
        p, correct, _ = implied(path, float(sigma))
        p0s = [Gaussian(float(sigma)).probability(r, 1) for r in GRID]
        samples, claims = simulate(p, p0s)
        whole = np.stack([fixed(p0, p) for p0 in p0s], 1)
        ours, theirs = (100 * (part * correct[:, None]).mean(0) for part in (claims, whole))
        lines.append(f"| {Path(path).name}, {sigma} | {samples.mean():,.0f} | {' | '.join(f'{v:.2f}' for v in ours)} |")
        lines.append(f"| {N:,} samples | {N:,} | {' | '.join(f'{v:.2f}' for v in theirs)} |")
    return lines


def of_runner_up() -> Lines:
    """Radii in units of sigma, where votes are as expected."""
    lines = ["| class | runner-up | 1,000 | both bounds | 100,000 | both bounds |", "|---:|" + "---:|" * 5]
    for own, rival in ((0.45, 0.3), (0.45, 0.1), (0.6, 0.4), (0.6, 0.2), (0.8, 0.2), (0.8, 0.1), (0.99, 0.01), (1, 0)):
        cells = list[str]()
        for n in (1000, N):
            votes, others = np.array([round(own * n)]), np.array([round(rival * n)])
            one = Gaussian(1.0).radius(lower_bound(votes, n, ALPHA), 1)[0]
            p_a = lower_bound(votes, n, ALPHA / 2)
            p_b = np.minimum(upper_bound(others, n, ALPHA / 2), 1 - p_a)
            cells += [f"{one:.3f}", f"{Gaussian(1.0).radius_between(p_a, p_b, 1)[0]:.3f}"]
        lines.append(f"| {own} | {rival} | {' | '.join(cells)} |")
    return lines


def main(arguments: list[str]) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smoothing_tests", description=__doc__)
    parser.add_argument("--log", action="append", default=[], metavar="FILE:SIGMA:RADIUS", help="n = 100,000")
    parser.add_argument("--grid", action="append", default=[], metavar="FILE:SIGMA", help="the same, many radii")
    parser.add_argument("--page", action="store_true", help="replace the tables in docs/smoothing/statistics.md")
    args = parser.parse_args(arguments)
    made: list[tuple[str, Callable[[], Lines]]] = [("points", of_points), ("runner_up", of_runner_up)]
    made += [("logs", lambda: of_logs(args.log))] if args.log else []
    made += [("grids", lambda: of_grids(args.grid))] if args.grid else []
    for name, table in made:
        lines = table()
        print("\n" + "\n".join(lines), flush=True)
        if args.page:
            put(PAGE, name, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
