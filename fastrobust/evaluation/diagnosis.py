"""Is a robust accuracy to be believed? Checks for gradient masking and attacks that fail.

The checks are those of Athalye, Carlini and Wagner ("Obfuscated gradients give a false sense of security", ICML
2018), Carlini et al. ("On evaluating adversarial robustness", 2019), Croce and Hein (ICML 2020), Croce et al.
("Evaluating the adversarial robustness of adaptive test-time defenses", ICML 2022) and Pintor et al. ("Indicators of
attack failure", NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastrobust import _checks
from fastrobust.attacks._attack import check_call
from fastrobust.attacks._doubts import SAME
from fastrobust.attacks._victim import Victim
from fastrobust.attacks.eot import seeded
from fastrobust.data.keys import key
from fastrobust.threat import Threat

from . import probes
from .metrics import predict
from .probes import Numbers, Subject
from .shares import percent
from .verdicts import Finding, judge

__all__ = ["Diagnosis", "Finding", "diagnose"]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what is measured now, probes done, probes in all)``."""


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; ``print`` shows it as a table.

    Attributes:
        findings: one a check, also where nothing is wrong.
        numbers: all that was measured, as JSON can hold it. Accuracies are shares of all points.
    """

    findings: list[Finding]
    numbers: Numbers

    @property
    def suspicious(self) -> list[Finding]:
        """The findings to look into."""
        return [finding for finding in self.findings if finding.suspicious]

    def __str__(self) -> str:
        n = self.numbers
        robust = "" if n["robust"] is None else f", robust at most {percent(n['robust'])}"
        lines = [
            f"{n['norm']} eps {n['eps']:.4g}, {n['points']} points: clean accuracy {percent(n['clean'])}{robust}; "
            f"{len(self.suspicious)} of {len(self.findings)} checks want a look"
        ]
        for finding in self.findings:
            lines.append(f"{'look' if finding.suspicious else 'ok':5} {finding.name:11} {finding.saw}")
            if finding.advice:
                lines.append(f"{'':17} -> {finding.advice}")
        return "\n".join(lines)


def diagnose(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: Sequence[int] = (1, 10, 50, 200),
    restarts: Sequence[int] = (1, 5, 20),
    queries: int = 1000,
    index: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 250,
    compile: str | bool = "auto",
    progress: Progress | None = None,
) -> Diagnosis:
    """Look for signs that attacks on a model fail, so that its robust accuracy would be too high.

    A hundred points tell most; differences of up to 2% of the points, and of one point, are taken for chance. With the
    settings as they are a point that stands everything costs some 750 gradient steps and 1050 forward passes, about 5
    times PGD with 200 steps; one that is fooled leaves early. Checks can clear nobody: a defence made against them
    passes.

    Args:
        model: maps (batch, ...) to logits (batch, classes); run in eval mode and left as it was. A random model draws
            from torch's generators seeded with `seed`, which are put back.
        x: (batch, ...) points in the threat's box, float32 or float64.
        y: (batch,) int64 labels; only points that the model gets right are attacked.
        threat: `fastrobust.Linf(eps)` and the like, eps > 0.
        steps: numbers of PGD steps to compare, ascending.
        restarts: numbers of random starts to compare, ascending.
        queries: of Square.
        index: (batch,) int64 ids of the samples, which key the random draws; 0 .. batch - 1 if None.
        seed: key of the random draws.
        batch_size: points attacked at a time.
        compile: "auto", True or False, as in `PGD`.
        progress: called before each probe and after the last.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; also where the model gets no
            point right, and where its logits have no gradient at all.
    """
    name = "diagnose"
    _check(name, model, x, y, threat, index, (("steps", steps), ("restarts", restarts)), queries, batch_size)
    victim = Victim(name, model, "eval", None)
    with torch.inference_mode(False), seeded(key(seed, 0), x.device):
        x, y = x.detach().clone(), y.clone()  # the caller's may be inference tensors
        ids = torch.arange(len(x), device=x.device) if index is None else index
        right = predict(model, x, batch_size) == y
        if not bool(right.any()):
            raise ValueError(f"{name}: model must get at least 1 point right, got 0 of {len(x)}")
        subject = Subject(model, x, y, threat, ids, seed, batch_size, compile, right, right.clone())
        numbers: Numbers = {"points": len(x), "clean": subject.share(right), "norm": threat.norm, "eps": threat.eps}
        numbers["seed"] = seed
        plan: dict[str, Callable[[], Numbers | None]] = {
            "model": lambda: probes.passes(subject, victim),
            "gradients": lambda: probes.gradients(subject, victim),
            "derivative": lambda: None if random() else probes.derivative(subject, victim),
            "against_steps": lambda: probes.steps(subject, steps),
            "against_restarts": lambda: probes.restarts(subject, restarts),
            "attacks": lambda: probes.attacks(subject, queries),
            "radii": lambda: probes.radii(subject),
            "unbounded": lambda: probes.unbounded(subject),
        }

        def random() -> bool:
            return bool(numbers["model"]["difference"] > SAME)

        for done, (what, measure) in enumerate(plan.items()):
            if progress is not None:
                progress(what, done, len(plan))
            numbers[what] = measure()
        if progress is not None:
            progress("done", len(plan), len(plan))
    numbers["robust"] = None if random() else subject.share(subject.standing)
    return Diagnosis(judge(numbers), numbers)


def _check(
    name: str, model: object, x: Tensor, y: Tensor, threat: object, index: Tensor | None,
    ladders: Sequence[tuple[str, Sequence[int]]], queries: int, batch_size: int,
) -> None:  # fmt: skip
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(threat, Threat):
        raise TypeError(f"{name}: threat must be a threat model such as Linf(8/255), got {type(threat).__name__}")
    if not threat.eps > 0:
        raise ValueError(f"{name}: threat must have eps > 0, got {threat.eps!r}")
    _checks.check_tensor(name, "x", x, _checks.ITERATES)
    check_call(name, x, y, index, threat.box)
    if not x.numel():
        raise ValueError(f"{name}: x must have at least 1 point, got shape {tuple(x.shape)}")
    for key_, ladder in ladders:
        counts = list(ladder)
        whole = all(isinstance(count, int) and count >= 1 for count in counts)
        if not counts or not whole or any(b <= a for a, b in pairwise(counts)):
            raise ValueError(f"{name}: {key_} must be ascending integers >= 1, got {counts}")
    for key_, count in (("queries", queries), ("batch_size", batch_size)):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}: {key_} must be an integer >= 1, got {count!r}")
