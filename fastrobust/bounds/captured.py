"""The programs of models: captured once, and trusted as long as the model looks and answers the same."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastrobust import _checks
from fastrobust.bounds.elements import Scale
from fastrobust.bounds.program import Program
from fastrobust.network import trust
from fastrobust.network.capture import capture, in_eval
from fastrobust.network.tape import Unsupported

__all__ = ["program_for"]


class _Entry(NamedTuple):
    """A program, and what the model looked like then."""

    program: Program
    looks: list[Any]
    shapes: list[torch.Size]


_programs: WeakKeyDictionary[nn.Module, dict[Any, _Entry]] = WeakKeyDictionary()
SAMPLES, CLOSE = 4, 1e-3  # on which a program is first compared with its model, and how nearly they must agree


def program_for(where: str, model: nn.Module, x: Tensor) -> Program:
    """The model's program for inputs like x; captured once, as long as the model looks and answers the same.

    Raises:
        CaptureError: if the model cannot be exported, or is not deterministic.
        ValueError: naming an operation without a rule, hooks, weights that are not finite or of another dtype than x;
            or if the model's answers are not those of its graph.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: model must be a torch.nn.Module, got {type(model).__name__}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        if tensor.dtype != x.dtype:
            raise ValueError(f"{where}: x must have the model's dtype, {name!r} is {tensor.dtype}, got {x.dtype}")
        if not _checks.is_finite(tensor):
            raise ValueError(f"{where}: the model's {name!r} holds NaN or Inf")
    key, known = (tuple(x.shape[1:]), x.dtype, x.device), _programs.setdefault(model, {})
    entry = known.get(key)
    if entry is None or not _still_fits(model, entry) or _differs(entry.program, model, x[:1]):
        known.pop(key, None)
        reason = trust.hooks(model)
        if reason:
            raise ValueError(f"{where}: {reason}, which bounds would not see")
        try:
            program = Program(capture(model, x))
        except Unsupported as error:
            raise ValueError(f"{where}: {error}") from None
        if _differs(program, model, x[:1]) or _differs(program, model, x[:SAMPLES]):
            raise ValueError(f"{where}: the model's answers differ from those of its captured graph")
        entry = known[key] = _Entry(program, _looks(model), [t.shape for t in program.network.tensors()])
    reason = _too_small(entry.program, x.dtype)
    if reason:
        raise ValueError(f"{where}: {reason}")
    return entry.program


def _still_fits(model: nn.Module, entry: _Entry) -> bool:
    now = _looks(model)
    if len(now) != len(entry.looks) or not all(map(operator.is_, now, entry.looks)):
        return False
    return [t.shape for t in entry.program.network.tensors()] == entry.shapes


def _looks(model: nn.Module) -> list[Any]:
    """As `trust.looks`, and which parameters and buffers there are, and what lies in lists and dictionaries."""
    found = trust.looks(model)
    for module in model.modules():
        for value in module.__dict__.values():
            found += _contents(value, 4)
    return found


def _contents(value: Any, depth: int) -> list[Any]:
    if depth == 0 or isinstance(value, (nn.Module, Tensor)):
        return [value]
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set)):
        return [len(value), *(part for each in value for part in _contents(each, depth - 1))]
    return [value]


def _differs(program: Program, model: nn.Module, x: Tensor) -> bool:
    """Whether the model's answers at x are not those of its graph."""
    if not len(x):
        return False
    with in_eval(model), torch.inference_mode(False), torch.no_grad():
        ours, theirs = program.forward(x.clone(), program.tensors()), model(x.clone())
    if not isinstance(theirs, Tensor) or ours.shape != theirs.shape:
        return True
    usable = torch.isfinite(ours) & torch.isfinite(theirs)
    apart = torch.where(usable, ours - theirs, 0).norm()
    return bool(apart > CLOSE * (1e-6 + torch.where(usable, theirs, 0).norm()))


def _too_small(program: Program, dtype: torch.dtype) -> str:
    """Scales below the smallest normal number have no relative accuracy."""
    tensors = program.tensors()
    for step in program.steps:
        scale = step.layer.factors(tensors)[0] if isinstance(step.layer, Scale) else None
        if scale is not None and bool(((scale != 0) & (scale.abs() < torch.finfo(dtype).smallest_normal)).any()):
            return f"a scale of {step.name} is smaller than the smallest normal number"
    return ""
