"""A model as a graph of ATen operations whose parameters stay the model's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_unflatten

__all__ = ["CaptureError", "Network", "args_of", "capture", "in_eval", "place_of"]


class CaptureError(RuntimeError):
    """The model has no graph; the message says what stands in the way, and where in the user's code."""


@dataclass(frozen=True)
class Network:
    """A captured model. It does not keep the model alive.

    Attributes:
        reference: a weak reference to the model, which is never changed.
        module: its ATen graph in eval mode. Placeholders are the parameters, buffers and constants in `sources`, then
            the input, of shape (batch, *shape) with any batch.
        sources: for each placeholder but the input, where its tensor lives in the model, such as "fc.weight".
        shape: a sample's shape.
        dtype, device: the input's.
    """

    reference: ReferenceType[nn.Module]
    module: GraphModule
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    constants: dict[str, Tensor] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        model = self.reference()
        if model is None:
            raise ReferenceError("the captured model is gone; keep it as long as its network is in use")
        return model

    def tensors(self) -> list[Tensor]:
        """The placeholders' values now: what the model holds, also after an optimizer step or an assignment."""
        return [tensor.detach() for tensor in self.held()]

    def held(self) -> list[Tensor]:
        """The same as the model's own objects."""
        steps, places = self._walk
        modules = [self.model]
        for above, name in steps:
            module = modules[above]._modules.get(name)
            modules.append(getattr(modules[above], name) if module is None else module)
        found = []
        for owner, name in places:
            value = self.constants[name] if owner is None else modules[owner]._parameters.get(name)
            found.append(_attribute(modules[owner or 0], name) if value is None else value)
        return found

    @cached_property
    def _walk(self) -> tuple[list[tuple[int, str]], list[tuple[int | None, str]]]:
        """Each module as the number of its parent and its name there, and each tensor so; constants are nobody's."""
        numbers, steps = {"": 0}, []
        places: list[tuple[int | None, str]] = []
        for source in self.sources:
            *path, name = source.split(".")
            if source in self.constants:
                places.append((None, source))
                continue
            above = ""
            for part in path:
                here = f"{above}.{part}"
                if here not in numbers:
                    numbers[here] = len(numbers)
                    steps.append((numbers[above], part))
                above = here
            places.append((numbers[above], name))
        return steps, places


def _attribute(owner: nn.Module, name: str) -> Tensor:
    for held in (owner._buffers, owner.__dict__):
        value = held.get(name)
        if isinstance(value, Tensor):
            return value
    value = getattr(owner, name)
    assert isinstance(value, Tensor)
    return value


def capture(model: nn.Module, example: Tensor) -> Network:
    """The model's ATen graph in eval mode, by `torch.export` with a dynamic batch.

    Args:
        model: maps (batch, ...) to (batch, ...).
        example: an input, (batch, ...); only its shape, dtype and device matter.

    Raises:
        TypeError: if `model` is no module or `example` no tensor.
        CaptureError: naming the place in the user's code at which export gave up.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"capture: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(example, Tensor) or example.dim() < 1:
        raise TypeError(f"capture: example must be a tensor (batch, ...), got {type(example).__name__}")
    # Two samples: export would take a batch of one for a constant.
    sample = example[:1].detach()
    inputs = torch.cat([sample, sample]) if len(sample) else sample.new_zeros(2, *example.shape[1:])
    with (
        in_eval(model), _attributes_kept(model), warnings.catch_warnings(), torch.inference_mode(False),
        torch.enable_grad(),
    ):  # fmt: skip
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, (inputs,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
        except Exception as error:  # export raises anything, down to what the model's own code does
            raise CaptureError(f"capture: {type(model).__name__} cannot be exported: {_first_line(error)}") from error
    signature = program.graph_signature
    targets = signature.inputs_to_parameters | signature.inputs_to_buffers | signature.inputs_to_lifted_tensor_constants
    placeholders = [n.name for n in program.graph.nodes if n.op == "placeholder"]
    if len(placeholders) != len(targets) + 1 or placeholders[-1] in targets:
        raise CaptureError(f"capture: {type(model).__name__} must take one tensor, its graph has other inputs too")
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
        raise CaptureError(f"capture: {type(model).__name__} writes to {', '.join(changed)} in its forward pass")
    leaf = object()
    if len(signature.user_outputs) != 1 or tree_unflatten([leaf], program.call_spec.out_spec) is not leaf:
        raise CaptureError(f"capture: {type(model).__name__} must return one tensor, it returns something else")
    names = tuple(targets[name] for name in placeholders[:-1])
    parts = GraphModule(program.graph_module, program.graph)
    return Network(
        ref(model), parts, names, tuple(example.shape[1:]), example.dtype, example.device,
        {name: value for name, value in program.constants.items() if not _is_attribute(model, name, value)},
    )  # fmt: skip


def args_of(node: Node) -> tuple[Any, ...]:
    """A node's arguments, whose types its operation's schema knows."""
    return node.args


def place_of(node: Node) -> str:
    """Where a node comes from in the user's code: the module's name and the last line outside torch."""
    modules = node.meta.get("nn_module_stack") or {}
    name = next((str(entry[0]) for entry in reversed(list(modules.values())) if entry[0]), "")
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    line = next((text.strip() for text in reversed(lines) if "File " in text and "/torch/" not in text), "")
    return ", ".join(part for part in (f"module {name!r}" if name else "", line) if part) or "unknown place"


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Within, all modules are in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards all modules hold the objects they held before: export leaves copies of lists and dictionaries."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, held in before:
            for name in vars(module).keys() - held.keys():
                del vars(module)[name]
            vars(module).update(held)


def _is_attribute(model: nn.Module, name: str, value: object) -> bool:
    """Whether a constant of the program is an attribute of the model, to be read anew each time."""
    owner: object = model
    for part in name.split("."):
        owner = getattr(owner, part, None)
    return owner is value


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    user = [line for line in lines if line.startswith("File ") and "/torch/" not in line]
    return lines[0] + (f" ({user[-1]})" if user else "")
