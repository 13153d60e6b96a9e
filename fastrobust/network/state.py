"""What plain values hold: lists, dictionaries, arrays, settings in objects; to compare them later or to digest them."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["contents", "holds", "kept"]

ATOMS = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device)
FUNCTIONS = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)


def holds(value: Any) -> bool:
    """Whether something can change within the value: in what `contents` looks into."""
    if isinstance(value, (list, tuple, deque, dict, set, frozenset, np.ndarray)):
        return True
    return not isinstance(value, (*ATOMS, *FUNCTIONS, Tensor, nn.Module)) and bool(_fields(value))


def kept(module: nn.Module) -> dict[str, Any]:
    """What a module keeps beside parameters, buffers, modules, hooks and its mode."""
    own = vars(nn.Module())
    return {name: value for name, value in vars(module).items() if name not in own}


def _fields(value: Any) -> dict[str, Any]:
    """An object's attributes, in its dictionary and in slots."""
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for some in slots for name in ([some] if isinstance(some, str) else some)]
    found = {name: getattr(value, name) for name in names if not name.startswith("__") and hasattr(value, name)}
    return found | getattr(value, "__dict__", {})


def contents(value: Any, leaf: Callable[[Any], Any], within: int = 1, above: tuple[int, ...] = ()) -> Any:
    """The value in tuples and strings that compare, and print, alike where it holds the same.

    Args:
        leaf: says what stands for tensors, modules, functions and objects that are not looked into.
        within: how many objects deep to look at attributes.
        above: ids of what the value is part of.
    """
    kind, above = type(value).__qualname__, (*above, id(value))

    def part(inner: Any, levels: int = within) -> Any:
        return "itself" if id(inner) in above and holds(inner) else contents(inner, leaf, levels, above)

    if isinstance(value, ATOMS):
        return kind, repr(value)
    if isinstance(value, np.ndarray):
        plain = None if value.dtype.hasobject else value.tobytes()
        return kind, value.shape, value.dtype.str, part(value.tolist()) if plain is None else plain
    if isinstance(value, dict):
        return kind, tuple((part(name), part(inner)) for name, inner in value.items())
    if isinstance(value, (list, tuple, deque)):
        return kind, tuple(map(part, value))
    if isinstance(value, (set, frozenset)):
        return kind, tuple(sorted(repr(part(inner)) for inner in value))
    if isinstance(value, functools.partial):
        return kind, part(value.func), part(value.args), part(value.keywords)
    if within and holds(value):
        return kind, tuple((name, part(inner, within - 1)) for name, inner in _fields(value).items())
    return leaf(value)
