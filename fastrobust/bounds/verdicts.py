"""Verdicts: a point is robust, falsified, or unknown, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastrobust.bounds.branching import Limits, Outcome
from fastrobust.bounds.guarantee import Sound
from fastrobust.bounds.methods import METHODS, Problem, Set
from fastrobust.network.capture import in_eval
from fastrobust.threat import Threat, threat_of

__all__ = ["CASCADE", "CertifyResult", "certified_radius", "certify"]

CASCADE = (*METHODS, "branch_and_bound")
Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CertifyResult:
    """What is known of each point.

    Attributes:
        verdict: "robust": every point of the set is classified as y, proven; "falsified": `point` is not; "unknown".
        margin: (batch,) the best lower bound of min_j z_y - z_j that was found (of the k-th least, for the top k); NaN
            where none was looked for.
        method: what decided: "clean", "attack" or one of the cascade; of an unknown point the last that was tried.
        point: (batch, ...) a point of the set that the model misclassifies, where falsified; NaN elsewhere.
        reason: of unknown points why; "" of others.
        guarantee: "float32" or "exact": what "robust" holds for.
    """

    verdict: list[str]
    margin: Tensor
    method: list[str]
    point: Tensor
    reason: list[str]
    guarantee: str

    def share(self, verdict: str) -> float:
        """The share of points with this verdict."""
        return self.verdict.count(verdict) / max(1, len(self.verdict))


def certify(
    model: nn.Module, x: Tensor, y: Tensor, threat: Set, cascade: Sequence[str] = CASCADE, attack: Attack | None = None,
    sound: Sound = True, top_k: int = 1, limits: Limits | None = None,
) -> CertifyResult:  # fmt: skip
    """Whether the model classifies every point of a set as y: one method after another, each for the points left.

    Args:
        model: maps (batch, ...) to logits (batch, classes); judged in eval mode, and left as it is.
        x: (batch, ...) float32 or float64, in the threat's box.
        y: (batch,) int64 labels.
        threat: `fastrobust.Linf`, `L2` or `L1`, with its box; or a pair (lower, upper) of tensors like x around x.
        cascade: methods of `margins`, cheap ones first, and "branch_and_bound" on the signs of ReLUs, which decides
            every point of a small ReLU network in the end.
        attack: a callable (x, y) -> points, such as `fastrobust.attacks.PGD(...)`: those of them that lie in the set
            and fool the model are its counterexamples. Only the model's own word counts.
        sound: "float32" (True) or "exact", see `ibp`. False is refused: it proves nothing.
        top_k: "robust" if y is among the k largest logits everywhere. Branch and bound is for k = 1.
        limits: of branch and bound, for each point: `Limits()` if None.

    Raises:
        ValueError, TypeError: as `margins`.
    """
    where = "certify"
    if sound is False:
        raise ValueError(f"{where}: sound must be True, 'exact' or 'float32': without it nothing is proven")
    for name in cascade:
        if name not in CASCADE:
            raise ValueError(f"{where}: cascade must consist of {', '.join(CASCADE)}, got {name!r}")
    problem = Problem(where, model, x, threat, sound)
    classes = problem.check_labels(y, x)
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= classes:
        raise ValueError(f"{where}: top_k must be an integer in 1 .. {classes}, got {top_k!r}")
    box = problem.region.box
    if not bool(((box.lower <= x) & (x <= box.upper)).all()):
        raise ValueError(f"{where}: x must lie between lower and upper")

    verdict, reason = ["unknown"] * len(x), ["no method was tried"] * len(x)
    method = [""] * len(x)
    margin = x.new_full((len(x),), torch.nan)
    point = torch.full_like(x, torch.nan)

    def falsify(points: Tensor, how: str) -> None:
        wrong = ~_right(model, points, y, top_k) & problem.inside(points, x, threat)
        for i in torch.nonzero(wrong)[:, 0].tolist():
            if verdict[i] == "unknown":
                verdict[i], method[i], reason[i], point[i] = "falsified", how, "", points[i]

    def branch(i: int) -> Outcome:
        def falsifies(points: Tensor) -> Tensor:
            same = x[i : i + 1].expand_as(points), y[i : i + 1].expand(len(points))
            part = problem.select(torch.full((len(points),), i, device=x.device))
            return ~_right(model, points, same[1], 1) & part.inside(points, same[0], threat)

        row = torch.tensor([i], device=x.device)
        return problem.select(row).branch(y[row], falsifies, limits or Limits())

    falsify(x, "clean")
    if attack is not None and len(x):
        left = _which(verdict, "unknown", x)
        tried = x.clone()
        if len(left):
            tried[left] = attack(x[left], y[left]).to(x)
        falsify(tried, "attack")
    for name in cascade:
        left = _which(verdict, "unknown", x)
        if not len(left):
            break
        if name == "branch_and_bound":
            for i in left.tolist() if top_k == 1 and classes > 1 else ():
                outcome = branch(i)
                method[i], reason[i] = name, outcome.reason and f"{name}: {outcome.reason}"
                margin[i] = torch.fmax(margin[i], margin.new_tensor(outcome.margin))
                if outcome.point is not None:
                    verdict[i], point[i] = "falsified", outcome.point
                elif outcome.margin > 0:
                    verdict[i] = "robust"
            continue
        bounds = problem.select(left).margins(y[left], name)
        others = bounds.scatter(1, y[left, None], torch.inf).nan_to_num(nan=-torch.inf, posinf=torch.inf)
        # As many as k - 1 classes may pass y.
        ranked = others.sort(1)
        least, rivals = ranked.values[:, top_k - 1], ranked.indices[:, top_k - 1]
        for i, value, rival in zip(left.tolist(), least.tolist(), rivals.tolist(), strict=True):
            method[i] = name
            margin[i] = torch.fmax(margin[i], margin.new_tensor(value))
            if value > 0:
                verdict[i], reason[i] = "robust", ""
            else:
                reason[i] = f"{name} leaves class {rival} a lead of up to {-value:.3g}"
    return CertifyResult(verdict, margin, method, point, reason, problem.g.name)


def certified_radius(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, largest: float, method: str = "crown", sound: Sound = True,
    box: tuple[float, float] = (0.0, 1.0), halvings: int = 10,
) -> Tensor:  # fmt: skip
    """For each point a radius within which every point is proven to be classified as y, by bisection.

    Args:
        norm: "Linf", "L2" or "L1".
        largest: the largest radius to try, in x's units.
        halvings: bisections, so that the result is within largest / 2^halvings of the method's limit if what it proves
            at a radius it proves at all smaller ones.
        Others as those of `margins`.

    Returns:
        (batch,) float64; -1 where not even x itself is proven.
    """
    where = "certified_radius"
    if sound is False:
        raise ValueError(f"{where}: sound must be True, 'exact' or 'float32': without it nothing is proven")
    threat: Threat = threat_of(norm, largest, box)
    low = torch.full((len(x),), -1.0, dtype=torch.float64, device=x.device)
    high = torch.full_like(low, largest)

    def proven(radii: Tensor) -> Tensor:
        problem = Problem(where, model, x, threat, sound, radii)
        problem.check_labels(y, x)
        bounds = problem.margins(y, method)
        return (bounds > 0).scatter(1, y[:, None], True).all(1)

    for radii in (torch.zeros_like(low), high):
        low = torch.where(proven(radii), radii, low)
    for _ in range(halvings):
        middle = (low.clamp(min=0) + high) / 2
        ok = proven(middle)
        low, high = torch.where(ok & (low >= 0), middle, low), torch.where(ok, high, middle)
    return low


def _which(verdict: list[str], wanted: str, x: Tensor) -> Tensor:
    return torch.tensor([i for i, v in enumerate(verdict) if v == wanted], dtype=torch.int64, device=x.device)


def _right(model: nn.Module, x: Tensor, y: Tensor, top_k: int) -> Tensor:
    """Whether y is among the k largest logits by the model's own word; a NaN is no counterexample."""
    if not len(x):
        return torch.zeros_like(y, dtype=torch.bool)
    with in_eval(model), torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(256)])
    own = logits.gather(1, y[:, None])
    ahead = (logits > own).sum(1)
    return (ahead < top_k) | logits.isnan().any(1)
