"""What is loaded: the native modules, the environment's wishes, and the reason for whatever is missing."""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

import torch

__all__ = ["BACKENDS", "backend", "cpu", "cuda", "intercepting", "missing", "module_for", "plain", "threads"]

BACKENDS = ("auto", "native", "reference")


def _load(name: str) -> tuple[ModuleType | None, str]:
    """The native module and "", or None and why it is absent."""
    try:
        return importlib.import_module(f"fastrobust.{name}"), ""
    except ImportError as error:
        try:
            info = importlib.import_module("fastrobust._build_info")
            reason = str(info.MISSING.get(name, ""))
        except (ImportError, AttributeError):
            reason = ""
        return None, reason or str(error)


def _choice(variable: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(variable, "").strip().lower() or "auto"
    if value not in allowed:
        raise ValueError(f"{variable} must be one of {', '.join(allowed)}, got {value!r}")
    return value


backend: str = _choice("FASTROBUST_BACKEND", BACKENDS)
cpu, _cpu_missing = _load("_C")
cuda, _cuda_missing = _load("_C_cuda") if torch.cuda.is_available() else (None, "torch sees no CUDA device")
missing: dict[str, str] = {"cpu": _cpu_missing, "cuda": _cuda_missing}
if cpu is None and backend == "auto":  # pip hides what the build says, so this is where a user learns it
    warnings.warn(
        f"fastrobust runs without its native kernels: {_cpu_missing} Plain PyTorch works instead, several times slower "
        "per attack step. Setting FASTROBUST_BACKEND=reference says that this is wanted.",
        stacklevel=2,
    )

threads = torch.get_num_threads
# Each says None or 0 while nothing batches, traces or intercepts calls.
intercepting = (
    torch._C._functorch.peek_interpreter_stack,
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
)

if cpu is not None:
    cpu.setup(
        torch.Tensor,
        (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.int32),
        threads,
        intercepting,
    )
    _wanted = os.environ.get("FASTROBUST_ISA", "").strip().lower()
    if _wanted not in ("", "auto") and not cpu.select_isa(_wanted):
        raise ValueError(
            f"FASTROBUST_ISA must be one of auto, {', '.join(cpu.isas())} on this machine, got {_wanted!r}"
        )

plain = cpu if backend != "reference" else None  # what serves plain CPU tensors without further ado


def module_for(device: torch.device) -> ModuleType | None:
    """The native module that serves `device`, or None where the reference does."""
    if backend == "reference":
        return None
    module = {"cpu": cpu, "cuda": cuda}.get(device.type)
    if module is None and backend == "native":
        why = missing.get(device.type, f"no kernels exist for device type {device.type!r}")
        raise RuntimeError(f"FASTROBUST_BACKEND=native, but there is no native module for {device}: {why}")
    return module
