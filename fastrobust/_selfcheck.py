"""Is a kernel as exact as its reference? The rule that the tests and `fastrobust doctor` share."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastrobust._registry import OpSpec

__all__ = ["disagreement"]


def disagreement(spec: OpSpec, module: ModuleType, args: tuple[Any, ...]) -> float:
    """The native result's distance from the reference as a share of what is allowed; above 1 is a failure.

    Allowed is twice the reference's own error against float64, plus four roundings of the largest value, plus the
    op's tolerance. Integers and truth values must be equal, and mutated arguments are compared too.
    """
    truth_args = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in _copies(args))
    reference_args, native_args = _copies(args), _copies(args)
    truth = _tensors(spec.reference(*truth_args), truth_args)
    reference = _tensors(spec.reference(*reference_args), reference_args)
    native = _tensors(spec.native(module, *native_args), native_args)
    worst = 0.0
    for t, r, n in zip(truth, reference, native, strict=True):
        if n.dtype != r.dtype or n.shape != r.shape:
            return float("inf")
        if not n.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(n, r) else float("inf"))
        elif n.numel():
            scale = float(r.abs().max())
            allowed = 2 * float((r.double() - t).abs().max())
            allowed += (4 * torch.finfo(n.dtype).eps + spec.tolerance) * scale
            worst = max(worst, float((n.double() - r.double()).abs().max()) / max(allowed, 1e-300))
    return worst


def _copies(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


def _tensors(result: Any, args: tuple[Any, ...]) -> list[Tensor]:
    results = result if isinstance(result, tuple) else (result,)
    return [t for t in (*results, *args) if isinstance(t, Tensor)]
