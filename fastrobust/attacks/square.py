"""Square Attack (Andriushchenko, Croce, Flammarion and Hein, ECCV 2020): random search over square windows."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust import _backend, _checks, ops
from fastrobust.attacks._attack import Attack
from fastrobust.attacks._objective import Loss
from fastrobust.attacks._points import Points
from fastrobust.attacks._rows import assign, native
from fastrobust.attacks._victim import Model, to_model_dtype
from fastrobust.ops._rounding import philox
from fastrobust.threat import Threat

__all__ = ["Square"]

# Of 10,000 queries, those after which the windows' share p of the image is halved.
HALVINGS, SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), 10_000
PLANNED = 32  # queries whose windows and signs are drawn at a time
WINDOWS, START = 16, 17  # Philox streams
PLACES = 4  # words of a query that say where: row and column of the window, and of a second one


class Square(Attack):
    """Random search that changes one window of the image at a time and keeps what raises the loss. No gradients.

    A query replaces the perturbation in a window, whose share of the image falls from `p_init` on. Linf: by +eps or
    -eps in each channel. L2 and L1: by the window's own plus a bump of two opposite halves, with the mass of a second
    window, which is wiped out. Each point draws windows and signs of its own, and leaves as soon as it is fooled.

    The last two dimensions of a sample are rows and columns, those before them channels; a vector is an image of one
    row, and its windows are runs of features. A window that does not fit the shorter side fills it and is longer, so
    that its share stays what the schedule says.

    `AttackResult.steps` counts queries: forward passes of the point, the start included; not the look at the clean
    point before, nor the model's last word on what a compiled copy found.

    Args:
        model: maps (batch, ...) to logits (batch, classes).
        norm: "Linf", "L2" or "L1" (the last as in AutoAttack).
        eps: radius of the ball, in x's units.
        n_queries: queries of a run.
        p_init: share of the image that the first windows cover, in (0, 1].
        restarts: random starts; a point that is fooled needs no other.
        loss: what to raise; None: "margin", and "ce" towards a target, as in AutoAttack.
        resc_schedule: fit the schedule of p, made for 10,000 queries, to `n_queries`. AutoAttack says False.
        threat: `fastrobust.Linf(eps)` and the like, in place of norm, eps and box.
        keywords: those of `Attack` but eot: targeted, box, compile, seed, batch_size.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        n_queries: int = 5000,
        p_init: float = 0.8,
        restarts: int = 1,
        loss: Loss | None = None,
        resc_schedule: bool = True,
        *,
        threat: Threat | None = None,
        **keywords: Any,
    ) -> None:
        if threat is not None:
            norm, eps, keywords["box"] = threat.norm, threat.eps, threat.box
        if loss is None:
            loss = "ce" if keywords.get("targeted") else "margin"
        super().__init__(model, restarts=restarts, loss=loss, **keywords)
        name = type(self).__name__
        _checks.check_norm(name, norm)
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"{name}: eps must be finite and >= 0, got {eps!r}")
        if not isinstance(n_queries, int) or n_queries < 1:
            raise ValueError(f"{name}: n_queries must be an integer >= 1, got {n_queries!r}")
        if not 0 < p_init <= 1:
            raise ValueError(f"{name}: p_init must be in (0, 1], got {p_init!r}")
        if self.eot != 1:
            raise ValueError(f"{name}: eot must be 1, since there are no gradients to average, got {self.eot!r}")
        self.norm, self.eps, self.n_queries, self.p_init = norm, float(eps), n_queries, p_init
        self.resc_schedule = resc_schedule

    def passes(self) -> int:
        return max(1, self.restarts * self.n_queries // 3)  # forwards only

    def prepare(self, work: Points) -> None:
        self._tables = _tables(self, work.centre)

    def begin(self, points: Points, draw: int) -> None:
        t, self._draw = self._tables, draw
        points.planned, points.age = points.steps, 0
        self._plan(points)
        centre = points.centre.reshape(-1, *t.image)
        if self.norm == "Linf":
            up = _bits(self.seed, points.index, draw, t.image[0] * t.image[2]).view(-1, t.image[0], 1, t.image[2])
            wide = torch.full_like(points.centre, 2 * self.eps)
            for name, far in (("upper", points.centre + wide), ("lower", points.centre - wide)):
                end = ops.project(far, points.centre, self.eps, "Linf", self.box)
                setattr(points, name, to_model_dtype(end, points.x).reshape(-1, *t.image))
            start = torch.where(up, points.upper, points.lower)
        else:
            start = self._within(points, centre, self._tiles(points, draw))
        points.kept = start.reshape(points.x.shape)

    def step(self, points: Points) -> Tensor:
        if points.age and points.age % PLANNED == 0:
            self._plan(points)
        points.age = points.age + 1
        first = points.steps == 0
        trial = (self._move_linf if self.norm == "Linf" else self._move)(points).reshape(points.x.shape)
        with torch.no_grad():
            logits = self._victim.logits(trial)
        value, prediction, _ = self._objective(logits, points)
        value = value.to(points.value.dtype).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        fooled = self._objective.fooled(prediction, points.y) & ~points.done
        better = ((value > points.value) | first | fooled) & ~points.done
        assign(points.kept, better, trial)
        points.value = torch.where(better, value, points.value)
        points.fooled = points.fooled | fooled
        points.steps = points.steps + ~points.done
        decided: Tensor = fooled | (points.steps >= self.n_queries)
        return decided

    def _plan(self, points: Points) -> None:
        """Draw the next queries of each point: the places of its windows, an orientation, a sign for each channel."""
        t, device = self._tables, points.y.device
        assert points.index is not None
        steps = points.steps[:, None] + torch.arange(PLANNED, device=device)
        blocks = 1 + -(-(t.image[0] + 1) // 128)
        block = steps[..., None] * blocks + torch.arange(blocks, device=device)
        words = torch.stack(philox(self.seed, block, self._draw, points.index[:, None, None], WINDOWS), -1).flatten(2)
        k = steps.clamp(max=self.n_queries - 1)
        room = torch.stack([t.image[1] - t.heights[k] + 1, t.image[2] - t.widths[k] + 1], -1).repeat(1, 1, 2)
        bits = (words[..., PLACES:, None] >> torch.arange(32, device=device) & 1).flatten(2)[..., : t.image[0] + 1]
        points.plan = torch.cat([words[..., :PLACES] * room >> 32, bits], -1)
        points.planned = points.steps

    def _sides(self, points: Points, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """How far rows and columns are past the first of a window, (n, rows) and (n, columns); -1 outside it."""
        t, k = self._tables, points.steps.clamp(max=self.n_queries - 1)
        past = []
        for first, sizes, count in ((row, t.heights, t.image[1]), (column, t.widths, t.image[2])):
            at = torch.arange(count, device=row.device) - first[:, None]
            past.append(torch.where(at < sizes[k][:, None], at, -1).clamp(min=-1))
        return past[0], past[1]

    def _mask(self, sides: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """1 in a window's rows, (n, 1, rows, 1), and columns, (n, 1, 1, columns), 0 elsewhere."""
        rows, columns = ((side >= 0).to(dtype) for side in sides)
        return rows[:, None, :, None], columns[:, None, None, :]

    def _planned(self, points: Points) -> tuple[Tensor, Tensor]:
        """This query's words, and the signs of its channels."""
        plan = points.plan[torch.arange(len(points), device=points.y.device), points.steps - points.planned]
        return plan, (2 * plan[:, PLACES + 1 :, None, None] - 1).to(points.centre.dtype)

    def _move_linf(self, points: Points) -> Tensor:
        t, module = self._tables, native(points.kept, points.lower, points.upper)
        if module is not None:
            out, query = torch.empty_like(points.kept), points.steps.clamp(max=self.n_queries - 1)
            arrays = (out, points.kept, points.lower, points.upper, points.plan, points.steps - points.planned)
            module.square_step(
                *(array.data_ptr() for array in arrays), *points.plan.shape[1:],
                *(array.data_ptr() for array in (query, t.heights, t.widths)), len(out), *t.image, _backend.threads(),
            )  # fmt: skip
            return out
        plan, signs = self._planned(points)
        # By more than 2 eps and back into the ball: to one of its two ends. (Products with 0 and 1 are what runs in
        # lanes; masks of bool do not.)
        kept = points.kept.reshape(-1, *t.image)
        rows, columns = self._mask(self._sides(points, plan[:, 0], plan[:, 1]), kept.dtype)
        moved = torch.addcmul(kept, rows * signs.to(kept.dtype), columns, value=3 * self.eps)
        return torch.minimum(torch.maximum(moved, points.lower, out=moved), points.upper, out=moved)

    def _move(self, points: Points) -> Tensor:
        """L2 and L1 (section 3.4 of the paper, and the code of AutoAttack)."""
        (plan, signs), t, channels = self._planned(points), self._tables, self._tables.image[0]
        centre, kept = points.centre.reshape(-1, *t.image), points.kept.reshape(-1, *t.image)
        delta = kept.to(centre.dtype) - centre
        sides = [self._sides(points, plan[:, i], plan[:, i + 1]) for i in (0, 2)]
        window, second = (rows * columns for rows, columns in (self._mask(side, delta.dtype) for side in sides))
        rest = (1 - window) * (1 - second)
        mass = self._mass(delta)
        every, others, own = (
            (mass if mask is None else mass * mask).sum((2, 3), keepdim=True) for mask in (None, rest, window)
        )
        spare = (self.eps ** (2 if self.norm == "L2" else 1) - every.sum(1, keepdim=True)).clamp(min=0)
        which = t.phases[points.steps.clamp(max=self.n_queries - 1)]
        bumps = t.bumps[
            which[:, None, None], plan[:, PLACES, None, None], sides[0][0][:, :, None], sides[0][1][:, None]
        ]
        fresh = torch.addcmul(bumps[:, None] * signs, delta * window, 1 / (self._root(own) + 1e-12))
        size = self._root(self._mass(fresh).sum((2, 3), keepdim=True)) + 1e-12
        both = (every - others).clamp(min=0)
        wanted = self._root(spare / channels + both) if self.norm == "L2" else spare + both * channels
        return self._within(points, centre, torch.addcmul(delta * rest, fresh, wanted / size))

    def _within(self, points: Points, centre: Tensor, delta: Tensor) -> Tensor:
        """x + delta in the ball and the box, in the dtype of x; an L2 one is brought to length eps before."""
        if self.norm == "L2":
            size = torch.linalg.vector_norm(delta.flatten(1), dim=1).view(-1, 1, 1, 1)
            delta = delta * (self.eps / (size + 1e-12))
        way = "sequential" if self.norm == "L2" else "exact"
        moved = (centre + delta).reshape(points.centre.shape)
        moved = ops.project(moved, points.centre, self.eps, self.norm, self.box, projection=way)
        return to_model_dtype(moved, points.x).reshape(-1, *self._tables.image)

    def _tiles(self, points: Points, draw: int) -> Tensor:
        """The starting perturbation: bumps side by side, of a fifth of the image each way."""
        channels, rows, columns = self._tables.image
        high, wide = max(rows // 5, 1), max(columns // 5, 1)
        down, across = rows // high, columns // wide
        bits = _bits(self.seed, points.index, draw, (channels + 1) * down * across).view(-1, channels + 1, down, across)
        kinds = torch.stack([_bump(high, wide, turned, self.norm) for turned in (False, True)]).to(points.centre)
        tiles = kinds[bits[:, :1].long()] * (2 * bits[:, 1:].to(kinds.dtype) - 1)[..., None, None]
        tiles = tiles.transpose(3, 4).reshape(-1, channels, down * high, across * wide)
        top, left = (rows - down * high) // 2, (columns - across * wide) // 2
        return F.pad(tiles, (left, columns - across * wide - left, top, rows - down * high - top))

    def _mass(self, delta: Tensor) -> Tensor:
        return delta * delta if self.norm == "L2" else delta.abs()

    def _root(self, mass: Tensor) -> Tensor:
        return mass.sqrt() if self.norm == "L2" else mass


class _Tables(NamedTuple):
    """What a query's number says: sides of its window and which bump."""

    image: tuple[int, int, int]  # channels, rows, columns
    heights: Tensor
    widths: Tensor
    phases: Tensor
    bumps: Tensor  # (phases, 2, rows + 1, columns + 1), the last ones 0


def _tables(attack: Square, centre: Tensor) -> _Tables:
    shape = (1, 1, *centre.shape[1:])
    image = (math.prod(shape[:-2]), shape[-2], shape[-1])
    scale = SCHEDULE / attack.n_queries if attack.resc_schedule else 1.0
    phases = [bisect_left(HALVINGS, int(k * scale)) for k in range(attack.n_queries - 1)]
    known = [_window(attack.p_init / 2**i, *image[1:], attack.norm) for i in range(len(HALVINGS) + 1)]
    sizes = [(0, 0), *(known[i] for i in phases)]  # the first query is the start's
    bumps = torch.zeros(len(known), 2, image[1] + 1, image[2] + 1)
    for i, (height, width) in enumerate(known if attack.norm != "Linf" else []):
        for turned in (False, True):
            bumps[i, int(turned), :height, :width] = _bump(height, width, turned, attack.norm)
    heights, widths, which = (torch.tensor(v, device=centre.device) for v in (*zip(*sizes, strict=True), [0, *phases]))
    return _Tables(image, heights, widths, which, bumps.to(centre))


def _window(p: float, rows: int, columns: int, norm: str) -> tuple[int, int]:
    """Height and width of a window with a share p of the image; square where that fits."""

    def side(wanted: float) -> int:
        if norm == "Linf":
            return max(round(wanted), 1)
        return max(round(wanted), 3) | 1  # a bump has a middle

    square, short = side(math.sqrt(p * rows * columns)), min(rows, columns)
    if square <= short:
        return square, square
    long = min(side(p * rows * columns / short), max(rows, columns))
    return (short, long) if rows <= columns else (long, short)


def _bump(height: int, width: int, turned: bool, norm: str) -> Tensor:
    """Two halves of opposite signs, each falling off from its middle; of norm 1. `turned`: side by side."""
    power, order = (2, 2.0) if norm == "L2" else (4, 1.0)
    if (turned and width > 1) or height == 1:
        return _bump(width, height, False, norm).T if width > 1 else torch.ones(1, 1)
    halves = []
    for rows in (height // 2, height - height // 2):
        reach = max(rows // 2, width // 2) + 1
        tail = (1 / torch.arange(1, reach + 1, dtype=torch.float64) ** power).flip(0).cumsum(0).flip(0)
        away = [(torch.arange(size) - size // 2).abs() for size in (rows, width)]
        half = tail[torch.maximum(away[0][:, None], away[1])]
        halves.append(half / torch.linalg.vector_norm(half, order))
    both = torch.cat([halves[0], -halves[1]])
    both /= torch.linalg.vector_norm(both, order)
    return both.float()


def _bits(seed: int, index: Tensor | None, draw: int, count: int) -> Tensor:
    """Random bits (n, count) for a start."""
    assert index is not None
    block = torch.arange(-(-count // 128), device=index.device)
    words = torch.stack(philox(seed, block, draw, index[:, None], START), -1)
    return (words[..., None] >> torch.arange(32, device=index.device) & 1).flatten(1)[:, :count] > 0
