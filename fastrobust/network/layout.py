"""Where PyTorch's convolutions are faster with the channels of a pixel side by side (channels_last)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastrobust.network.capture import Network, args_of
from fastrobust.network.lower import VIEWS, Lowered, alone, overwrites

__all__ = ["channels_last"]

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)
STRIDED = (*VIEWS, aten.as_strided.default, aten.view.dtype, aten.sym_stride.int, aten.stride.int)


def channels_last(network: Network, lowered: Lowered) -> Lowered:
    """Its weights of 2-d convolutions become channels_last, which makes their results so as well.

    Unchanged where that does not pay (we measured: images of one channel, where the first layers are too small) or has
    not been measured (CUDA, 16 bits), and where values may depend on how tensors lie in memory.
    """
    nodes = list(lowered.forward.graph.nodes)
    filters = {args_of(node)[1] for node in nodes if node.target in CONVOLUTIONS}
    image = len(network.shape) == 3 and network.shape[0] > 1
    if not (filters and image and network.dtype == torch.float32 and network.device.type == "cpu"):
        return lowered
    if any(node.target in STRIDED or (overwrites(node) and not alone(args_of(node)[0])) for node in nodes):
        return lowered
    placeholders = [node for node in nodes if node.op == "placeholder"][1:]
    graph = lowered.weights.graph
    output = graph.output_node()
    with graph.inserting_before(output):
        parts = tuple(
            graph.call_function(_last, (node,)) if place in filters else node
            for place, node in zip(placeholders, args_of(output)[0], strict=True)
        )
    output.args = (parts,)
    lowered.forward.recompile()
    lowered.weights.recompile()
    return replace(lowered, notes=(*lowered.notes, "convolutions in channels_last"))


def _last(filters: Tensor) -> Tensor:
    return filters.contiguous(memory_format=torch.channels_last)
