"""Interval ops: ranges by dense sampling, gradients by finite differences, batch norm as torch's, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust import ops

PARAMETERS = {"leaky_relu": (0.1, 0.0), "hardtanh": (-0.5, 0.7), "softplus": (2.0, 20.0), "elu": (1.3, 0.0)}
TORCH = {
    "identity": lambda x: x, "relu": F.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7), "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "softplus": lambda x: F.softplus(x, 2.0, 20.0), "elu": lambda x: F.elu(x, 1.3), "silu": F.silu, "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}  # fmt: skip


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_every_activation_is_tested() -> None:
    assert set(TORCH) == set(ops.ACTIVATIONS)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_are_the_range_of_the_function(name: str, dtype: torch.dtype, isa: str) -> None:
    points, radius = 2 * draw(9, 3, 20, dtype=dtype), draw(7, 3, 20, dtype=dtype, seed=1).abs()
    scale, shift = draw(3, dtype=dtype, seed=2), draw(3, dtype=dtype, seed=3)
    out, reach = ops.interval_act(points, radius, scale, shift, name, *PARAMETERS.get(name, (0.0, 0.0)))
    m, q = points.double() * scale.double()[:, None] + shift.double()[:, None], radius * scale.abs()[:, None]
    assert torch.allclose(out[:2].double(), TORCH[name](m[:2]), atol=1e-6)
    inside = TORCH[name](m[2:, ..., None] + q.double()[..., None] * torch.linspace(-1, 1, 2001, dtype=torch.float64))
    spacing = float(2 * q.max()) / 2000
    for end, extreme in ((out[2:] - reach, inside.amin(3)), (out[2:] + reach, inside.amax(3))):
        assert torch.allclose(end.double(), extreme, rtol=0, atol=1e-5 + spacing)
    assert (out[2:] - reach <= inside.amin(3) + 1e-5).all()
    assert (out[2:] + reach >= inside.amax(3) - 1e-5).all()


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("rows", [0, 2, 5])
@pytest.mark.parametrize("size", [(3, 4), (5,), ()])
def test_gradients(name: str, rows: int, size: tuple[int, ...]) -> None:
    points, radius = draw(5, 3, *size), draw(3, 3, *size, seed=1).abs() + 0.05
    scale, shift = draw(3, seed=2), draw(3, seed=3)
    inputs = tuple(value.requires_grad_() for value in (points, radius, scale, shift))
    rest = (name, *PARAMETERS.get(name, (0.0, 0.0)))

    def call(*values: Tensor) -> Any:
        if rows:
            return tuple(ops.interval_norm(*values, rows, 1e-3, *rest))
        return ops.interval_act(*values, *rest)

    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 5), (8, 6, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_are_those_of_the_rows(shape: tuple[int, ...], dtype: torch.dtype, isa: str) -> None:
    points, radius = 100 + draw(*shape, dtype=dtype), draw(3, *shape[1:], dtype=dtype, seed=1).abs()
    weight, bias = draw(6, dtype=dtype, seed=2), draw(6, dtype=dtype, seed=3)
    found = ops.interval_norm(points, radius, weight, bias, rows=5)
    wide = points[:5].double()
    dims = (0, *range(2, points.dim()))
    # Far from 0, where squares would cancel.
    assert torch.allclose(found.mean.double(), wide.mean(dims), rtol=1e-6)
    assert torch.allclose(found.var.double(), wide.var(dims, correction=0), rtol=1e-4)
    expected = F.batch_norm(wide, None, None, weight.double(), bias.double(), training=True)
    assert torch.allclose(found.points[:5].double(), expected, atol=2e-4 if dtype == torch.float32 else 1e-10)


def test_a_negative_scale_leaves_radii_positive() -> None:
    out, reach = ops.interval_act(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([-3.0, 2.0]), None, "identity")
    assert out.tolist() == [[-3.0, 2.0]]
    assert reach.tolist() == [[3.0, 2.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_computed_in_float32(dtype: torch.dtype, isa: str) -> None:
    points, radius = draw(4, 3, 7).to(dtype), draw(2, 3, 7, seed=1).abs().to(dtype)
    got = ops.interval_norm(points, radius, None, None, 2, activation="silu")
    expected = ops.interval_norm(points.float(), radius.float(), None, None, 2, activation="silu")
    assert got.points.dtype == got.radius.dtype == dtype
    assert got.mean.dtype == torch.float32
    assert torch.equal(got.points, expected.points.to(dtype))


def test_empty_batches_and_boxes() -> None:
    for rows, boxes in ((0, 0), (3, 0)):
        out, reach = ops.interval_act(torch.ones(rows, 2, 4), torch.ones(boxes, 2, 4))
        assert out.shape == (rows, 2, 4)
        assert reach.shape == (boxes, 2, 4)


def worst(c: Tensor, r: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:
    apart = w[y][:, None] - w
    return (apart * c[:, None]).sum(2) - (apart.abs() * r[:, None]).sum(2) + b[y][:, None] - b


def test_margins_are_the_worst_corners(isa: str) -> None:
    c, r, w, b = draw(4, 6), draw(4, 6, seed=1).abs(), draw(5, 6, seed=2), draw(5, seed=3)
    y = torch.tensor([0, 4, 2, 2])
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    logits = (c[:, None] + r[:, None] * corners).matmul(w.T) + b
    exact = (logits.gather(2, y[:, None, None].expand(-1, 64, 1)) - logits).amin(1)
    assert torch.allclose(ops.interval_margins(c, r, w, b, y), exact, atol=1e-12)
    loss = ops.robust_cross_entropy(c, r, w, b, y)
    assert torch.allclose(loss, exact.neg().exp().sum(1).log())


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_margins_gradients(classes: int) -> None:
    c, r, w, b = (v.requires_grad_() for v in (draw(4, 6), draw(4, 6, seed=1), draw(classes, 6, seed=2),
                                               draw(classes, seed=3)))  # fmt: skip
    y = torch.arange(4) % classes
    assert torch.autograd.gradcheck(lambda *v: ops.interval_margins(*v, y), (c, r, w, b))
    assert torch.autograd.gradcheck(lambda *v: ops.robust_cross_entropy(*v[:3], None, y), (c, r, w))


@pytest.mark.parametrize(("rows", "boxes", "features", "outputs"), [(7, 3, 70, 9), (64, 32, 2100, 33), (0, 1, 5, 4)])
def test_linear_layers(rows: int, boxes: int, features: int, outputs: int, isa: str) -> None:
    values = [draw(n, features, seed=n).float().requires_grad_() for n in (rows, boxes, outputs)]
    with torch.no_grad():
        values[2][0, :3] = torch.tensor([0.0, -0.0, 1e-30])
    wide = [value.detach().double().requires_grad_() for value in values]
    out, reach = ops.interval_linear(*values)
    expected = wide[0] @ wide[2].T, wide[1] @ wide[2].abs().T
    for got, exact in zip((out, reach), expected, strict=True):
        assert torch.allclose(got.double(), exact, rtol=1e-4, atol=1e-4)
    g, h = draw(rows, outputs, seed=8), draw(boxes, outputs, seed=9)
    torch.autograd.backward((out, reach), (g.float(), h.float()))
    torch.autograd.backward(expected, (g, h))
    for mine, exact in zip(values, wide, strict=True):
        assert mine.grad is not None
        assert exact.grad is not None
        assert torch.allclose(mine.grad.double(), exact.grad, rtol=1e-3, atol=1e-3)


P, R = torch.zeros(5, 3, 4), torch.zeros(2, 3, 4)
BAD = [
    ({"radius": R[:, :2]}, ValueError, "radius must have the shape of points"),
    ({"radius": torch.zeros(6, 3, 4)}, ValueError, "radius must have the shape of points"),
    ({"radius": R.double()}, TypeError, "radius must have dtype float32"),
    ({"points": P.int()}, TypeError, "points must have dtype"),
    ({"scale": torch.zeros(4)}, ValueError, r"scale must have shape \(3,\), got \(4,\)"),
    ({"activation": "sine"}, ValueError, "activation must be one of"),
    ({"activation": "elu", "a": -1.0}, ValueError, "a must be >= 0 for elu"),
    ({"activation": "hardtanh", "a": 1.0, "b": 0.0}, ValueError, "a must be at most b"),
    ({"activation": "softplus"}, ValueError, "a must be > 0 for softplus"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"interval_act: .*{message}"):
        ops.interval_act(**{"points": P, "radius": R, **change})


def test_other_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"interval_norm: rows must be in 1 \.\. 5, got 0"):
        ops.interval_norm(P, R, None, None, 0)
    c, w, y = torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor([0, 2])
    with pytest.raises(ValueError, match=r"interval_margins: weight must have shape \(classes, 4\)"):
        ops.interval_margins(c, c, w[:, :3], None, y)
    with pytest.raises(ValueError, match=r"interval_margins: y must be in 0 \.\. 2"):
        ops.interval_margins(c, c, w, None, y + 1)
    with pytest.raises(ValueError, match=r"interval_linear: weight must have shape \(\.\., 4\)"):
        ops.interval_linear(c, c, w[:, :3])
