"""The captured graph rewritten for attacks in eval mode: nothing that does nothing, batch norm folded, and what depends
on parameters alone separated from what depends on the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from fastrobust.network.capture import CaptureError, Network, args_of, place_of

__all__ = ["VIEWS", "Lowered", "alone", "lower", "overwrites", "unfolded"]

aten = torch.ops.aten

CONVOLUTIONS = (
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default,
    aten.conv3d.padding,
)  # fmt: skip
DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
            aten.feature_alpha_dropout.default)  # fmt: skip
COPIES = (aten.clone.default, aten.contiguous.default, aten.lift_fresh_copy.default)
VIEWS = (aten.view.default, aten._unsafe_view.default)  # these insist on how their input lies in memory


@dataclass(frozen=True)
class Lowered:
    """Two graphs: `weights(*network.tensors())` gives the tuple that `forward(x, *weights)` takes.

    Attributes:
        weights: from the model's tensors to what the forward pass uses; runs once a refresh.
        forward: from the input to the logits.
        notes: one line a rewriting, for `explain`.
    """

    weights: GraphModule
    forward: GraphModule
    notes: tuple[str, ...]


def lower(network: Network) -> Lowered:
    """Rewrite the graph exactly (in real arithmetic).

    Raises:
        CaptureError: if the graph draws random numbers, uses the statistics of the batch, or writes to a parameter.
    """
    graph = _copied(network)
    notes = _drop_identities(graph) + _fold_batch_norm(graph)
    _canonical(graph)
    return _checked(network, graph, notes)


def unfolded(network: Network) -> Lowered:
    """The same without batch norm folded: every operation that rounds is the user's.

    Raises:
        CaptureError: as `lower`.
    """
    graph = _copied(network)
    return _checked(network, graph, _drop_identities(graph))


def _copied(network: Network) -> Graph:
    graph = Graph()
    outputs: Any = graph.graph_copy(network.module.graph, {})
    graph.output(outputs[0])
    return graph


def _checked(network: Network, graph: Graph, notes: list[str]) -> Lowered:
    graph.eliminate_dead_code()
    for node in graph.nodes:
        _check_deterministic(node)
    weights, forward = _split(network.module, graph)
    return Lowered(weights, forward, tuple(notes))


def overwrites(node: Node) -> bool:
    """Whether an operation writes to its first argument, as `relu_` does."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def alone(node: Node) -> bool:
    """Whether nothing else reads a tensor that is overwritten, under this name or as a view.

    Then it does not matter whether what could be a view is a copy.
    """
    schema = getattr(node.target, "_schema", None)
    fresh = schema is not None and (schema.is_mutable or not any(r.alias_info for r in schema.returns))
    return fresh and len(node.users) == 1


def _drop_identities(graph: Graph) -> list[str]:
    notes = []
    own = _parameter_only(graph)
    for node in list(graph.nodes):  # of a constant that the model's code makes; it has no gradient anyway
        if node.target is aten.detach_.default and args_of(node)[0] in own:
            node.replace_all_uses_with(args_of(node)[0])
            graph.erase_node(node)
            own.discard(node)
    writes = [node for node in graph.nodes if overwrites(node)]
    for node in writes:
        if any(n in own for n in node.all_input_nodes[:1]):
            raise CaptureError(f"{_name(node)} writes to a parameter or buffer ({place_of(node)})")
    free = all(alone(args_of(node)[0]) for node in writes)
    for node in list(graph.nodes):
        if node.target in VIEWS and free:
            node.target = aten.reshape.default
        if node.target in DROPOUTS and args_of(node)[2] is False:
            notes.append(f"dropout removed ({place_of(node)})")
        elif node.target not in (() if writes else COPIES):  # a copy may be there to be written to
            continue
        node.replace_all_uses_with(args_of(node)[0])
        graph.erase_node(node)
    return notes


def _fold_batch_norm(graph: Graph) -> list[str]:
    notes = []
    own = _parameter_only(graph)
    for node in list(graph.nodes):
        if (
            node.target is not aten.batch_norm.default
            or args_of(node)[5]
            or not all(a is None or a in own for a in args_of(node)[1:5])
        ):
            continue
        source, weight, bias, mean, var, _, _, eps, *_ = args_of(node)
        with graph.inserting_before(node):
            affine = graph.call_function(_batch_norm_affine, (weight, bias, mean, var, eps))
            if _takes_affine(source, own):
                filters, old = args_of(source)[1], args_of(source)[2] if len(args_of(source)) > 2 else None
                pair = graph.call_function(_scaled, (filters, old, affine))
                rest = args_of(source)[3:]
                arguments = (args_of(source)[0], _item(graph, pair, 0), _item(graph, pair, 1), *rest)
                folded = graph.call_function(source.target, arguments)
                notes.append(f"batch norm folded into the layer before ({place_of(node)})")
            else:
                dims = _dims(node)
                scale = graph.call_function(_column, (_item(graph, affine, 0), mean, dims))
                shift = graph.call_function(_column, (_item(graph, affine, 1), mean, dims))
                product = graph.call_function(aten.mul.Tensor, (source, scale))
                product.meta = dict(node.meta)
                folded = graph.call_function(aten.add.Tensor, (product, shift))
                notes.append(f"batch norm became a scale and a shift ({place_of(node)})")
        folded.meta = dict(node.meta)
        node.replace_all_uses_with(folded)
        graph.erase_node(node)
        own = _parameter_only(graph)
    return notes


def _canonical(graph: Graph) -> None:
    """x - c as x + (-c) and x / c as x * (1 / c), for what parameters alone determine."""
    own = _parameter_only(graph)
    inverse = {aten.sub.Tensor: (aten.add.Tensor, torch.neg), aten.div.Tensor: (aten.mul.Tensor, torch.reciprocal)}
    for node in list(graph.nodes):
        if node.target in inverse and not node.kwargs and node not in own and args_of(node)[1] in own:
            target, turned = inverse[node.target]
            with graph.inserting_before(node):
                constant = graph.call_function(turned, (args_of(node)[1],))
                same = graph.call_function(target, (args_of(node)[0], constant))
            same.meta = dict(node.meta)
            node.replace_all_uses_with(same)
            graph.erase_node(node)
            own.add(constant)


def _takes_affine(source: Any, own: set[Node]) -> bool:
    """Whether the layer computes W x + b with parameters of its own and for nobody else."""
    if not isinstance(source, Node) or len(source.users) != 1:
        return False
    if source.target not in (*CONVOLUTIONS, aten.linear.default):
        return False
    return all(a is None or a in own for a in args_of(source)[1:3]) and not source.kwargs


def _dims(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 4


def _item(graph: Graph, pair: Node, index: int) -> Node:
    return graph.call_function(_get, (pair, index))


def _get(pair: tuple[Tensor, Tensor], index: int) -> Tensor:
    return pair[index]


def _batch_norm_affine(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Batch norm as x * scale + shift, per channel, float64."""
    scale = torch.rsqrt(var.double() + eps)
    scale = scale if weight is None else scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def _scaled(filters: Tensor, bias: Tensor | None, affine: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    scale, shift = affine
    shift = shift if bias is None else shift + bias.double() * scale
    rows = scale.reshape(-1, *[1] * (filters.dim() - 1))
    return (filters.double() * rows).to(filters.dtype), shift.to(filters.dtype)


def _column(v: Tensor, like: Tensor, dims: int) -> Tensor:
    return v.to(like.dtype).reshape(-1, *[1] * (dims - 2))


def _parameter_only(graph: Graph) -> set[Node]:
    """The nodes that the input does not reach."""
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    own: set[Node] = set(placeholders[:-1])
    for node in graph.nodes:
        reads = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and reads and own.issuperset(reads)):
            own.add(node)
    return own


def _check_deterministic(node: Node) -> None:
    if node.op != "call_function":
        return
    tags = getattr(node.target, "tags", ())
    probability = (*args_of(node)[4:5], node.kwargs.get("dropout_p", 0.0))[0]
    quiet = node.target is aten.scaled_dot_product_attention.default and probability == 0.0
    if torch.Tag.nondeterministic_seeded in tags and not quiet:
        raise CaptureError(f"{_name(node)} draws random numbers ({place_of(node)})")
    if node.target is aten.batch_norm.default and args_of(node)[5]:
        raise CaptureError(f"{_name(node)} uses the statistics of the batch ({place_of(node)})")


def _name(node: Node) -> str:
    return str(node.target).removesuffix(".default")


def _split(root: GraphModule, graph: Graph) -> tuple[GraphModule, GraphModule]:
    """What the input does not reach, and the rest."""
    own = _parameter_only(graph)
    passes = [n for n in own if n.op != "get_attr" and any(u not in own for u in n.users)]
    order = {n: i for i, n in enumerate(graph.nodes)}
    passes.sort(key=order.__getitem__)
    weights, forward = Graph(), Graph()
    copied: dict[Node, Node] = {}
    inner: dict[Node, Node] = {}
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    inner[placeholders[-1]] = forward.node_copy(placeholders[-1])
    for k, node in enumerate(passes):
        inner[node] = forward.placeholder(f"weight_{k}")
        inner[node].meta = dict(node.meta)
    for node in graph.nodes:
        if node in own:
            copied[node] = weights.node_copy(node, copied.__getitem__)
        if node in own and node.op == "get_attr":
            inner[node] = forward.node_copy(node)
        elif node not in own and node not in inner:
            inner[node] = forward.node_copy(node, inner.__getitem__)
    weights.output(tuple(copied[n] for n in passes))
    return _module(root, weights), _module(root, forward)


def _module(root: GraphModule, graph: Graph) -> GraphModule:
    graph.eliminate_dead_code()
    graph.lint()
    return GraphModule(root, graph)
