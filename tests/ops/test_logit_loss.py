"""logit_loss: values and gradients against autograd in float64, edge cases, errors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust import ops
from fastrobust.ops.logit_loss import LOSSES, reference_loss

CASES = [
    ("ce", False, False), ("ce", True, False), ("kl", False, True), ("margin", False, False), ("margin", True, False),
    ("dlr", False, False), ("dlr_targeted", True, False), ("linear", False, True),
]  # fmt: skip


def case(batch: int, classes: int, loss: str, targeted: bool, reference: bool, dtype: torch.dtype = torch.float32):  # type: ignore[no-untyped-def]
    g = torch.Generator().manual_seed(batch * 1009 + classes)
    z, r = (4 * torch.randn(batch, classes, generator=g) for _ in range(2))
    y = torch.randint(classes, (batch,), generator=g)
    t = (y + 1) % classes
    return z.to(dtype), y, {"target": t if targeted else None, "reference": r.to(dtype) if reference else None}


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 17, 100, 1000])
@pytest.mark.parametrize(("loss", "targeted", "reference"), CASES)
def test_value_and_gradient(loss: str, targeted: bool, reference: bool, classes: int, isa: str) -> None:
    if classes < {"dlr": 3, "dlr_targeted": 4}.get(loss, 2):
        z, y, keys = case(3, classes, loss, targeted, reference)
        with pytest.raises(ValueError, match="at least"):
            ops.logit_loss(z, y, loss, **keys)
        return
    z, y, keys = case(33, classes, loss, targeted, reference)
    out = ops.logit_loss(z, y, loss, **keys)
    wide = z.double().requires_grad_()
    q = None if keys["reference"] is None else keys["reference"].double()
    truth = reference_loss(wide, y, loss, keys["target"], q, 0.0)
    (slope,) = torch.autograd.grad(truth.sum(), wide)
    plain = z.clone().requires_grad_()
    own = reference_loss(plain, y, loss, keys["target"], keys["reference"], 0.0)
    (own_slope,) = torch.autograd.grad(own.sum(), plain)
    spacing = torch.finfo(torch.float32).eps
    for mine, reference_value, exact in ((out.loss, own, truth), (out.grad, own_slope, slope)):
        allowed = 2 * (reference_value.double() - exact).abs().max() + 2 * spacing * exact.abs().max()
        assert (mine.double() - exact).abs().max() <= allowed
    assert torch.equal(out.prediction, z.argmax(1))
    assert torch.equal(out.correct, z.argmax(1) == y)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_is_torchs(smoothing: float, isa: str) -> None:
    z, y, _ = case(9, 12, "ce", False, False, torch.float64)
    out = ops.logit_loss(z, y, label_smoothing=smoothing)
    expected = F.cross_entropy(z, y, reduction="none", label_smoothing=smoothing)
    assert torch.allclose(out.loss, expected, rtol=1e-12)


@pytest.mark.parametrize(("loss", "targeted", "reference"), CASES)
def test_differentiable_and_gradcheck(loss: str, targeted: bool, reference: bool) -> None:
    z, y, keys = case(4, 5, loss, targeted, reference, torch.float64)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: ops.logit_loss(v, y, loss, **keys).loss, (z,))
    ops.logit_loss(z, y, loss, **keys).loss.sum().backward()
    assert torch.allclose(z.grad, ops.logit_loss(z.detach(), y, loss, **keys).grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("loss", "targeted", "reference"), CASES)
def test_sixteen_bits_are_computed_in_float32(
    dtype: torch.dtype, loss: str, targeted: bool, reference: bool, isa: str
) -> None:
    z, y, keys = case(7, 10, loss, targeted, reference, dtype)
    wide = {k: None if v is None else v if k == "target" else v.float() for k, v in keys.items()}
    out, expected = ops.logit_loss(z, y, loss, **keys), ops.logit_loss(z.float(), y, loss, **wide)
    assert out.grad.dtype == dtype
    assert out.loss.dtype == torch.float32
    assert torch.allclose(out.loss, expected.loss, rtol=1e-5, atol=1e-6)
    assert torch.allclose(out.grad.float(), expected.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_large_logits_do_not_overflow(isa: str) -> None:
    z = torch.tensor([[1e30, -1e30, 0.0], [3e38, 3e38, -3e38], [-1e4, -2e4, -math.inf]])
    out = ops.logit_loss(z, torch.tensor([0, 1, 0]))
    assert torch.allclose(out.loss, torch.tensor([0.0, math.log(2.0), 0.0]))
    assert torch.isfinite(out.grad).all()


def test_nan_logits_predict_nothing(isa: str) -> None:
    z = torch.zeros(2, 4)
    z[1, 2] = math.nan
    for loss in ("ce", "margin", "dlr"):
        out = ops.logit_loss(z, torch.tensor([0, 2]), loss)
        assert out.prediction.tolist() == [0, -1]
        assert out.correct.tolist() == [True, False]
        assert math.isnan(out.loss[1])
        assert not math.isnan(out.loss[0])


def test_empty_batch() -> None:
    out = ops.logit_loss(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert out.loss.shape == (0,)
    assert out.grad.shape == (0, 5)


def test_strided_logits() -> None:
    z, y, _ = case(6, 10, "ce", False, False)
    wide = torch.empty(6, 20)[:, ::2].copy_(z)
    assert torch.equal(ops.logit_loss(wide, y).grad, ops.logit_loss(z, y).grad)


Z, Y = torch.zeros(3, 5), torch.tensor([0, 1, 4])
BAD_CALLS = [
    ({"logits": Z[0]}, ValueError, "logits must have shape"),
    ({"logits": Z.int()}, TypeError, "logits must have dtype"),
    ({"logits": Z[:, :1]}, ValueError, "at least 2 classes"),
    ({"y": Y.int()}, TypeError, "y must have dtype int64, got int32"),
    ({"y": Y[:2]}, ValueError, r"y must have shape \(3,\), got \(2,\)"),
    ({"y": torch.tensor([0, 1, 5])}, ValueError, "y must be in 0 .. 4, got 5"),
    ({"y": torch.tensor([0, -1, 2])}, ValueError, "y must be in 0 .. 4, got -1"),
    ({"target": torch.tensor([0, 9, 2])}, ValueError, "target must be in 0 .. 4, got 9"),
    ({"loss": "hinge"}, ValueError, "loss must be one of"),
    ({"loss": "dlr_targeted"}, ValueError, "target must be given"),
    ({"loss": "kl"}, ValueError, "reference must be given"),
    ({"loss": "dlr", "target": Y}, ValueError, "target must be None"),
    ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \[0, 1\)"),
    ({"loss": "margin", "label_smoothing": 0.1}, ValueError, "label_smoothing"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_CALLS)
def test_errors_name_the_argument(change, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=f"logit_loss: .*{message}"):
        ops.logit_loss(**{"logits": Z, "y": Y, **change})


def test_every_loss_is_tested() -> None:
    assert {loss for loss, _, _ in CASES} == set(LOSSES)


def test_gradient_rises_with_the_loss() -> None:
    """A small move along the gradient raises each loss."""
    for loss, targeted, reference in CASES:
        z, y, keys = case(20, 10, loss, targeted, reference, torch.float64)
        out = ops.logit_loss(z, y, loss, **keys)
        moved: Tensor = z + 1e-4 * out.grad
        assert (ops.logit_loss(moved, y, loss, **keys).loss >= out.loss).all()
