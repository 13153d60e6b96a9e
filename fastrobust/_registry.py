"""The table of ops. An `OpSpec` ties an op's parts together and makes it a torch.library operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastrobust import _backend

__all__ = ["LIBRARY", "OPS", "OpSpec", "direct", "explain", "register"]

LIBRARY = torch.library.Library("fastrobust", "DEF")
OPS: dict[str, OpSpec] = {}

Sample = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class OpSpec:
    """One op.

    Attributes:
        name: the public function in `fastrobust.ops`.
        schema: arguments and results in torch's schema language, e.g. ``(Tensor x, float eps) -> Tensor``.
        reference: plain PyTorch, on the schema's arguments: what the kernels are tested against.
        native: the same on a native module: ``native(module, *args)``.
        fake: result shapes only.
        backward: ``(setup_context, backward)`` for `torch.library.register_autograd`, or None for an op whose
            result is a constant for autograd.
        samples: yields arguments of the *operator* on a device, for `doctor` and the tests.
        tolerance: relative difference allowed between native and reference beyond a few roundings, for kernels that
            use series of their own.
    """

    name: str
    schema: str
    reference: Callable[..., Any]
    native: Callable[..., Any]
    fake: Callable[..., Any]
    samples: Callable[[torch.device], Iterator[tuple[Any, ...]]]
    backward: tuple[Callable[..., None], Callable[..., Any]] | None = None
    tolerance: float = 0.0

    @property
    def op(self) -> Any:
        """The registered operator, ``torch.ops.fastrobust.<name>``."""
        return getattr(torch.ops.fastrobust, self.name).default

    def run(self, *args: Any) -> Any:
        """Native where there is a kernel for the first argument's device, else the reference."""
        module = _backend.module_for(args[0].device)
        return self.reference(*args) if module is None else self.native(module, *args)


def register(spec: OpSpec) -> OpSpec:
    """Enter the op in the table and define ``torch.ops.fastrobust.<name>``."""
    LIBRARY.define(f"{spec.name}{spec.schema}")
    LIBRARY.impl(spec.name, spec.run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastrobust::{spec.name}", spec.fake, lib=LIBRARY)
    if spec.backward is not None:
        setup, backward = spec.backward
        torch.library.register_autograd(f"fastrobust::{spec.name}", backward, setup_context=setup, lib=LIBRARY)
    else:
        LIBRARY.impl(spec.name, _constant(spec), "Autograd")
    torch.library.register_vmap(f"fastrobust::{spec.name}", _looped(spec), lib=LIBRARY)
    OPS[spec.name] = spec
    return spec


def _looped(spec: OpSpec) -> Callable[..., Any]:
    """`torch.func.vmap`'s rule: the op once for each entry of the mapped dimension."""

    def run(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        results = [
            spec.op(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=False)))
            for i in range(info.batch_size)
        ]
        if results[0] is None:
            return None, None
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=False))), (0,) * len(results[0])

    return run


def _constant(spec: OpSpec) -> Callable[..., Any]:
    """Autograd's view of an op whose result is a constant: run it below autograd, attach nothing."""

    def run(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return spec.op(*args)

    return run


_is_compiling = torch.compiler.is_compiling
_functorch_level, _dispatch_modes, _function_modes = _backend.intercepting


def direct() -> bool:
    """Whether an eager call on plain tensors may skip the dispatcher: nothing is tracing, batching or intercepting."""
    return not _is_compiling() and _functorch_level() is None and not _dispatch_modes() and not _function_modes()


def explain(name: str, device: str | torch.device = "cpu") -> str:
    """One line: which path the op takes on `device`, and why.

    Raises:
        KeyError: if there is no such op.
    """
    name = {"project": "pgd_step", "project_": "pgd_step_"}.get(name, name)  # a step of no length
    if name not in OPS:
        raise KeyError(f"explain: name must be one of {', '.join(sorted(OPS))}, got {name!r}")
    device = torch.device(device)
    try:
        module = _backend.module_for(device)
    except RuntimeError as error:
        return f"{name} on {device}: raises, since {error}"
    if module is None:
        why = "FASTROBUST_BACKEND=reference" if _backend.backend == "reference" else ""
        why = why or _backend.missing.get(device.type, "") or f"no kernels for device type {device.type!r}"
        return f"{name} on {device}: reference (PyTorch), since {why}"
    detail = f"instruction set {module.isa()}" if device.type == "cpu" else "CUDA kernels"
    return f"{name} on {device}: native, {detail}"
