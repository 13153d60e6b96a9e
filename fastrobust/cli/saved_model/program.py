"""A network read from a file: a list of operations that this package chose, run one after another.

No text of the file becomes Python code or the name of an attribute: its names are keys of a dictionary, its operations
are looked up in lists of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["HERE", "FixedBatch", "Program", "Step", "Value", "values_in"]


@dataclass(frozen=True)
class Value:
    """Stands in a step's arguments for what an earlier step made, or for a tensor of the file, or for the input."""

    name: str


class _Here:
    """Stands in a step's arguments for the device that the input is on."""


HERE = _Here()


@dataclass(frozen=True)
class Step:
    """``outputs = run(*args, **keywords)``.

    Args:
        run: one of our operations.
        args, keywords: plain data with `Value` and `HERE` in it; lists may hold them, too.
        outputs: names of the results; "" for one that nobody needs.
        several: whether `run` returns a sequence with an entry for each output.
    """

    run: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    several: bool = False


class Program(nn.Module):
    """Runs the steps on its input, (batch, ...) -> (batch, classes).

    Args:
        tensors: weights and constants by name; they become buffers, so that the input alone gets a gradient.
        source: name of the input.
        steps: in order; each uses only what is there before it.
        result: name of the output.

    Raises:
        ValueError: if a step, or the result, needs a name that nothing before it makes, or a name is made twice.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: str, steps: Sequence[Step], result: str) -> None:
        super().__init__()
        self._held = {}
        for number, (name, tensor) in enumerate(tensors.items()):
            self._held[name] = f"t{number}"
            self.register_buffer(f"t{number}", tensor.detach())
        self._source, self._steps, self._result = source, tuple(steps), result
        self._last: list[list[str]] = [[] for _ in steps]  # what no later step uses
        self._check()

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = {name: getattr(self, attribute) for name, attribute in self._held.items()}
        values[self._source] = x
        for step, unused in zip(self._steps, self._last, strict=True):
            made = step.run(*_fill(step.args, values, x), **_fill(step.keywords, values, x))
            if step.several:
                if len(made) != len(step.outputs):
                    raise ValueError(f"an operation must give {len(step.outputs)} results, got {len(made)}")
                values.update(zip(step.outputs, made, strict=True))
            elif step.outputs:
                values[step.outputs[0]] = made
            for name in unused:
                values.pop(name, None)
        result: Tensor = values[self._result]
        return result

    def _check(self) -> None:
        known = {self._source, *self._held}
        if self._source in self._held:
            raise ValueError(f"the input {self._source!r} has the name of a tensor")
        last: dict[str, int] = {}
        for number, step in enumerate(self._steps):
            for name in values_in((step.args, step.keywords)):
                if name not in known:
                    raise ValueError(f"operation {number} uses {name!r}, which nothing before it makes")
                last[name] = number
            for name in filter(None, step.outputs):
                if name in known:
                    raise ValueError(f"operation {number} makes {name!r}, which is there already")
                known.add(name)
                last[name] = number
        if self._result not in known:
            raise ValueError(f"the output {self._result!r} is made by nothing")
        for name, number in last.items():
            if name != self._result:
                self._last[number].append(name)


class FixedBatch(nn.Module):
    """A network that takes batches of one size only, for batches of any size: in parts, the last one filled up.

    Args:
        network: maps (size, ...) to (size, classes), each row by itself.
        size: of its batches.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> Tensor:
        full = torch.cat([x, x.new_zeros(-len(x) % self.size, *x.shape[1:])])
        return torch.cat([self.network(part) for part in full.split(self.size)])[: len(x)]


def values_in(data: Any) -> list[str]:
    """The names of all `Value` in plain data."""
    if isinstance(data, Value):
        return [data.name]
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, (list, tuple)) else ()
    return [name for part in parts for name in values_in(part)]


def _fill(data: Any, values: Mapping[str, Any], x: Tensor) -> Any:
    if isinstance(data, Value):
        return values[data.name]
    if data is HERE:
        return x.device
    if isinstance(data, Mapping):
        return {key: _fill(part, values, x) for key, part in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(_fill(part, values, x) for part in data)
    return data
