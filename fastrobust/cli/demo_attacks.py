"""What the demo asks of its networks beyond PGD: AutoAttack, the curve with its envelope, other threats, signs of
failing attacks, proofs, votes. Each function returns its entry in results.json."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

import fastrobust as fr
from fastrobust import evaluation
from fastrobust.attacks import APGD, FMN, PGD, AutoAttack
from fastrobust.data import Dataset
from fastrobust.evaluation import certify_report, smoothing_report
from fastrobust.smoothing import Gaussian, Smooth
from fastrobust.threat import Threat

Networks = Mapping[str, nn.Module]
FINE = 61  # places of the envelope's curve


def pgd(model: nn.Module, eps: float, steps: int, seed: int, early_stop: bool = False) -> PGD:
    """Madry et al. take steps of 2.5 eps / steps, so that the attack can cross the ball and still settle."""
    return PGD(model, eps=eps, alpha=2.5 * eps / steps, steps=steps, seed=seed, early_stop=early_stop)


def sweep(networks: Networks, test: Dataset, eps: Sequence[float], steps: int, seed: int) -> dict[str, Any]:
    """Accuracy under PGD at each eps, and the finer curve of the nearest points that PGD or FMN found."""
    fine = torch.linspace(0, eps[-1], FINE, dtype=torch.float64).tolist()
    entry: dict[str, Any] = {"eps": list(eps), "steps": steps, "norm": "Linf"}
    envelope: dict[str, Any] = {"eps": fine, "attacks": [f"PGD-{steps}", "FMN-100"], "median": {}}
    for name, network in networks.items():

        def stepwise(threat: Threat, model: nn.Module = network) -> PGD:
            return pgd(model, threat.eps, steps, seed, early_stop=True)

        def nearest(threat: Threat, model: nn.Module = network) -> FMN:
            return FMN(model, threat.norm, steps=100, box=threat.box, seed=seed)

        found = evaluation.curves(
            network, test.images, test.labels, {"Linf": eps}, {"PGD": stepwise, "FMN": nearest}, method="ascend"
        )["Linf"]
        entry[name] = list(found["PGD"].accuracy)
        envelope[name] = [found[evaluation.ENVELOPE].at(e) for e in fine]
        median = found[evaluation.ENVELOPE].median
        envelope["median"][name] = median if median < torch.inf else None
    return {**entry, "envelope": envelope}


def autoattack(networks: Networks, test: Dataset, eps: float, queries: int, seed: int) -> dict[str, Any]:
    """Standard AutoAttack: what is left after each of its attacks."""
    entry: dict[str, Any] = {"eps": eps, "queries": queries, "version": "standard"}
    for name, network in networks.items():
        suite = AutoAttack(network, "Linf", eps, seed=seed, verbose=False, n_queries=queries)
        found = suite.run(test.images, test.labels)
        entry[name] = {
            "accuracy": found.accuracy,
            "seconds": sum(found.seconds.values()),
            "evaluations": sum(found.evaluations.values()),
            "doubts": found.doubts,
        }
    return entry


def threats(networks: Networks, test: Dataset, trained: float, seed: int) -> list[dict[str, Any]]:
    """APGD under the threat that was trained for and under others, of Maini et al. (ICML 2020) for MNIST."""
    against: dict[str, Threat] = {
        f"Linf {trained:g}, trained for": fr.Linf(trained),
        f"Linf {1.5 * trained:g}": fr.Linf(1.5 * trained),
        "L2 2": fr.L2(2.0),
        "L1 10": fr.L1(10.0),
    }
    rows: dict[str, dict[str, Any]] = {key: {"threat": key} for key in against}
    for name, network in networks.items():

        def make(threat: Threat, model: nn.Module = network) -> APGD:
            return APGD(model, threat.norm, threat.eps, steps=50, box=threat.box, seed=seed)

        for key, found in evaluation.threats(network, test.images, test.labels, against, make).items():
            rows[key][name] = {k: v if v == v else None for k, v in asdict(found).items()}  # JSON knows no NaN
    return list(rows.values())


def diagnosis(network: nn.Module, test: Dataset, eps: float, points: int, seed: int) -> dict[str, Any]:
    """Signs that attacks fail on the robust network, on some of the points."""
    x, y = test.images[:points], test.labels[:points]
    found = evaluation.diagnose(network, x, y, fr.Linf(eps), seed=seed)
    return {"points": len(x), "findings": [asdict(f) for f in found.findings], "numbers": found.numbers}


def votes(network: nn.Module, test: Dataset, sigma: float, radii: Sequence[float], copies: int) -> dict[str, Any]:
    """What votes under noise, drawn afresh, prove of the smoothed network."""
    smooth = Smooth(network, test.classes, Gaussian(sigma), progress=sys.stderr.isatty())
    found, alpha = smooth.certify_at(test.images, radii, n_max=copies), 0.001
    columns = (test.labels, found.prediction, found.radius, found.samples)
    points = [
        {"correct": said == label and radius > 0, "radius": radius, "samples": samples}
        for label, said, radius, samples in zip(*(column.tolist() for column in columns), strict=True)
    ]
    total = sum(point["samples"] for point in points)
    return {
        "sigma": sigma, "settings": {"norm": "L2", "eps": [*radii], "alpha": alpha, "copies": copies},
        "clean": evaluation.accuracy(network, test.images, test.labels),
        "curve": smoothing_report.curve(points, radii),
        "votes": {"total": total, "mean": total / len(points)}, "seed": found.seed, "fresh": found.fresh,
    }  # fmt: skip


def sandwich(network: nn.Module, test: Dataset, radii: Sequence[float], steps: int, seed: int) -> dict[str, Any]:
    """Certified and attacked accuracy at each radius: boxes, then CROWN-IBP for what they leave; PGD."""
    found = evaluation.sandwich(
        network, test.images, test.labels, radii, cascade=("ibp", "crown_ibp"), batch_size=250,
        attack_at=lambda eps: pgd(network, eps, steps, seed, early_stop=True),
    )  # fmt: skip
    return {
        "steps": steps, "guarantee": found.guarantee, "settings": {"norm": "Linf"},
        "clean": evaluation.accuracy(network, test.images, test.labels), "curve": certify_report.curve(found),
    }  # fmt: skip
