"""One step of an attack: move along the gradient, then back into the ball and the box."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastrobust import _backend, _checks
from fastrobust._registry import OpSpec, direct, register
from fastrobust.ops import _geometry as geometry
from fastrobust.ops import _rounding as rounding
from fastrobust.threat import Box

__all__ = ["pgd_step", "pgd_step_", "project", "project_"]

NORM_CODE = {"Linf": 0, "L2": 1, "L1": 2}
DTYPE_CODE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
PROJECTIONS = {"exact": True, "sequential": False}


# --- public functions -------------------------------------------------------------------------------------------


def pgd_step(
    x_adv: Tensor,
    x: Tensor,
    grad: Tensor,
    step: float | Tensor,
    eps: float | Tensor,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
    *,
    projection: str = "exact",
    flags: Tensor | None = None,
) -> Tensor:
    """The steepest ascent step of one norm, projected onto the ball around x and the box.

    Linf: ``clip(x_adv + step * sign(grad))``, the sum
    rounded towards x_adv. L2: ``step * grad / ||grad||_2``, then the Euclidean projection. L1: a
    step of length `step` on the coordinates of largest |grad|, as much on each as the box allows, then the Euclidean
    projection (Croce and Hein, "Mind the box", ICML 2021).

    Args:
        x_adv: iterates, (batch, ...), float32 or float64.
        x: centres of the balls, like x_adv; inside the box.
        grad: gradient of the loss to be raised, shape of x_adv, float32, float64, bfloat16 or float16. A zero or
            non-finite element moves nothing (Linf: that coordinate; L2 and L1: a NaN or Inf stops the sample).
        step: length of the step in x's units; a number or (batch,). A negative one descends.
        eps: radius of the ball >= 0; a number or (batch,).
        norm: "Linf", "L2" or "L1".
        box: (lo, hi), numbers or tensors of a sample's shape.
        projection: "exact" projects onto ball and box together; "sequential" (L2) rescales to the ball and then
            clips to the box, as torchattacks and foolbox do.
        flags: optional (batch,) int32; each entry is or-ed with 1 if the sample's gradient had a finite non-zero
            element, and with 2 if it had a NaN or Inf.

    Returns:
        New iterates, a constant for autograd. They lie in the ball and the box in real arithmetic: ends are rounded
        inwards.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    if not _is_compiling() and type(x_adv) is Tensor and x_adv.is_cpu:
        out = torch.empty_like(x_adv)
        if _plain_step(out, x_adv, x, grad, step, eps, norm, box, projection, flags):
            return out
    arguments = _prepare("pgd_step", x_adv, x, grad, step, eps, norm, box, projection, flags)
    result: Tensor = STEP.run(*arguments) if direct() else STEP.op(*arguments)
    return result


def pgd_step_(
    x_adv: Tensor,
    x: Tensor,
    grad: Tensor,
    step: float | Tensor,
    eps: float | Tensor,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
    *,
    projection: str = "exact",
    flags: Tensor | None = None,
) -> Tensor:
    """`pgd_step` in place: overwrites x_adv and returns it."""
    if not _is_compiling() and _plain_step(x_adv, x_adv, x, grad, step, eps, norm, box, projection, flags):
        increment_version(x_adv)
        return x_adv
    arguments = _prepare("pgd_step_", x_adv, x, grad, step, eps, norm, box, projection, flags)
    return _overwrite(x_adv, arguments)


def project(
    x_adv: Tensor,
    x: Tensor,
    eps: float | Tensor,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
    *,
    projection: str = "exact",
) -> Tensor:
    """The point of ball and box that is nearest to x_adv (Euclidean); a point inside is returned as it is.

    Arguments, result and errors are those of `pgd_step`, without a step.
    """
    arguments = _prepare("project", x_adv, x, None, 0.0, eps, norm, box, projection, None)
    result: Tensor = STEP.run(*arguments) if direct() else STEP.op(*arguments)
    return result


def project_(
    x_adv: Tensor,
    x: Tensor,
    eps: float | Tensor,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
    *,
    projection: str = "exact",
) -> Tensor:
    """`project` in place: overwrites x_adv and returns it."""
    return _overwrite(x_adv, _prepare("project_", x_adv, x, None, 0.0, eps, norm, box, projection, None))


# The short way for plain CPU tensors and numbers: False where a closer look is needed, with nothing done.
_plain_step: Callable[..., bool] = (lambda *_: False) if _backend.plain is None else _backend.plain.plain_pgd_step
_is_compiling = torch.compiler.is_compiling


def _prepare(
    where: str, x_adv: Tensor, x: Tensor, grad: Tensor | None, step: Any, eps: Any, norm: str, box: Box,
    projection: str, flags: Tensor | None,
) -> tuple[Any, ...]:  # fmt: skip
    """The operator's arguments, checked."""
    _checks.check_tensor(where, "x_adv", x_adv, _checks.ITERATES)
    _checks.check_tensor(where, "x", x, (x_adv.dtype,))
    if x.dim() < 1:
        raise ValueError(f"{where}: x must have a batch dimension, got a 0-dimensional tensor")
    _checks.check_same(where, "x_adv", x_adv, "x", x)
    if grad is not None:
        _checks.check_tensor(where, "grad", grad, _checks.FLOATS)
        _checks.check_same(where, "grad", grad, "x", x)
    if where[-1] == "_" and x_adv.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{where}: x_adv must not require grad, since it is overwritten; detach it first")
    _checks.check_norm(where, norm)
    if projection not in PROJECTIONS:
        raise ValueError(f"{where}: projection must be 'exact' or 'sequential', got {projection!r}")
    step, step_each = _checks.per_sample(where, "step", step, x, None)
    eps, eps_each = _checks.per_sample(where, "eps", eps, x, 0.0)
    ends = _checks.box_ends(where, box, x)
    if flags is not None:
        _checks.check_tensor(where, "flags", flags, (torch.int32,))
        if flags.shape != x.shape[:1] or flags.device != x.device or not flags.is_contiguous():
            raise ValueError(
                f"{where}: flags must be a contiguous tensor of shape ({x.shape[0]},) on {x.device}, "
                f"got {tuple(flags.shape)} on {flags.device}"
            )
    return (x_adv, x, grad, step, step_each, norm, eps, eps_each, *ends, PROJECTIONS[projection], flags)


def _overwrite(x_adv: Tensor, arguments: tuple[Any, ...]) -> Tensor:
    if direct():
        STEP_.run(*arguments)
        increment_version(x_adv)
    else:
        STEP_.op(*arguments)
    return x_adv


# --- reference --------------------------------------------------------------------------------------------------


def _reference(
    x_adv: Tensor, x: Tensor, grad: Tensor | None, step: float, step_each: Tensor | None, norm: str, eps: float,
    eps_each: Tensor | None, lo: float, hi: float, lo_each: Tensor | None, hi_each: Tensor | None, exact: bool,
    flags: Tensor | None,
) -> Tensor:  # fmt: skip
    if x.numel() == 0:
        return x_adv.clone()
    low, high = geometry.ends(x, lo, hi, lo_each, hi_each)
    radius, length = geometry.column(eps, eps_each, x), geometry.column(step, step_each, x)
    if grad is not None and flags is not None:
        useful = (torch.isfinite(grad) & (grad != 0)).flatten(1).any(1)
        odd = (~torch.isfinite(grad)).flatten(1).any(1)
        flags |= useful.int() | (2 * odd).int()
    if norm == "Linf":
        moved = x_adv
        if grad is not None:
            sign = torch.where(torch.isfinite(grad), torch.sign(grad), 0).to(x.dtype)
            move = sign * length.to(x.dtype)
            moved = torch.where(move < 0, rounding.add_up(x_adv, move), rounding.add_down(x_adv, move))
        ball = rounding.cast_down(radius, x.dtype)
        inside = torch.minimum(torch.maximum(moved, rounding.add_up(x, -ball)), rounding.add_down(x, ball))
        return torch.minimum(torch.maximum(inside, low), high)

    move = torch.zeros_like(x, dtype=torch.float64)
    if grad is not None:
        g = grad.double() * torch.isfinite(grad).flatten(1).all(1).reshape(-1, *[1] * (x.dim() - 1))
        g = torch.where(torch.isfinite(grad), g, 0)
        move = geometry.unit_l2(g) * length if norm == "L2" else geometry.steepest_l1(g, length, x_adv, low, high)
    moved = x_adv.double() + move
    delta = moved - x.double()
    space = torch.where(delta > 0, high.double() - x.double(), x.double() - low.double()).clamp_min(0)
    fits = torch.minimum(delta.abs(), space)  # what the box alone would leave
    # Points outside the ball are brought a little further in than its edge, and coordinates rounded towards x, so that
    # the norm holds in real arithmetic; inside it, coordinates are rounded to nearest.
    if norm == "L2":
        kept = geometry.shrink_l2(delta.abs(), space, radius * (1 - 2.0**-36), exact)
        size = geometry.total((fits if exact else delta) ** 2).sqrt()
    else:
        kept = geometry.shrink_l1(delta.abs(), space, radius * (1 - 2.0**-36))
        size = geometry.total(fits)
    pulled = rounding.add_towards(x, torch.copysign(kept, delta))
    well_in = 1 - (2.0**-40 if grad is None else 2.0**-20)
    result = torch.where(size <= radius * well_in, moved.to(x.dtype), pulled)
    return torch.minimum(torch.maximum(result, low), high)


def _reference_(x_adv: Tensor, *rest: Any) -> None:
    x_adv.copy_(_reference(x_adv, *rest))


# --- native -----------------------------------------------------------------------------------------------------


def where_to(x: Tensor) -> int:
    """The launchers' last argument: how many threads, or which stream."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else _backend.threads()


def pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _same_layout(x_adv: Tensor, x: Tensor, grad: Tensor | None, boxed: bool) -> bool:
    """Whether the tensors are dense, sample after sample, with one order of elements."""
    if x_adv.is_contiguous() and x.is_contiguous() and (grad is None or grad.is_contiguous()):
        return True
    if boxed or x_adv.dim() != 4:
        return False
    last = torch.channels_last
    return all(t is None or t.is_contiguous(memory_format=last) for t in (x_adv, x, grad))


def _launch(module: ModuleType, out: Tensor, x_adv: Tensor, x: Tensor, grad: Tensor | None, *rest: Any) -> None:
    step, step_each, norm, eps, eps_each, lo, hi, lo_each, hi_each, exact, flags = rest
    batch = x_adv.shape[0]
    numel = x_adv.numel()
    if numel == 0:
        return
    module.pgd_step(
        out.data_ptr(), x_adv.data_ptr(), x.data_ptr(), pointer(grad),
        DTYPE_CODE[x_adv.dtype], 0 if grad is None else DTYPE_CODE[grad.dtype], batch, numel // batch,
        step, pointer(step_each), NORM_CODE[norm], eps, pointer(eps_each),
        lo, hi, pointer(lo_each), pointer(hi_each), exact, pointer(flags), where_to(x_adv),
    )  # fmt: skip


def _native(module: ModuleType, x_adv: Tensor, x: Tensor, grad: Tensor | None, *rest: Any) -> Tensor:
    if not _same_layout(x_adv, x, grad, rest[7] is not None):
        x_adv, x, grad = x_adv.contiguous(), x.contiguous(), None if grad is None else grad.contiguous()
    out = torch.empty_like(x_adv)
    _on_device(module, out, x_adv, x, grad, *rest)
    return out


def _native_(module: ModuleType, x_adv: Tensor, x: Tensor, grad: Tensor | None, *rest: Any) -> None:
    if _same_layout(x_adv, x, grad, rest[7] is not None):
        _on_device(module, x_adv, x_adv, x, grad, *rest)
    else:
        x_adv.copy_(_native(module, x_adv, x, grad, *rest))


def device_guard(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else _NO_GUARD


_NO_GUARD = nullcontext()


def _on_device(module: ModuleType, out: Tensor, *arguments: Any) -> None:
    with device_guard(out):
        _launch(module, out, *arguments)


# --- fake -------------------------------------------------------------------------------------------------------


def _fake(x_adv: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x_adv)


def _fake_(x_adv: Tensor, *rest: Any) -> None:
    return None


# --- registration -----------------------------------------------------------------------------------------------


def _samples(device: torch.device) -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for norm, eps in (("Linf", 0.03), ("L2", 0.5), ("L1", 3.0)):
        for dtype in _checks.ITERATES:
            x, near, grad = (torch.rand(5, 37, dtype=dtype, generator=generator).to(device) for _ in range(3))
            x_adv = _reference(near, x, None, 0.0, None, norm, eps, None, 0.0, 1.0, None, None, True, None)
            flags = torch.zeros(5, dtype=torch.int32, device=device)
            for g in (grad - 0.5, None):
                yield (x_adv, x, g, eps / 4, None, norm, eps, None, 0.0, 1.0, None, None, True, flags)


_ARGUMENTS = (
    "Tensor x, Tensor? grad, float step, Tensor? step_each, str norm, float eps, Tensor? eps_each, "
    "float lo, float hi, Tensor? lo_each, Tensor? hi_each, bool exact, Tensor(f!)? flags"
)
STEP = register(OpSpec("pgd_step", f"(Tensor x_adv, {_ARGUMENTS}) -> Tensor", _reference, _native, _fake, _samples))
STEP_ = register(
    OpSpec("pgd_step_", f"(Tensor(a!) x_adv, {_ARGUMENTS}) -> ()", _reference_, _native_, _fake_, _samples)
)
