"""Interval bound propagation for training: what lies between two matrix products, on centres and radii, in one pass.

A layer's values are `points` (rows + boxes, channels, ...), of which the last `boxes` rows are the centres of boxes,
and `radius` (boxes, channels, ...) >= 0; the rows before are samples as they are, which pass through the network beside
the boxes. Nothing here allows for rounding: for certificates use `fastrobust.bounds`.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrobust import _checks
from fastrobust._registry import OpSpec, direct, register
from fastrobust.ops.activation import ACTIVATIONS
from fastrobust.ops.perturb import DTYPE_CODE, device_guard, pointer, where_to

__all__ = ["IntervalNorm", "interval_act", "interval_norm"]


# --- public functions -------------------------------------------------------------------------------------------


class IntervalNorm(NamedTuple):
    """What `interval_norm` returns.

    Attributes:
        points, radius: as those given, after normalisation and activation.
        mean, var: (channels,) mean and biased variance of the rows; differentiable.
    """

    points: Tensor
    radius: Tensor
    mean: Tensor
    var: Tensor


def interval_act(
    points: Tensor, radius: Tensor, scale: Tensor | None = None, shift: Tensor | None = None,
    activation: str = "relu", a: float = 0.0, b: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The tightest boxes around f(scale x + shift) of boxes, and its values at points.

    With m = scale c + shift and q = |scale| r the box's ends are the extremes of f on [m - q, m + q], which gives its
    centre and radius again (Gowal et al., ICCV 2019).

    Args:
        points: (rows + boxes, channels, ...), float32, float64, or 16 bits, which are computed in float32.
        radius: (boxes, channels, ...), >= 0.
        scale, shift: (channels,), None for 1 and 0.
        activation: a name of `ACTIVATIONS`, with its parameters a and b.

    Returns:
        points and radius; differentiable with respect to points, radius, scale and shift.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    _check("interval_act", points, radius, scale, shift, activation, a, b)
    out = _call(points, radius, scale, shift, 0, 0.0, activation, a, b)
    return out[0], out[1]


def interval_norm(
    points: Tensor, radius: Tensor, weight: Tensor | None, bias: Tensor | None, rows: int, eps: float = 1e-5,
    activation: str = "identity", a: float = 0.0, b: float = 0.0,
) -> IntervalNorm:  # fmt: skip
    """Batch norm in training mode with the statistics of the first rows, then `interval_act`.

    With the mean and the biased variance of points[:rows], over them and all positions, scale is weight / sqrt(var +
    eps) and shift bias - mean scale. The statistics are not detached: points and boxes alike move them.

    Args:
        weight, bias: (channels,), None for 1 and 0.
        rows: how many rows of points the statistics are those of, at least 1.
        eps: added to the variance.
        Others and errors as those of `interval_act`.
    """
    where = "interval_norm"
    _check(where, points, radius, weight, bias, activation, a, b)
    if not 1 <= rows <= len(points):
        raise ValueError(f"{where}: rows must be in 1 .. {len(points)}, got {rows}")
    return IntervalNorm(*_call(points, radius, weight, bias, rows, eps, activation, a, b))


def _check(
    where: str, points: Tensor, radius: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str,
    a: float, b: float,
) -> None:  # fmt: skip
    _checks.check_tensor(where, "points", points, _checks.FLOATS)
    _checks.check_tensor(where, "radius", radius, (points.dtype,))
    if activation not in ACTIVATIONS:
        raise ValueError(f"{where}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if points.dim() < 2 or points.shape[1:] != radius.shape[1:] or len(radius) > len(points):
        raise ValueError(
            f"{where}: radius must have the shape of points (rows + boxes, channels, ...) but for the rows, "
            f"got {tuple(radius.shape)} beside {tuple(points.shape)}"
        )
    for name, value in (("scale", scale), ("shift", shift)):
        if value is not None and tuple(value.shape) != (points.shape[1],):
            raise ValueError(f"{where}: {name} must have shape ({points.shape[1]},), got {tuple(value.shape)}")
    if activation in ("leaky_relu", "elu") and a < 0:
        raise ValueError(f"{where}: a must be >= 0 for {activation}, got {a}")
    if activation == "hardtanh" and a > b:
        raise ValueError(f"{where}: a must be at most b for hardtanh, got {a} and {b}")
    if activation == "softplus" and not a > 0:
        raise ValueError(f"{where}: a must be > 0 for softplus, got {a}")


def _call(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    needs = torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in args[:4])
    found: tuple[Tensor, Tensor, Tensor, Tensor] = BLOCK.run(*args) if direct() and not needs else BLOCK.op(*args)
    return found


# --- reference --------------------------------------------------------------------------------------------------


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


def _channels(value: Tensor | None, like: Tensor, otherwise: float) -> Tensor:
    """(channels,) beside (batch, channels, ...)."""
    if value is None:
        return like.new_full((1,) * like.dim(), otherwise)
    return value.to(like.dtype).view(1, -1, *[1] * (like.dim() - 2))


def _sums(value: Tensor) -> Tensor:
    """Over all but the channels."""
    return value.sum((0, *range(2, value.dim())))


def _statistics(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    if not rows:
        return x.new_zeros(0), x.new_zeros(0)
    var, mean = torch.var_mean(x[:rows], (0, *range(2, x.dim())), correction=0)
    return mean, var


def _scales(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, mean: Tensor, var: Tensor, rows: int, eps: float
) -> tuple[Tensor, Tensor]:
    s, t = _channels(scale, x, 1.0), _channels(shift, x, 0.0)
    if rows:
        s = s * _channels((var + eps).rsqrt(), x, 1.0)
        t = t - _channels(mean, x, 0.0) * s
    return s, t


def _reference(
    points: Tensor, radius: Tensor, scale: Tensor | None, shift: Tensor | None, rows: int, eps: float,
    activation: str, a: float, b: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    f, x, r = ACTIVATIONS[activation], _wide(points), _wide(radius)
    mean, var = _statistics(x, rows)
    s, t = _scales(x, scale, shift, mean, var, rows, eps)
    m, q, plain = x * s + t, r * s.abs(), len(x) - len(r)
    lower, upper = m[plain:] - q, m[plain:] + q
    low, high = f.value(lower, a, b), f.value(upper, a, b)
    if f.turn is not None:
        high = torch.maximum(low, high)
        low = f.value(torch.minimum(torch.maximum(lower, lower.new_tensor(f.turn)), upper), a, b)
    if activation == "identity":
        centre, reach = m[plain:], q
    else:
        centre, reach = (low + high) / 2, (high - low) / 2
    out = torch.cat([f.value(m[:plain], a, b), centre])
    return out.to(points.dtype), reach.to(points.dtype), mean, var


def _reference_backward(
    grad_points: Tensor, grad_radius: Tensor, points: Tensor, radius: Tensor, scale: Tensor | None,
    shift: Tensor | None, mean: Tensor, var: Tensor, grad_mean: Tensor | None, grad_var: Tensor | None, rows: int,
    eps: float, activation: str, a: float, b: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    f, x, r, plain = ACTIVATIONS[activation], _wide(points), _wide(radius), len(points) - len(radius)
    gp, gr = _wide(grad_points), _wide(grad_radius)
    s, t = _scales(x, scale, shift, mean, var, rows, eps)
    m, q = x * s + t, r * s.abs()
    lower, upper = m[plain:] - q, m[plain:] + q
    if activation == "identity":
        dm, dq = gp, gr
    else:
        of_low, of_high = (gp[plain:] - gr) / 2, (gp[plain:] + gr) / 2
        if f.turn is None:
            at_lower, at_upper = of_low * f.slope(lower, a, b), of_high * f.slope(upper, a, b)
        else:
            first = f.value(lower, a, b) > f.value(upper, a, b)  # where f is largest
            of_lower = torch.where(first, of_high, 0) + torch.where(lower >= f.turn, of_low, 0)
            of_upper = torch.where(first, 0, of_high) + torch.where(upper <= f.turn, of_low, 0)
            at_lower, at_upper = of_lower * f.slope(lower, a, b), of_upper * f.slope(upper, a, b)
        dm = torch.cat([gp[:plain] * f.slope(m[:plain], a, b), at_lower + at_upper])
        dq = at_upper - at_lower
    gx, gq = dm * s, dq * s.abs()
    by_shift = _sums(dm)
    by_scale = _sums(dm * x) + s.flatten().sign() * _sums(dq * r)
    if rows:
        w, rstd = _channels(scale, x, 1.0).flatten(), (var + eps).rsqrt()
        by_var = -0.5 * rstd**3 * w * (by_scale - by_shift * mean)
        by_mean = -by_shift * s.flatten()
        by_scale = (by_scale - by_shift * mean) * rstd
        by_var = by_var if grad_var is None else by_var + grad_var
        by_mean = by_mean if grad_mean is None else by_mean + grad_mean
        count = x[:rows].numel() // x.shape[1]
        from_stats = _channels(by_mean, x, 0.0) + 2 * _channels(by_var, x, 0.0) * (x[:rows] - _channels(mean, x, 0.0))
        gx = torch.cat([gx[:rows] + from_stats / count, gx[rows:]])
    return gx.to(points.dtype), gq.to(points.dtype), by_scale, by_shift


# --- native -----------------------------------------------------------------------------------------------------


def _native(
    module: ModuleType, points: Tensor, radius: Tensor, scale: Tensor | None, shift: Tensor | None, rows: int,
    eps: float, activation: str, a: float, b: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    points, radius = points.contiguous(), radius.contiguous()
    out, reach, mean, var = _fake(points, radius, scale, shift, rows, eps, activation, a, b)
    scale, shift, work = _like(scale, mean), _like(shift, mean), _work(module, points)
    if points.numel():
        with device_guard(points):
            module.interval_block(
                *_place(points, radius), pointer(scale), pointer(shift), rows, eps, ACTIVATIONS[activation].code, a, b,
                mean.data_ptr(), var.data_ptr(), work.data_ptr(), out.data_ptr(), reach.data_ptr(),
                where_to(points),
            )  # fmt: skip
    return out, reach, mean, var


def _native_backward(
    module: ModuleType, grad_points: Tensor, grad_radius: Tensor, points: Tensor, radius: Tensor,
    scale: Tensor | None, shift: Tensor | None, mean: Tensor, var: Tensor, grad_mean: Tensor | None,
    grad_var: Tensor | None, rows: int, eps: float, activation: str, a: float, b: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    points, radius = points.contiguous(), radius.contiguous()
    grad_points, grad_radius = grad_points.contiguous(), grad_radius.contiguous()
    scale, shift, grad_mean, grad_var = (_like(v, mean) for v in (scale, shift, grad_mean, grad_var))
    gx, gr, work = torch.empty_like(points), torch.empty_like(radius), _work(module, points)
    by_scale, by_shift = mean.new_zeros(points.shape[1]), mean.new_zeros(points.shape[1])
    if points.numel():
        with device_guard(points):
            module.interval_block_backward(
                *_place(points, radius), pointer(scale), pointer(shift), rows, eps, ACTIVATIONS[activation].code, a, b,
                mean.data_ptr(), var.data_ptr(), work.data_ptr(), grad_points.data_ptr(),
                grad_radius.data_ptr(), pointer(grad_mean), pointer(grad_var), gx.data_ptr(), gr.data_ptr(),
                by_scale.data_ptr(), by_shift.data_ptr(), where_to(points),
            )  # fmt: skip
    return gx, gr, by_scale, by_shift


def _place(points: Tensor, radius: Tensor) -> tuple[int, int, int, int, int, int, int]:
    """Addresses, dtype, and rows, boxes, channels, positions."""
    shape = points.shape
    size = shape[2:].numel()
    return points.data_ptr(), radius.data_ptr(), DTYPE_CODE[points.dtype], shape[0], len(radius), shape[1], size


def _work(module: ModuleType, points: Tensor) -> Tensor:
    """Memory for partial sums, which a GPU's blocks leave for each other."""
    return points.new_empty(module.interval_work(points.shape[1]), dtype=torch.float64)


def _like(value: Tensor | None, like: Tensor) -> Tensor | None:
    return None if value is None else value.detach().to(like.dtype).contiguous()


# --- fake, backward, registration -------------------------------------------------------------------------------


def _fake(
    points: Tensor, radius: Tensor, scale: Tensor | None, shift: Tensor | None, rows: int, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    mean, var = (points.new_empty(points.shape[1] if rows else 0, dtype=dtype) for _ in range(2))
    kept = torch.contiguous_format
    return torch.empty_like(points, memory_format=kept), torch.empty_like(radius, memory_format=kept), mean, var


def _fake_backward(
    grad_points: Tensor, grad_radius: Tensor, points: Tensor, radius: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    by_scale, by_shift = (points.new_empty(points.shape[1], dtype=dtype) for _ in range(2))
    kept = torch.contiguous_format
    return (
        torch.empty_like(points, memory_format=kept),
        torch.empty_like(radius, memory_format=kept),
        by_scale,
        by_shift,
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    points, radius, scale, shift, *ctx.settings = inputs
    ctx.save_for_backward(points, radius, scale, shift, output[2], output[3])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_points: Tensor | None, grad_radius: Tensor | None, grad_mean: Tensor | None, grad_var: Tensor | None
) -> tuple[Tensor | None, ...]:
    points, radius, scale, shift, mean, var = ctx.saved_tensors
    rows = ctx.settings[0]
    grad_points = torch.zeros_like(points) if grad_points is None else grad_points
    grad_radius = torch.zeros_like(radius) if grad_radius is None else grad_radius
    grads = (grad_mean, grad_var) if rows else (None, None)
    arguments = (grad_points, grad_radius, points, radius, scale, shift, mean, var, *grads, *ctx.settings)
    gx, gr, by_scale, by_shift = BACKWARD.run(*arguments) if direct() else BACKWARD.op(*arguments)
    by_scale = None if scale is None else by_scale.to(scale.dtype)
    by_shift = None if shift is None else by_shift.to(shift.dtype)
    return (gx, gr, by_scale, by_shift, None, None, None, None, None)


def _samples(device: torch.device) -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    parameters = {"leaky_relu": (0.1, 0.0), "hardtanh": (-0.5, 0.7), "softplus": (1.0, 20.0), "elu": (1.0, 0.0)}
    for dtype in (torch.float32, torch.float64):

        def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, dtype=dtype, generator=generator).to(device)

        for name in ACTIVATIONS:
            given = (name, *parameters.get(name, (0.0, 0.0)))
            yield draw(5, 7, 3, 6), draw(3, 7, 3, 6).abs(), draw(7), draw(7), 0, 0.0, *given
            yield draw(5, 4, 9), draw(5, 4, 9).abs(), None, draw(4), 5, 1e-5, *given
            yield draw(9, 35), draw(4, 35).abs(), draw(35), None, 5, 1e-3, *given


def _backward_samples(device: torch.device) -> Iterator[tuple[Any, ...]]:
    for points, radius, scale, shift, rows, eps, *rest in _samples(device):
        mean, var = _statistics(points, rows)
        grads = (torch.cos(mean), torch.sin(var)) if rows and scale is None else (None, None)
        yield torch.cos(points), torch.sin(radius), points, radius, scale, shift, mean, var, *grads, rows, eps, *rest


BLOCK = register(
    OpSpec(
        "interval_block",
        "(Tensor points, Tensor radius, Tensor? scale, Tensor? shift, int rows, float eps, str activation, float a, "
        "float b) -> (Tensor, Tensor, Tensor, Tensor)",
        _reference,
        _native,
        _fake,
        _samples,
        (_setup_context, _backward),
        tolerance=1e-6,
    )
)
BACKWARD = register(
    OpSpec(
        "interval_block_backward",
        "(Tensor grad_points, Tensor grad_radius, Tensor points, Tensor radius, Tensor? scale, Tensor? shift, "
        "Tensor mean, Tensor var, Tensor? grad_mean, Tensor? grad_var, int rows, float eps, str activation, float a, "
        "float b) -> (Tensor, Tensor, Tensor, Tensor)",
        _reference_backward,
        _native_backward,
        _fake_backward,
        _backward_samples,
        tolerance=1e-6,
    )
)
