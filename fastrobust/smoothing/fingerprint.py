"""Fingerprints of networks: what their answers depend on, by name."""

from __future__ import annotations

import hashlib
from types import CellType, CodeType
from typing import Any

import torch
from torch import Tensor, nn

from fastrobust.network.state import contents, kept

__all__ = ["digest_of", "parts_of"]


def digest_of(parts: dict[str, str], about: str) -> str:
    """One digest of all parts, and of what else there is to say."""
    lines = [about, *(f"{name} {digest}" for name, digest in parts.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def parts_of(model: nn.Module, ignore: frozenset[str] = frozenset(), above: tuple[int, ...] = ()) -> dict[str, str]:
    """Digests of parameters, buffers, modules in order, and of what modules keep beside them.

    Args:
        ignore: names of attributes to leave out.
        above: ids of networks that keep this one.
    """
    known = {id(module): name for name, module in model.named_modules()}
    seen = {*above, id(model)}

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, nn.Module):
            inner = id(value) not in known and id(value) not in seen
            return parts_of(value, ignore, (*above, id(model))) if inner else known.get(id(value), "itself")
        name, code = getattr(value, "__qualname__", type(value).__qualname__), getattr(value, "__code__", None)
        if code is None or id(value) in seen:
            return getattr(value, "__module__", ""), name
        seen.add(id(value))  # a function may hold itself
        constants = [repr(const) for const in code.co_consts if not isinstance(const, CodeType)]
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        return name, code.co_code, constants, code.co_names, contents([value.__defaults__, cells], leaf)

    found = {"": str(model)}
    for name, module in model.named_modules():
        at = f"{name}." if name else ""
        found[f"{name} as a module"] = f"{type(module).__module__}.{type(module).__qualname__}"
        beside = {f"{at}{key}": value for key, value in kept(module).items()}
        found |= {key: repr(contents(beside[key], leaf)) for key in sorted(beside.keys() - ignore)}
    found |= {name: repr(_tensor(part)) for name, part in [*model.named_parameters(), *model.named_buffers()]}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in found.items()}


def _tensor(value: Tensor) -> tuple[str, ...]:
    flat = value.detach().cpu().contiguous().flatten()
    values = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return str(tuple(value.shape)), str(value.dtype), hashlib.sha256(values).hexdigest()
