"""ATen operations that only move elements, or put zeros around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from fastrobust.network.capture import args_of
from fastrobust.network.tape import Unsupported

__all__ = ["MOVES", "order_of"]

aten = torch.ops.aten

MOVES = (
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unflatten.int,
    aten.permute.default, aten.transpose.int, aten.t.default, aten.movedim.int, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten.slice.Tensor, aten.select.int, aten.flip.default, aten.roll.default, aten.pad.default,
    aten.constant_pad_nd.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
    aten.channel_shuffle.default, aten.upsample_nearest1d.vec, aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default, aten.expand.default,
)  # fmt: skip


def order_of(node: Node) -> list[int]:
    """Which element of the input each element of the result is, within a sample; -1 for a 0 put in.

    What the operation does to element numbers is what it does.

    Raises:
        Unsupported: if it mixes samples, or puts in another constant.
    """
    before, after = args_of(node)[0].meta["val"], node.meta["val"]
    if node.target is aten.roll.default:
        dims = args_of(node)[2] if len(args_of(node)) > 2 else []
        if not dims or any(d % before.dim() == 0 for d in dims):
            raise Unsupported("it mixes samples")
    size = before[0].numel()
    # Two samples with elements numbered from 1; what the operation puts in itself is 0.
    numbers = torch.arange(1, 2 * size + 1, dtype=torch.float64).reshape(2, *before.shape[1:])
    function: Any = node.target
    try:
        moved: Tensor = function(numbers, *map_arg(node.args[1:], _number), **map_arg(node.kwargs, _number))
    except (RuntimeError, ValueError) as error:
        raise Unsupported(f"the rearrangement cannot be traced: {error}") from None
    first, second = (moved.reshape(len(moved), -1)[i] for i in (0, -1))
    if not bool((first >= 0).all()):
        raise Unsupported("it puts in a constant other than 0")
    if len(moved) != 2 or moved.shape[1:] != after.shape[1:] or not torch.equal(second, first + size * (first > 0)):
        raise Unsupported("it mixes samples, or puts in a constant other than 0")
    order: list[int] = (first.long() - 1).tolist()
    return order


def _number(node: Node) -> Any:
    """A size that depends on the batch, for two samples."""
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt):
        (symbol,) = value.node.expr.free_symbols
        return int(value.node.expr.subs({symbol: 2}))
    return value
