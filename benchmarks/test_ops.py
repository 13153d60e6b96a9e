"""Ops: native kernels beside their reference, the eager chain people write, and torch.compile of that chain."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastrobust import _backend, ops
from fastrobust.ops import perturb

EPS, ALPHA = 8 / 255, 2 / 255
SIZES = [(128, 5), (128, 784), (128, 3, 32, 32)]


def eager_linf(x_adv: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """The update of torchattacks 3.5.1's PGD."""
    x_adv = x_adv + ALPHA * grad.sign()
    return torch.clamp(x + torch.clamp(x_adv - x, min=-EPS, max=EPS), min=0, max=1)


def eager_l2(x_adv: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """The update of torchattacks 3.5.1's PGDL2."""
    shape = (-1, *[1] * (x.dim() - 1))
    norms = torch.norm(grad.view(len(x), -1), p=2, dim=1) + 1e-10
    x_adv = x_adv + 0.2 * grad / norms.view(shape)
    delta = x_adv - x
    factor = torch.min(1.0 / torch.norm(delta.view(len(x), -1), p=2, dim=1), torch.ones(len(x)))
    return torch.clamp(x + delta * factor.view(shape), min=0, max=1)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def points(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=g)
    return ops.random_start(x, EPS, seed=0), x, torch.randn(shape, generator=g)


def name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


@pytest.mark.parametrize("shape", SIZES, ids=name)
@pytest.mark.parametrize("who", ["native, in place", "native, new tensor", "eager chain", "torch.compile", "reference"])
def test_pgd_step_linf(benchmark: Any, who: str, shape: tuple[int, ...]) -> None:
    benchmark.group = f"pgd_step Linf {name(shape)}"
    x_adv, x, grad = points(shape)
    arguments = perturb._prepare("pgd_step", x_adv, x, grad, ALPHA, EPS, "Linf", (0.0, 1.0), "exact", None)
    run = {
        "native, in place": lambda: ops.pgd_step_(x_adv, x, grad, ALPHA, EPS),
        "native, new tensor": lambda: ops.pgd_step(x_adv, x, grad, ALPHA, EPS),
        "eager chain": lambda: eager_linf(x_adv, x, grad),
        "torch.compile": lambda: fast(x_adv, x, grad),
        "reference": lambda: perturb._reference(*arguments),
    }[who]
    fast = compiled(eager_linf) if who == "torch.compile" else eager_linf
    assert torch.allclose(ops.pgd_step(x_adv, x, grad, ALPHA, EPS), eager_linf(x_adv, x, grad), atol=1e-6)
    benchmark(run)


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("who", ["native, in place", "eager chain", "torch.compile", "reference"])
def test_pgd_step_rows(benchmark: Any, who: str, norm: str) -> None:
    if norm == "L1" and who in ("eager chain", "torch.compile"):
        pytest.skip("no common eager chain steps and projects exactly in L1: the reference is the peer")
    benchmark.group = f"pgd_step {norm} 128x3x32x32"
    x_adv, x, grad = points((128, 3, 32, 32))
    step, eps, projection = (0.2, 1.0, "sequential") if norm == "L2" else (3.0, 12.0, "exact")
    arguments = perturb._prepare("pgd_step", x_adv, x, grad, step, eps, norm, (0.0, 1.0), projection, None)
    run = {
        "native, in place": lambda: ops.pgd_step_(x_adv, x, grad, step, eps, norm, projection=projection),
        "eager chain": lambda: eager_l2(x_adv, x, grad),
        "torch.compile": lambda: fast(x_adv, x, grad),
        "reference": lambda: perturb._reference(*arguments),
    }[who]
    fast = compiled(eager_l2) if who == "torch.compile" else eager_l2
    benchmark(run)


@pytest.mark.parametrize("who", ["native, in place", "native, new tensor", "kernel alone"])
def test_call_overhead(benchmark: Any, who: str) -> None:
    """On four numbers the kernel costs next to nothing: what is left is the call."""
    benchmark.group = "call overhead, pgd_step on 1x4"
    x_adv, x, grad = points((1, 4))
    launch = (x_adv.data_ptr(), x_adv.data_ptr(), x.data_ptr(), grad.data_ptr(), 0, 0, 1, 4, ALPHA, 0, 0, EPS, 0,
              0.0, 1.0, 0, 0, True, 0, 1)  # fmt: skip
    native = _backend.cpu
    assert native is not None
    run = {
        "native, in place": lambda: ops.pgd_step_(x_adv, x, grad, ALPHA, EPS),
        "native, new tensor": lambda: ops.pgd_step(x_adv, x, grad, ALPHA, EPS),
        "kernel alone": lambda: native.pgd_step(*launch),
    }[who]
    benchmark(run)


@pytest.mark.parametrize("shape", [(128, 10), (128, 100), (128, 1000), (1024, 10)], ids=name)
@pytest.mark.parametrize("who", ["native", "eager CE + autograd", "torch.compile"])
def test_logit_loss(benchmark: Any, who: str, shape: tuple[int, int]) -> None:
    benchmark.group = f"logit_loss ce {name(shape)}"
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(shape, generator=g), torch.randint(shape[1], shape[:1], generator=g)
    free = z.clone().requires_grad_()

    def eager(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        value = F.cross_entropy(logits, y, reduction="none")
        (slope,) = torch.autograd.grad(value.sum(), logits)
        prediction = logits.argmax(1)
        return value, prediction, prediction == y, slope

    def formula(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradient by hand, so that torch.compile sees one graph without autograd."""
        log_p = F.log_softmax(logits, 1)
        slope = log_p.exp() - F.one_hot(y, shape[1])
        prediction = logits.argmax(1)
        return -log_p.gather(1, y[:, None])[:, 0], prediction, prediction == y, slope

    run = {
        "native": lambda: ops.logit_loss(z, y),
        "eager CE + autograd": lambda: eager(free),
        "torch.compile": lambda: fast(z),
    }[who]
    fast = compiled(formula) if who == "torch.compile" else formula
    assert torch.allclose(ops.logit_loss(z, y).grad, eager(free)[3], atol=1e-6)
    benchmark(run)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("who", ["native", "eager chain"])
def test_random_start(benchmark: Any, who: str, norm: str) -> None:
    benchmark.group = f"random_start {norm} 128x3x32x32"
    x = torch.rand(128, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def eager() -> Tensor:
        if norm == "Linf":
            return torch.clamp(x + torch.empty_like(x).uniform_(-EPS, EPS), 0, 1)
        if norm == "L2":
            delta = torch.randn_like(x)
        else:
            delta = torch.empty_like(x).exponential_() * torch.randint(0, 2, x.shape).mul_(2).sub_(1)
        size = delta.flatten(1).norm(p=2 if norm == "L2" else 1, dim=1).view(-1, 1, 1, 1)
        return torch.clamp(x + delta / size * torch.rand(128, 1, 1, 1), 0, 1)

    benchmark({"native": lambda: ops.random_start(x, 1.0, norm, seed=1), "eager chain": eager}[who])


def interval_inputs(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """32 samples, 32 centres and radii, batch norm's parameters; gradients of what comes out."""
    g = torch.Generator().manual_seed(0)
    points, radius = torch.randn(64, *shape, generator=g), torch.rand(32, *shape, generator=g)
    weight, bias = torch.rand(shape[0], generator=g), torch.randn(shape[0], generator=g)
    return tuple(value.requires_grad_() for value in (points, radius, weight, bias))


def eager_norm(points: Tensor, radius: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Batch norm with the samples' statistics, then ReLU, on samples and ends of boxes."""
    var, mean = torch.var_mean(points[:32], (0, 2, 3), correction=0)
    scale = weight / (var + 1e-5).sqrt()
    shift = bias - mean * scale
    m, q = points * scale[:, None, None] + shift[:, None, None], radius * scale[:, None, None].abs()
    lower, upper = (m[32:] - q).relu(), (m[32:] + q).relu()
    return torch.cat([m[:32].relu(), (lower + upper) / 2]), (upper - lower) / 2


@pytest.mark.parametrize("shape", [(16, 32, 32), (32, 16, 16)], ids=name)
@pytest.mark.parametrize("who", ["native", "eager chain", "torch.compile"])
def test_interval_norm(benchmark: Any, who: str, shape: tuple[int, ...]) -> None:
    """Forward and backward."""
    benchmark.group = f"interval_norm, ReLU, 32 samples and boxes {name(shape)}"
    inputs = interval_inputs(shape)

    def native(*values: Tensor) -> tuple[Tensor, Tensor]:
        found = ops.interval_norm(*values, rows=32, activation="relu")
        return found.points, found.radius

    function = {"native": native, "eager chain": eager_norm, "torch.compile": eager_norm}[who]
    function = compiled(function) if who == "torch.compile" else function
    assert torch.allclose(native(*inputs)[1], eager_norm(*inputs)[1], atol=1e-5)
    ones = tuple(torch.ones_like(value) for value in native(*inputs))
    benchmark(lambda: torch.autograd.grad(function(*inputs), inputs, ones))


@pytest.mark.parametrize("who", ["native", "eager chain", "torch.compile"])
def test_interval_linear(benchmark: Any, who: str) -> None:
    """Forward and backward of a large layer, which reads and writes 16 MiB of weights."""
    benchmark.group = "interval_linear 8192 -> 512, 32 samples and boxes"
    g = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(n, 8192, generator=g).requires_grad_() for n in (64, 32, 512))

    def eager(points: Tensor, radius: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(points, weight), F.linear(radius, weight.abs())

    function = {"native": ops.interval_linear, "eager chain": eager, "torch.compile": eager}[who]
    function = compiled(function) if who == "torch.compile" else function
    assert torch.allclose(ops.interval_linear(*inputs)[1], eager(*inputs)[1], rtol=1e-3, atol=0.1)
    ones = torch.ones(64, 512), torch.ones(32, 512)
    benchmark(lambda: torch.autograd.grad(function(*inputs), inputs, ones))


@pytest.mark.parametrize(("channels", "size", "stride"), [((32, 16), 14, 1), ((32, 16), 32, 2), ((64, 64), 8, 1)])
@pytest.mark.parametrize("who", ["native", "conv_transpose2d", "torch.compile"])
def test_convolution_transposed(
    benchmark: Any, who: str, channels: tuple[int, int], size: int, stride: int
) -> None:  # fmt: skip
    """320 linear functions of a convolution's result, kernel 3x3, back to its input: a step of CROWN."""
    outputs, inputs = channels
    benchmark.group = f"convolution_transposed {inputs}x{size}x{size} -> {outputs}, stride {stride}, 320 rows"
    g = torch.Generator().manual_seed(0)
    weight, side = torch.randn(outputs, inputs, 3, 3, generator=g), size // stride
    y = torch.randn(320, outputs, side, side, generator=g)

    def eager(y: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose2d(y, weight, None, stride, 1, stride - 1)

    run = {
        "native": lambda: ops.convolution_transposed(y, weight, (size, size), (stride, stride), (1, 1)),
        "conv_transpose2d": lambda: eager(y, weight),
        "torch.compile": lambda: fast(y, weight),
    }[who]
    fast = compiled(eager) if who == "torch.compile" else eager
    assert torch.allclose(run(), eager(y, weight), atol=1e-3)
    benchmark(run)


@pytest.mark.parametrize(
    ("who", "kind"),
    [
        *itertools.product(("native", "eager chain", "torch.compile"), ("normal", "uniform", "laplace")),
        ("torch.randn alone", "normal"),
    ],
)
def test_noisy_copies(benchmark: Any, who: str, kind: str) -> None:
    """1,000 noisy copies of one image; the chain is that of Cohen's code, repeat, draw, scale, add."""
    benchmark.group = f"noisy_copies {kind} 1000x3x32x32"
    x, copies = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(1000)
    image, index = torch.zeros_like(copies), torch.zeros(1, dtype=torch.int64)

    def eager(image: Tensor) -> Tensor:
        batch = image.repeat(1000, 1, 1, 1)
        if kind == "normal":
            return batch + torch.randn_like(batch) * 0.5
        if kind == "uniform":
            return batch + (2 * torch.rand_like(batch) - 1) * 0.5
        u = torch.rand_like(batch) - 0.5
        return batch - 0.5 * u.sign() * torch.log1p(-2 * u.abs())

    run = {
        "native": lambda: ops.noisy_copies(x, image, copies, index, 0, kind, 0.5),
        "eager chain": lambda: eager(x),
        "torch.compile": lambda: fast(x),
        "torch.randn alone": lambda: torch.randn(1000, 3, 32, 32),
    }[who]
    fast = compiled(eager) if who == "torch.compile" else eager
    assert float((run() - x).mean() if who != "torch.randn alone" else 0) == pytest.approx(0, abs=0.01)
    benchmark(run)


@pytest.mark.parametrize("shape", [(1000, 10), (1000, 1000)], ids=name)
@pytest.mark.parametrize("who", ["native", "eager chain", "torch.compile", "loop of Python"])
def test_add_votes(benchmark: Any, who: str, shape: tuple[int, int]) -> None:
    """The votes of one batch; the loop is that of Cohen's code."""
    benchmark.group = f"add_votes {name(shape)}"
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    image, counts = torch.zeros(shape[0], dtype=torch.int64), torch.zeros(1, shape[1], dtype=torch.int64)

    def eager(z: Tensor, image: Tensor, counts: Tensor) -> Tensor:
        valid = ~z.isnan().any(1)
        return counts.index_put_((image, z.argmax(1)), valid.long(), accumulate=True)

    def loop() -> Any:
        found = np.zeros(shape[1], dtype=int)
        for said in logits.argmax(1).cpu().numpy():
            found[said] += 1
        return found

    run = {
        "native": lambda: ops.add_votes(logits, image, counts),
        "eager chain": lambda: eager(logits, image, counts),
        "torch.compile": lambda: fast(logits, image, counts),
        "loop of Python": loop,
    }[who]
    fast = compiled(eager) if who == "torch.compile" else eager
    run()
    benchmark(run)
