"""Bounds of a network's outputs over sets of inputs: interval arithmetic, and linear relaxation on top of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import copy

import torch
from torch import Tensor, nn

from fastrobust import _checks
from fastrobust.bounds.branching import Limits, Outcome, branch
from fastrobust.bounds.captured import program_for
from fastrobust.bounds.guarantee import Sound, full_precision, guarantee
from fastrobust.bounds.interval import Bounds, Region, region
from fastrobust.bounds.joint import most_tightened, tightened
from fastrobust.bounds.program import below
from fastrobust.bounds.relaxation import Relaxation, last_boxes, most_elements, rounded_down
from fastrobust.threat import Threat

__all__ = ["METHODS", "Problem", "alpha_crown", "crown", "crown_ibp", "ibp", "margins"]

METHODS = ("ibp", "crown_ibp", "crown", "alpha_crown")
Set = Threat | tuple[Tensor, Tensor]
ORDERS = {"Linf": torch.inf, "L2": 2, "L1": 1}
STEPS, RATE = 20, 0.1  # of alpha-CROWN
BOXES, SPARE = 2**24, 8  # elements of boxes at a time; rows of weights that there should be room for beside the batch


# --- public -----------------------------------------------------------------------------------------------------


def ibp(model: nn.Module, x: Tensor, threat: Set, sound: Sound = True) -> Bounds:
    """Interval bound propagation (Gowal et al., ICCV 2019): boxes through one layer after another.

    Args:
        model: maps (batch, ...) to outputs (batch, ...); bounded in eval mode, and left as it is.
        x: (batch, ...) float32 or float64, in the threat's box.
        threat: `fastrobust.Linf`, `L2` or `L1`, with its box; or a pair (lower, upper) of tensors like x.
        sound: what the bounds hold for (docs/bounds/soundness.md). "float32", which True means: every evaluation of the
            network, layer by layer, in its own dtype, sums being made directly in any order. "exact": real arithmetic
            on the stored weights. False: neither, as rounding is not allowed for; differentiable.

    Returns:
        `Bounds`: lower and upper (batch, ...), dtype of x.

    Raises:
        ValueError, TypeError: naming the argument, an operation without a rule, or weights that are not finite.
        fastrobust.network.CaptureError: if the model has no graph, or is not deterministic.
    """
    problem = Problem("ibp", model, x, threat, sound)
    with problem.settings():
        box = last_boxes(problem.program, problem.region, problem.program.tensors(), problem.g)[-1]
    return Bounds(box.lower, box.upper, problem.g.name)


def crown_ibp(model: nn.Module, x: Tensor, threat: Set, sound: Sound = True) -> Bounds:
    """CROWN from the outputs back to the input, with the boxes of `ibp` in between (Zhang et al., ICLR 2020).

    Arguments, result and errors as those of `ibp`.
    """
    return _ends("crown_ibp", Problem("crown_ibp", model, x, threat, sound))


def crown(model: nn.Module, x: Tensor, threat: Set, sound: Sound = True) -> Bounds:
    """CROWN (Zhang et al., NeurIPS 2018): linear functions below and above the network, brought back to the input.

    Each activation lies between two lines, chosen for its box, which is found in the same way. Arguments, result and
    errors as those of `ibp`.
    """
    return _ends("crown", Problem("crown", model, x, threat, sound))


def alpha_crown(
    model: nn.Module, x: Tensor, threat: Set, sound: Sound = True, steps: int = STEPS, lr: float = RATE
) -> Bounds:
    """CROWN with the slopes of lines optimised for each output (Xu et al., ICLR 2021); never worse than CROWN.

    These are the lower slopes of ReLUs, both of all other activations, and the lower ones of max pools, whose line is a
    mean of the window.

    Args:
        steps: of Adam.
        lr: its learning rate.
        Others, result and errors as those of `ibp`.
    """
    return _ends("alpha_crown", Problem("alpha_crown", model, x, threat, sound), steps, lr)


def margins(
    model: nn.Module, x: Tensor, y: Tensor, threat: Set, method: str = "crown", sound: Sound = True,
    steps: int = STEPS, lr: float = RATE,
) -> Tensor:  # fmt: skip
    """Lower bounds of z_y - z_j over the set: (batch, classes), 0 at y.

    A sample whose margins are all positive, but for that of y itself, is classified as y everywhere in its set. The
    difference goes through the last layers as one function, so it is tighter than a difference of bounds; in sound
    mode the rounding of both logits is allowed for.

    Args:
        y: (batch,) int64 labels.
        method: "ibp", "crown_ibp", "crown" or "alpha_crown".
        Others and errors as those of `ibp` and `alpha_crown`.
    """
    problem = Problem("margins", model, x, threat, sound)
    problem.check_labels(y, x)
    return problem.margins(y, method, steps, lr)


def _ends(method: str, problem: Problem, steps: int = STEPS, lr: float = RATE) -> Bounds:
    shape = problem.program.shape(problem.program.outputs)
    eye = torch.eye(shape.numel(), dtype=problem.dtype, device=problem.region.box.lower.device)
    both = torch.cat([eye, -eye]).unflatten(1, shape)
    ends = problem.lower(lambda rows: both.expand(len(rows), *both.shape), method, steps, lr)
    lower, upper = (end.unflatten(1, shape) for end in ends.chunk(2, 1))
    return Bounds(lower, -upper, problem.g.name)


# --- what they share --------------------------------------------------------------------------------------------


class Problem:
    """A network, sets of inputs, and a guarantee.

    Args:
        where: the public function, for error messages.
        eps: (batch,) float64 radii in the place of the threat's.
        Others as those of `ibp`.
    """

    def __init__(
        self, where: str, model: nn.Module, x: Tensor, threat: Set, sound: Sound, eps: Tensor | None = None
    ) -> None:
        _checks.check_tensor(where, "x", x, _checks.ITERATES)
        self.where, self.dtype = where, x.dtype
        self.g = guarantee(where, sound, x.dtype)
        self.region: Region = region(where, x, threat, self.g, eps)
        self.program = program_for(where, model, x)

    def select(self, rows: Tensor) -> Problem:
        """The same for some of the samples."""
        part = copy(self)
        part.region = self.region.select(rows)
        return part

    def inside(self, points: Tensor, x: Tensor, threat: Set) -> Tensor:
        """Which points lie in the sets around x, computed in float64; (batch,) bool."""
        if not isinstance(threat, Threat):
            box = self.region.box
            return ((box.lower <= points) & (points <= box.upper)).flatten(1).all(1)
        low, high = (torch.as_tensor(end, dtype=torch.float64, device=x.device) for end in threat.box)
        wide = points.double()
        far: Tensor = torch.linalg.vector_norm((wide - x.double()).flatten(1), ORDERS[threat.norm], dim=1)
        boxed: Tensor = ((low <= wide) & (wide <= high)).flatten(1).all(1)
        return boxed & (far <= threat.eps)

    def settings(self) -> AbstractContextManager[None]:
        """Within: products in full precision, and no gradients of sound bounds."""
        return full_precision(self.g.sound)

    def check_labels(self, y: Tensor, x: Tensor) -> int:
        """Labels of the model's classes; returns how many classes there are."""
        _checks.check_labels(self.where, "y", y, x)
        shape = self.program.shape(self.program.outputs)
        if len(shape) != 1:
            raise ValueError(f"{self.where}: the model must return logits (batch, classes), a sample has {shape}")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < shape[0]:
            raise ValueError(f"{self.where}: y must be in 0 .. {shape[0] - 1}, the model's classes")
        return shape[0]

    def margins(self, y: Tensor, method: str, steps: int = STEPS, lr: float = RATE) -> Tensor:
        """z_y - z_j from below, (batch, classes)."""
        classes = self.program.shape(self.program.outputs)[0]
        eye = torch.eye(classes, dtype=self.dtype, device=y.device)
        found = self.lower(lambda rows: eye[y[rows]][:, None] - eye, method, steps, lr)
        return found.scatter(1, y[:, None], 0.0)

    def branch(self, y: Tensor, falsifies: Callable[[Tensor], Tensor], limits: Limits) -> Outcome:
        """Branch and bound on a problem of one sample, for all margins of its label y (1,)."""
        classes = self.program.shape(self.program.outputs)[0]
        eye = torch.eye(classes, dtype=self.dtype, device=y.device)
        others = [j for j in range(classes) if j != int(y)]
        with self.settings():
            relaxed = Relaxation(self.program, self.region, self.program.tensors(), self.g, refine=True)
            return branch(relaxed, eye[y] - eye[others], falsifies, limits)

    def lower(self, weight: Callable[[Tensor], Tensor], method: str, steps: int, lr: float) -> Tensor:
        """At most the minima of <weight, outputs>, (batch, rows); `weight` gives those of some samples."""
        if method not in METHODS:
            raise ValueError(f"{self.where}: method must be one of {', '.join(METHODS)}, got {method!r}")
        program, parts = self.program, []
        widest = max(program.shape(v).numel() for v in range(program.outputs + 1))
        most = BOXES if method == "ibp" else most_elements(self.region) // SPARE
        if method == "alpha_crown" and most_tightened(program) >= widest:  # else there is room for no sample's
            most = min(most, most_tightened(program))
        count = max(1, most // widest)
        with self.settings():
            tensors = program.tensors()
            for rows in torch.arange(len(self.region), device=self.region.box.lower.device).split(count):
                parts.append(self._lower(self.region.select(rows), weight(rows), method, tensors, steps, lr))
            empty = weight(torch.arange(0)).shape[1]
            return torch.cat(parts) if len(self.region) else self.region.box.lower.new_zeros(0, empty)

    def _lower(self, part: Region, weight: Tensor, method: str, tensors: list[Tensor], steps: int, lr: float) -> Tensor:
        program, g = self.program, self.g
        if method == "ibp":
            boxes = last_boxes(program, part, tensors, g)
            none = [None] * program.outputs
            found = below(program.steps, part, program.outputs, weight, boxes, none, tensors, g, flat=True)
            return rounded_down(found, self.dtype, g)
        relaxed = Relaxation(program, part, tensors, g, refine=method != "crown_ibp")
        if method != "alpha_crown":
            return rounded_down(relaxed.least(program.outputs, weight), self.dtype, g)
        tight = tightened(relaxed, weight, steps, lr)
        found = tight.optimised(program.outputs, weight, steps, lr)
        found = torch.maximum(found, relaxed.least(program.outputs, weight))
        return rounded_down(found, self.dtype, g)
