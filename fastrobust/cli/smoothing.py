"""``fastrobust certify --method smoothing``: certificates of the smoothed classifier, by votes under noise."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import fastrobust.smoothing
from fastrobust import evaluation, processes
from fastrobust._files import replacing
from fastrobust.evaluation import smoothing_report as report
from fastrobust.evaluation.environment import environment
from fastrobust.smoothing import Ledger, Noise, Smooth
from fastrobust.smoothing.ledger import Recorded
from fastrobust.smoothing.sharding import Shared
from fastrobust.training.ranks import Ranks

from .arguments import count, number
from .errors import UserError, describe, user_input
from .target import Target, open_target, settings

LEDGER = "votes.ledger"
TABLE = "certificates.tsv"


def noises() -> dict[str, Any]:
    """The noises of `fastrobust.smoothing` that a scale determines, by their names in lower case."""
    kinds = (getattr(fastrobust.smoothing, name) for name in fastrobust.smoothing.__all__)
    return {
        kind.__name__.lower(): kind
        for kind in kinds
        if isinstance(kind, type) and hasattr(kind, "copies") and is_dataclass(kind) and len(_needed(kind)) == 1
    }


def _needed(kind: Any) -> list[str]:
    return [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what smoothing alone is told."""
    group = parser.add_argument_group(
        "smoothing",
        "The certificate is for the smoothed classifier, never for the network. With --eps, radii are tested with as\n"
        "many copies as that takes; without, each point gets --copies and the radius that they prove. The norm\n"
        "is the noise's; without --seed the noise is drawn afresh. The same command continues a killed run.",
    )
    add = group.add_argument
    add("--sigma", type=number, metavar="X", help="scale of the noise, in the units of the network's input; needed")
    add("--noise", default="gaussian", choices=tuple(noises()), help="kind of noise")
    add("--n0", type=count, default=100, metavar="N", help="copies that choose the class")
    add("--copies", dest="n", type=count, default=100_000, metavar="N",
        help="copies that certify it, with --eps the most")  # fmt: skip
    add("--alpha", type=number, default=0.001, metavar="X", help="probability of a wrong certificate, for each point")
    add("--fresh", action="store_true", help="discard the folder's votes and start over, with new noise")


def run(args: argparse.Namespace) -> int:
    """Certify, print the table, write the files."""
    if args.sigma is None:
        raise UserError("--sigma: needed by --method smoothing")
    noise = _noise(args)
    args.norm = noise.norm
    ranks = Ranks.join(torch.device(args.device))
    target, began = open_target(args, "certify"), time.perf_counter()
    with user_input():
        if args.fresh:
            processes.from_first(lambda: _discard(target.out))
        smooth = _smooth(args, target, noise)
    args.seed = smooth.seed
    try:
        points = _certify(args, target, smooth, quiet=args.quiet or ranks.rank > 0)
    except ValueError as error:
        raise UserError(f"{args.model}: {describe(error)}") from error
    drawn = _drawn(smooth)
    if ranks.rank > 0:
        return 0
    results = {
        "schema": report.SCHEMA,
        "method": "smoothing",
        **target.about,
        "noise": repr(noise),
        "clean": evaluation.accuracy(target.network, target.x, target.y),
        "certifies": "the smoothed classifier, not the network",
        "curve": report.curve(points, args.eps or _radii(points, args.sigma)),
        "acr": None if args.eps else {"value": _mean(p["radius"] * p["correct"] for p in points), "n": args.n},
        "votes": {"total": sum(p["samples"] for p in points), "mean": _mean(p["samples"] for p in points),
                  "drawn": drawn},
        "seed": smooth.seed,
        "fresh": smooth.fresh,
        "settings": settings(args, noise=args.noise, sigma=args.sigma, eps=args.eps, n0=args.n0, n=args.n,
                             alpha=args.alpha),
        "points": points,
        "seconds": time.perf_counter() - began,
        "environment": environment(),
    }  # fmt: skip
    print(report.text(results))
    with user_input():
        for missing in report.write(results, target.out):
            print(f"fastrobust certify: {missing}", file=sys.stderr)
    print(f"{results['seconds']:.1f} s, {target.out}")
    return 0


def _noise(args: argparse.Namespace) -> Noise:
    kind = noises()[args.noise]
    named = {"norm": args.norm} if args.norm is not None and "norm" in {f.name for f in fields(kind)} else {}
    with user_input():
        noise: Noise = kind(args.sigma, **named)
    if args.norm not in (None, noise.norm):
        raise UserError(f"--norm: {args.noise} noise certifies {noise.norm} balls, not {args.norm}")
    return noise


def _discard(out: Path) -> None:
    for path in (out / LEDGER, *out.glob(f"{LEDGER}.*")):
        path.unlink(missing_ok=True)


def _smooth(args: argparse.Namespace, target: Target, noise: Noise) -> Smooth:
    """With the folder's ledger. The file's digest says what the network's parameters and printed form do not."""
    model = target.about["model"]
    try:
        ledger = Ledger(target.out / LEDGER, about=model["sha256"])
        return Smooth(target.network, model["classes"], noise, seed=args.seed, box=tuple(args.box), ledger=ledger,
                      processes=True)  # fmt: skip
    except ValueError as error:
        raise UserError(describe(error).replace("another path", "another --out, or --fresh")) from error


def _certify(args: argparse.Namespace, target: Target, smooth: Smooth, quiet: bool) -> list[report.Point]:
    """Chunk after chunk of points; the table is whole after each of them."""
    points: list[report.Point] = []
    rows = torch.arange(len(target.x))
    with tqdm(total=len(rows), unit="point", disable=True if quiet else None, file=sys.stderr) as bar:
        for chunk in rows.split(args.batch_size):
            x, ids, began = (
                target.x[chunk.to(target.x.device)],
                target.rows[chunk].to(target.x.device),
                time.perf_counter(),
            )
            if args.eps:
                found = smooth.certify_at(x, args.eps, args.n0, args.n, args.alpha, ids)
            else:
                found = smooth.certify(x, args.n0, args.n, args.alpha, ids)
            seconds, total = time.perf_counter() - began, int(found.samples.sum())
            columns = (ids, target.y[chunk.to(target.y.device)], found.prediction, found.radius, found.samples)
            for index, label, said, radius, samples in zip(*(column.tolist() for column in columns), strict=True):
                said = said if radius > 0 else -1
                share = seconds * samples / total
                points.append({"idx": index, "label": label, "predict": said, "radius": radius,
                               "correct": said == label, "samples": samples, "seconds": share})  # fmt: skip
            bar.set_postfix_str(f"certified so far {_mean(p['correct'] for p in points):.1%}", refresh=False)
            bar.update(len(chunk))
            if processes.place()[0] == 0:
                with user_input(), replacing(target.out / TABLE) as file:
                    file.write(report.table(points).encode())
    return points


def _radii(points: list[report.Point], sigma: float) -> list[float]:
    """Of a curve whose radii nobody named: halves of the noise's scale, as far as anything is certified."""
    far = max(point["radius"] for point in points)
    return [0.5 * sigma * k for k in range(1 + int(2 * far / sigma))]


def _drawn(smooth: Smooth) -> int:
    shared = smooth.sampler
    assert isinstance(shared, Shared)
    assert isinstance(shared.sampler, Recorded)
    return int(processes.total(torch.tensor(shared.sampler.drawn)))


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
