"""Attack losses from logits: value, prediction, correctness and gradient in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust import _backend, _checks
from fastrobust._registry import OpSpec, direct, register
from fastrobust.ops.perturb import DTYPE_CODE, device_guard, pointer, where_to

__all__ = ["LOSSES", "LogitLoss", "logit_loss"]

KIND_CODE = {"ce": 0, "kl": 1, "margin": 2, "dlr": 3, "dlr_targeted": 4, "linear": 5}
LEAST_CLASSES = {"ce": 2, "kl": 2, "margin": 2, "dlr": 3, "dlr_targeted": 4, "linear": 1}
LOSSES = tuple(KIND_CODE)


# --- public function --------------------------------------------------------------------------------------------


class LogitLoss(NamedTuple):
    """What `logit_loss` returns, each over the batch.

    Attributes:
        loss: (batch,) float32 (float64 for float64 logits), differentiable with respect to the logits.
        prediction: (batch,) int64, the first class of largest logit; -1 where a logit is NaN.
        correct: (batch,) bool, prediction == y.
        grad: (batch, classes), d loss / d logits, dtype of the logits; a constant for autograd.
    """

    loss: Tensor
    prediction: Tensor
    correct: Tensor
    grad: Tensor


def logit_loss(
    logits: Tensor,
    y: Tensor,
    loss: str = "ce",
    *,
    target: Tensor | None = None,
    reference: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> LogitLoss:
    """The loss an attack raises, with all that an attack step needs of the logits.

    With z the logits, p = softmax(z), z_p1 >= z_p2 >= ... the sorted ones:

    - "ce": -log p_y, labels smoothed as torch's `cross_entropy`; with `target` t: log p_t.
    - "kl": KL(q || p), q = softmax(reference) (TRADES, Zhang et al., 2019).
    - "margin": max_{j != y} z_j - z_y (Carlini and Wagner, 2017); with `target` t: z_t - max_{j != t} z_j.
    - "dlr": -(z_y - max_{j != y} z_j) / (z_p1 - z_p3 + 1e-12); at least 3 classes.
    - "dlr_targeted": -(z_y - z_t) / (z_p1 - (z_p3 + z_p4) / 2 + 1e-12); at least 4 classes (both Croce and Hein, 2020).
    - "linear": sum_j c_j z_j with c = reference: differences of logits, or whatever a slope is known for.

    Args:
        logits: (batch, classes), float32, float64, bfloat16 or float16 (16-bit ones are computed in float32).
        y: (batch,) int64 true labels.
        loss: one of the names above.
        target: (batch,) int64 labels to move towards.
        reference: logits of q for "kl", c for "linear"; shape and dtype of `logits`.
        label_smoothing: in [0, 1), for "ce".

    Raises:
        ValueError, TypeError: naming the argument. Labels outside 0 .. classes - 1 raise on the CPU; on a GPU, where
            values are not read, such a row gets loss NaN, gradient 0 and correct = False.
    """
    where = "logit_loss"
    if target is None and reference is None and not _is_compiling() and type(logits) is Tensor and logits.is_cpu:
        out = _plain_loss(logits, y, loss, label_smoothing)
        if out is not None:
            return out
    _checks.check_tensor(where, "logits", logits, _checks.FLOATS)
    if loss not in KIND_CODE:
        raise ValueError(f"{where}: loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if logits.dim() != 2 or logits.shape[1] < LEAST_CLASSES[loss]:
        raise ValueError(
            f"{where}: logits must have shape (batch, classes) with at least {LEAST_CLASSES[loss]} classes "
            f"for loss {loss!r}, got {tuple(logits.shape)}"
        )
    _checks.check_labels(where, "y", y, logits)
    if target is not None:
        if loss in ("kl", "dlr", "linear"):
            raise ValueError(f"{where}: target must be None for loss {loss!r}, got a tensor")
        _checks.check_labels(where, "target", target, logits)
    elif loss == "dlr_targeted":
        raise ValueError(f"{where}: target must be given for loss 'dlr_targeted', got None")
    if (reference is not None) != (loss in ("kl", "linear")):
        raise ValueError(f"{where}: reference must be given for 'kl' and 'linear' and no other loss, got {loss!r}")
    if reference is not None:
        _checks.check_tensor(where, "reference", reference, (logits.dtype,))
        _checks.check_same(where, "reference", reference, "logits", logits)
    if not 0.0 <= label_smoothing < 1.0 or (label_smoothing and loss != "ce"):
        raise ValueError(
            f"{where}: label_smoothing must be in [0, 1), and 0 unless loss is 'ce', got {label_smoothing}"
        )
    arguments = (logits, y, loss, target, reference, float(label_smoothing))
    if direct() and not (logits.requires_grad and torch.is_grad_enabled()):
        return LogitLoss(*LOSS.run(*arguments))
    return LogitLoss(*LOSS.op(*arguments))


def _plain_loss(logits: Tensor, y: Tensor, loss: str, smoothing: float) -> LogitLoss | None:
    """The short way for plain tensors and an untargeted loss; None where a closer look is needed."""
    if logits.requires_grad or loss in ("kl", "linear", "dlr_targeted") or not 0.0 <= smoothing < 1.0:
        return None
    shape = logits.shape
    if len(shape) != 2 or shape[1] < LEAST_CLASSES.get(loss, _NEVER) or (smoothing and loss != "ce"):
        return None
    wide = logits.dtype is torch.float64
    value = torch.empty(shape[0], dtype=torch.float64 if wide else torch.float32)
    prediction, correct = torch.empty(shape[0], dtype=torch.int64), torch.empty(shape[0], dtype=torch.bool)
    grad = torch.empty_like(logits)
    done = _plain(logits, y, KIND_CODE[loss], smoothing, value, prediction, correct, grad)
    return LogitLoss(value, prediction, correct, grad) if done else None


_plain: Callable[..., bool] = (lambda *_: False) if _backend.plain is None else _backend.plain.plain_logit_loss
_is_compiling = torch.compiler.is_compiling
_NEVER = 2**63


def _check_values(y: Tensor, target: Tensor | None, classes: int) -> None:
    for name, labels in (("y", y), ("target", target)):
        if labels is not None and len(labels):
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= classes:
                raise ValueError(f"logit_loss: {name} must be in 0 .. {classes - 1}, got {low if low < 0 else high}")


# --- reference --------------------------------------------------------------------------------------------------


def _reference(
    logits: Tensor, y: Tensor, loss: str, target: Tensor | None, reference: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    classes = logits.shape[1]
    if logits.device.type == "cpu":
        _check_values(y, target, classes)
    bad = (y < 0) | (y >= classes)
    if target is not None:
        bad |= (target < 0) | (target >= classes)
    with torch.enable_grad():
        z = logits.detach().to(torch.float64 if logits.dtype == torch.float64 else torch.float32).requires_grad_()
        q = None if reference is None else reference.detach().to(z.dtype)
        safe = y.clamp(0, classes - 1), None if target is None else target.clamp(0, classes - 1)
        value = reference_loss(z, safe[0], loss, safe[1], q, smoothing)
        (grad,) = torch.autograd.grad(value.sum(), z) if len(z) else (torch.zeros_like(z),)
    nan = torch.isnan(logits).any(1)
    value = value.detach().masked_fill(nan | bad, torch.nan)
    grad = grad.masked_fill(nan[:, None], torch.nan).masked_fill(bad[:, None], 0)
    prediction = logits.argmax(1).masked_fill(nan, -1)
    return value, prediction, (prediction == y) & ~bad, grad.to(logits.dtype)


def reference_loss(
    z: Tensor, y: Tensor, loss: str, target: Tensor | None, reference: Tensor | None, smoothing: float
) -> Tensor:
    """The per-sample loss by differentiable PyTorch operations."""
    if loss == "ce":
        if target is None:
            return F.cross_entropy(z, y, reduction="none", label_smoothing=smoothing)
        return -F.cross_entropy(z, target, reduction="none", label_smoothing=smoothing)
    if loss == "kl":
        assert reference is not None
        log_q = F.log_softmax(reference, 1)
        return (log_q.exp() * (log_q - F.log_softmax(z, 1))).sum(1)
    if loss == "linear":
        assert reference is not None
        return torch.where(reference != 0, reference * z, 0).sum(1)
    order = z.argsort(dim=1, descending=True, stable=True)
    ranked = z.gather(1, order)

    def best_but(label: Tensor) -> Tensor:
        return torch.where(order[:, 0] == label, ranked[:, 1], ranked[:, 0])

    z_y = z.gather(1, y[:, None])[:, 0]
    if loss == "margin" and target is None:
        return best_but(y) - z_y
    if loss == "dlr":
        return -(z_y - best_but(y)) / (ranked[:, 0] - ranked[:, 2] + 1e-12)
    assert target is not None
    z_t = z.gather(1, target[:, None])[:, 0]
    if loss == "margin":
        return z_t - best_but(target)
    return -(z_y - z_t) / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2 + 1e-12)


# --- native -----------------------------------------------------------------------------------------------------


def _native(
    module: ModuleType, logits: Tensor, y: Tensor, loss: str, target: Tensor | None, reference: Tensor | None,
    smoothing: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    logits, y = logits.contiguous(), y.contiguous()
    target = None if target is None else target.contiguous()
    reference = None if reference is None else reference.contiguous()
    batch, classes = logits.shape
    value = torch.empty(batch, dtype=torch.float64 if logits.dtype is torch.float64 else torch.float32,
                        device=logits.device)  # fmt: skip
    prediction = torch.empty_like(y)
    correct = torch.empty_like(y, dtype=torch.bool)
    grad = torch.empty_like(logits)
    if batch:
        with device_guard(logits):
            invalid = module.logit_loss(
                logits.data_ptr(), DTYPE_CODE[logits.dtype], batch, classes, KIND_CODE[loss], y.data_ptr(),
                pointer(target), pointer(reference), smoothing, value.data_ptr(), prediction.data_ptr(),
                correct.data_ptr(), grad.data_ptr(), where_to(logits),
            )  # fmt: skip
        if invalid:
            _check_values(y, target, classes)
    return value, prediction, correct, grad


# --- fake, backward, registration -------------------------------------------------------------------------------


def _fake(logits: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    value = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return (
        y.new_empty(y.shape, dtype=value),
        torch.empty_like(y, memory_format=torch.contiguous_format),
        y.new_empty(y.shape, dtype=torch.bool),
        torch.empty_like(logits, memory_format=torch.contiguous_format),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[3])
    ctx.mark_non_differentiable(output[1], output[2], output[3])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    if grad_loss is None:
        return (None,) * 6
    return ((grad_loss[:, None] * grad.to(grad_loss.dtype)).to(grad.dtype), None, None, None, None, None)


def _samples(device: torch.device) -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        z, r = (torch.randn(33, 11, dtype=dtype, generator=generator).to(device) for _ in range(2))
        y, t = (torch.randint(11, (33,), generator=generator).to(device) for _ in range(2))
        yield from (
            (z, y, "ce", None, None, 0.0),
            (z, y, "ce", t, None, 0.1),
            (z, y, "kl", None, r, 0.0),
            (z, y, "linear", None, r, 0.0),
            (z, y, "margin", None, None, 0.0),
            (z, y, "margin", t, None, 0.0),
            (z, y, "dlr", None, None, 0.0),
            (z, y, "dlr_targeted", t, None, 0.0),
        )


LOSS = register(
    OpSpec(
        "logit_loss",
        "(Tensor logits, Tensor y, str loss, Tensor? target, Tensor? reference, float smoothing) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        _reference,
        _native,
        _fake,
        _samples,
        (_setup_context, _backward),
    )
)
