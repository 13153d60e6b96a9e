"""BPDA, backward pass differentiable approximation (Athalye et al., ICML 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastrobust import _checks

__all__ = ["BPDA"]

Transform = Callable[[Tensor], Tensor]
Product = Callable[[Tensor, Tensor], Tensor]


class BPDA(nn.Module):
    """A transform without useful gradients, with another gradient in the backward pass.

    ``nn.Sequential(BPDA(jpeg), net)`` computes ``net(jpeg(x))`` and is attacked as if jpeg were the identity. Also a
    decorator: ``@BPDA`` above a function of x. Attacks take gradients of the inputs only: none reach the parameters
    of a transform or a stand-in.

    Args:
        transform: maps (batch, ...) to a floating-point tensor (batch, ...); it sees a copy of x and no autograd, so it
            may leave PyTorch. Any module or callable.
        backward: None for the identity ("straight through"; the transform then keeps the shape), or a differentiable
            stand-in for the transform, of the same output shape, whose gradient at x is taken.
        product: in place of `backward`, the vector-Jacobian product itself: (x, gradient with respect to the output)
            -> gradient with respect to x, of the shape of x.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: from `torch.export`. A graph of the forward pass would have its gradient, so that a network with
            a BPDA in it is not compiled: attacks run the module itself.
    """

    def __init__(
        self, transform: Transform, backward: Transform | None = None, *, product: Product | None = None
    ) -> None:
        super().__init__()
        if not callable(transform):
            raise TypeError(f"BPDA: transform must be callable, got {type(transform).__name__}")
        for key, value in (("backward", backward), ("product", product)):
            if value is not None and not callable(value):
                raise TypeError(f"BPDA: {key} must be callable or None, got {type(value).__name__}")
        if backward is not None and product is not None:
            raise ValueError("BPDA: product must be None when backward is given, got both")
        self.transform, self.backward, self.product = transform, backward, product

    def forward(self, x: Tensor) -> Tensor:
        """The transform of x (batch, ...)."""
        _checks.check_tensor("BPDA", "x", x, _checks.FLOATS)
        if torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():
            raise RuntimeError("BPDA: its backward pass is not that of its forward pass, so a graph would not have it")
        out: Tensor = _Replaced.apply(x, self.transform, self._product())
        return out

    def _product(self) -> Product | None:
        if self.backward is None:
            return self.product
        stand_in = self.backward

        def product(x: Tensor, upstream: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                out = stand_in(x)
                _checks.check_tensor("BPDA", "backward(x)", out, _checks.FLOATS)
                _checks.check_same("BPDA", "backward(x)", out, "transform(x)", upstream)
                if not out.requires_grad:
                    raise ValueError("BPDA: backward must be differentiable, its output has no gradient")
                return torch.autograd.grad(out, x, upstream.to(out.dtype))[0]

        return product

    def extra_repr(self) -> str:
        return "straight through" if self.backward is None and self.product is None else ""


class _Replaced(torch.autograd.Function):
    """transform(x), with the gradient that `product` makes of the output's; None: the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transform: Transform, product: Product | None) -> Tensor:
        with torch.no_grad():
            out = transform(x.detach().clone())
        _checks.check_tensor("BPDA", "transform(x)", out, _checks.FLOATS)
        if product is None:
            _checks.check_same("BPDA", "transform(x)", out, "x", x)
        elif out.shape[:1] != x.shape[:1]:
            raise ValueError(f"BPDA: transform(x) must have {len(x)} rows, got shape {tuple(out.shape)}")
        ctx.save_for_backward(x)
        ctx.product = product
        return out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        if ctx.product is None:
            return upstream, None, None
        slope = ctx.product(x.detach(), upstream)
        _checks.check_tensor("BPDA", "product(x, gradient)", slope, _checks.FLOATS)
        _checks.check_same("BPDA", "product(x, gradient)", slope, "x", x)
        return slope, None, None
