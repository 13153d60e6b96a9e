"""Rows of batches: what steps do to single points, natively for dense float32 rows on a CPU, else in PyTorch."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastrobust import _backend
from fastrobust.ops import _geometry as geometry
from fastrobust.threat import NORMS

__all__ = ["assign", "column", "distance", "draw_back", "ends", "largest", "native", "onto_sphere", "size", "unit_step"]

MEASURES = (*NORMS, "L0")


def native(*rows: Tensor) -> ModuleType | None:
    """The native module, if it serves all of these rows."""
    for each in rows:
        if each.device.type != "cpu" or each.dtype != torch.float32 or not each.is_contiguous():
            return None
    return _backend.plain


def assign(into: Tensor, rows: Tensor, values: Tensor) -> None:
    """into[rows] = values[rows] for a mask (batch,), without waiting for a GPU."""
    if into.is_cuda:
        torch.where(column(rows, into), values.to(into.dtype), into, out=into)
        return
    module = native(into, values)
    if module is None or not rows.is_contiguous() or into.shape != values.shape:
        at = torch.nonzero(rows)[:, 0]
        if len(at):
            into[at] = values[at].to(into.dtype)
    elif into.numel():
        module.copy_rows(into.data_ptr(), values.data_ptr(), rows.data_ptr(), len(into), into[0].numel() * 4)


def column(each: Tensor, x: Tensor) -> Tensor:
    """Numbers (batch,) that broadcast against x (batch, ...)."""
    return each.reshape(-1, *[1] * (x.dim() - 1))


def size(delta: Tensor, norm: str) -> Tensor:
    """Norms (batch,) of rows of any shape; L0 counts coordinates."""
    rows = delta.flatten(1)
    if norm == "L0":
        return (rows != 0).sum(1).to(delta.dtype)
    norms: Tensor = torch.linalg.vector_norm(rows, {"Linf": torch.inf, "L2": 2, "L1": 1}[norm], dim=1)
    return norms


def distance(x: Tensor, centre: Tensor | None, norm: str) -> Tensor:
    """Norms (batch,) of x - centre, or of x, in float64."""
    module = native(x) if centre is None else native(x, centre)
    if module is None:
        return size(x.double() if centre is None else x.double() - centre.double(), norm)
    out = torch.empty(len(x), dtype=torch.float64)
    module.norms(
        out.data_ptr(), x.data_ptr(), 0 if centre is None else centre.data_ptr(), len(x), x[0].numel() if len(x) else 0,
        MEASURES.index(norm), _backend.threads(),
    )  # fmt: skip
    return out


def draw_back(x: Tensor, rows: Tensor, centre: Tensor, share: float, box: tuple[Tensor, Tensor]) -> None:
    """These rows (batch,) of x in place: centre + share (x - centre), clipped to the box (its ends)."""
    module = native(x, centre)
    if module is None or x.numel() == 0:
        assign(x, rows, torch.minimum(torch.maximum(centre + (x - centre) * share, box[0]), box[1]))
        return
    low, high = ends(box, x)
    module.draw_back(
        *(t.data_ptr() for t in (x, centre, rows, low, high)), len(x), x[0].numel(), share, _backend.threads()
    )


def onto_sphere(delta: Tensor, radius: Tensor) -> Tensor:
    """Each row (batch, ...) scaled to an L2 norm of `radius`; 0 stays 0."""
    norm = size(delta, "L2")
    return delta * column(radius / torch.where(norm > 0, norm, 1), delta)


def largest(delta: Tensor, count: Tensor) -> Tensor:
    """`delta` with all but its `count` (batch,) largest magnitudes set to 0; as large ones as the last all stay."""
    flat = delta.flatten(1).abs()
    rank = count.long().clamp(1, flat.shape[1]) - 1
    threshold = flat.sort(1, descending=True).values.gather(1, rank[:, None])
    return torch.where(flat >= threshold, delta.flatten(1), 0).view_as(delta)


AFTER = {"": 0, "sphere": 1, "largest": 2}


def unit_step(
    x: Tensor, centre: Tensor, slope: Tensor, length: Tensor, after: str = "", reach: Tensor | None = None,
    box: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Steps of L2 norm `length` (batch,) along the slopes, then back to where the points may lie.

    Args:
        x, centre, slope: (batch, ...) iterates, clean points, finite gradients.
        after: "" for no more; "sphere": onto the L2 sphere of radius `reach` around the centre; "largest": only the
            `reach` coordinates that are farthest from the centre stay moved.
        reach: (batch,).
        box: the ends of the box, tensors that broadcast against a point; None: it is open.
    """
    module = native(x, centre, slope)
    if module is None or x.numel() == 0:
        moved = x + geometry.unit_l2(slope) * column(length, slope)
        if reach is not None and after:
            moved = centre + (onto_sphere if after == "sphere" else largest)(moved - centre, reach)
        return moved if box is None else torch.minimum(torch.maximum(moved, box[0]), box[1])
    out = torch.empty_like(x)
    long, far = length.float(), (length if reach is None else reach).float()
    low, high = (None, None) if box is None else ends(box, x)
    module.unit_step(
        *(0 if t is None else t.data_ptr() for t in (out, x, centre, slope, long, far, low, high)), len(x),
        x[0].numel(), AFTER[after], _backend.threads(),
    )  # fmt: skip
    return out


def ends(box: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A box's ends, dense and of a point's shape."""
    low, high = (end.expand_as(x[0]).contiguous() for end in box)
    return low, high
