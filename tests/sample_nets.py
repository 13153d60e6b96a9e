"""Networks for the tests, and what a compiled one is compared with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from fastrobust import _backend
from fastrobust.network import Compiled

native = pytest.mark.skipif(_backend.plain is None, reason="this build or FASTROBUST_BACKEND has no native engine")


def shaken(model: nn.Module) -> nn.Module:
    """Batch-norm statistics and scales drawn at random, eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(0.5, 2)
                module.bias.data.normal_()
    return model.eval()


def eager(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the summed cross-entropy."""
    x = x.clone().requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
    return logits.detach(), gradient


def assert_same(compiled: Compiled, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Against float64: no more than a few times eager float32's own error."""
    logits, gradient = eager(model, x, y)
    paths = [eager(_Lowered(compiled), x, y)]
    if compiled.engine is not None:
        z, _, _, slope = compiled.gradient(x, y)
        paths.append((z, slope))
        assert torch.equal(paths[-1][0], compiled(x))
    for got in paths:
        assert float((got[0] - logits).norm()) <= 2e-5 * float(logits.norm()) + 1e-6
        assert float((got[1] - gradient).norm()) <= 1e-3 * float(gradient.norm()) + 1e-6


class _Lowered(nn.Module):
    def __init__(self, compiled: Compiled) -> None:
        super().__init__()
        self.compiled = compiled

    def forward(self, x: Tensor) -> Tensor:
        return self.compiled.run(x)  # x requires a gradient here: the lowered graph


class Layers(nn.Module):
    """A random convolutional network, with a residual block, described by integers."""

    def __init__(self, draw: Any, channels: int, size: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        height = size
        for _ in range(draw(st.integers(1, 4))):
            groups = draw(st.sampled_from([1, 1, 2, channels]))
            groups = groups if channels % groups == 0 else 1
            kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
            padding, dilation = draw(st.integers(0, 3)), draw(st.integers(1, 2))
            wide = groups * draw(st.integers(1, 5))
            reach = dilation * (kernel - 1) + 1
            if height + 2 * padding < reach:
                break
            parts.append(nn.Conv2d(channels, wide, kernel, stride, padding, dilation, groups, draw(st.booleans())))
            height, channels = (height + 2 * padding - reach) // stride + 1, wide
            if draw(st.booleans()):
                parts.append(nn.BatchNorm2d(channels))
            if draw(st.booleans()):
                parts.append(nn.ReLU())
            if height >= 3 and draw(st.booleans()):
                pool = draw(st.sampled_from(["max", "average", "adaptive"]))
                ceil = draw(st.booleans())
                if pool == "max":
                    parts.append(nn.MaxPool2d(3, 2, 1, ceil_mode=ceil))
                elif pool == "average":
                    parts.append(nn.AvgPool2d(3, 2, 1, ceil_mode=ceil, count_include_pad=draw(st.booleans())))
                else:
                    parts.append(nn.AdaptiveAvgPool2d(2))
                height = nn.Sequential(*parts).eval()(torch.zeros(1, parts[0].in_channels, size, size)).shape[-1]  # type: ignore[arg-type]
        self.body = nn.Sequential(*parts)
        self.inner = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.last = nn.Linear(channels * height * height, draw(st.integers(2, 7)))
        self.dropout = nn.Dropout(0.5)
        self.twice = draw(st.booleans())

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        h = torch.relu(self.inner(h) + h) if self.twice else self.inner(h) - h
        out: Tensor = self.last(self.dropout(h.flatten(1)))
        return out


class Mixed(nn.Module):
    """Concatenation, padding, upsampling, products and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(6, 4, 3), nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([F.silu(self.first(x * 2 - 1)), x], 1)
        h = self.second(F.pad(h, (1, 2, -1, 3))) / 3
        h = h * torch.sigmoid(h) + h * h
        h = F.avg_pool2d(F.interpolate(h, scale_factor=2), 2, 1)
        out: Tensor = self.last(F.adaptive_avg_pool2d(h, 8).flatten(1))
        return out


class Step(torch.autograd.Function):
    """Rounds, and passes gradients straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.line = kind, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        if self.kind == "custom":
            x = Step.apply(x)
        if self.kind == "random":
            x = x + torch.randn_like(x)
        if self.kind == "branch" and float(x.detach().sum()) > 0:
            x = 2 * x
        out = self.line(x)
        return (out, out) if self.kind == "pair" else out
