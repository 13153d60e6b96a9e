"""What the interpreters of a lowered graph share: a table with one rule per ATen operation, and the walk over nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.fx import Graph, Node

from fastrobust.network.capture import place_of
from fastrobust.network.tape import Unsupported

__all__ = ["Rules", "operations"]

Made = TypeVar("Made")


class Rules(Generic[Made]):
    """One rule per ATen operation; used as a decorator, it enters a function for the operations named.

    Args:
        missing: what an operation without a rule has not, for error messages.
    """

    def __init__(self, missing: str) -> None:
        self.missing = missing
        self.known: dict[Any, Callable[..., Made]] = {}

    def __call__(self, *targets: Any) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
        def enter(function: Callable[..., Made]) -> Callable[..., Made]:
            self.known.update(dict.fromkeys(targets, function))
            return function

        return enter

    def apply(self, node: Node, *arguments: Any) -> Made:
        """What the node's rule makes of these arguments.

        Raises:
            Unsupported: naming the operation, what stands in the way, and its place in the user's code.
        """
        found = self.known.get(node.target)
        if found is None:
            raise Unsupported(f"{node.target} has no {self.missing} ({place_of(node)})")
        try:
            return found(*arguments)
        except Unsupported as error:
            raise Unsupported(f"{node.target}: {error} ({place_of(node)})") from None


def operations(graph: Graph) -> Iterator[Node]:
    """The nodes that compute tensors, and the output; not the sizes that depend on the batch."""
    for node in graph.nodes:
        if node.op != "placeholder" and not isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool, int)):
            yield node
