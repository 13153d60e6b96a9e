"""No side effects, whatever happens; and clear errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attacks.nets import cnn, images, mlp, predictions
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.attacks import PGD


def snapshot(model: nn.Module) -> list[Any]:
    state: list[Any] = [torch.random.get_rng_state().clone()]
    for module in model.modules():
        state += [module.training, len(module._forward_hooks), len(module._backward_hooks)]
    for p in model.parameters():
        state += [p.detach().clone(), p.requires_grad, None if p.grad is None else p.grad.clone()]
    state += [b.clone() for b in model.buffers()]
    return state


def same(a: list[Any], b: list[Any]) -> bool:
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))


def mixed() -> nn.Module:
    """Some modules in train mode, a frozen batch norm, a frozen parameter, one with a gradient."""
    model = cnn().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[8].weight.grad = torch.ones_like(model[8].weight)
    return model


KEYWORDS = [
    {}, {"mode": "train"}, {"norm": "L2"}, {"norm": "L1"}, {"early_stop": True, "restarts": 2}, {"loss": "kl"},
    {"autocast": torch.bfloat16},
]  # fmt: skip


@pytest.mark.parametrize("keywords", KEYWORDS)
@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_is_changed(keywords: dict[str, Any], failure: type[BaseException] | None) -> None:
    model, x = mixed(), images(6)
    y = predictions(cnn(), x)
    calls = 0

    def trip(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if failure is not None and calls == 3:
            raise failure("half-way")

    model[8].register_forward_hook(trip)
    before, x_before, y_before = snapshot(model), x.clone(), y.clone()
    attack = PGD(model, 0.001, 0.0005, 4, **keywords)
    if failure is None:
        attack(x, y)
        assert calls >= 4
    else:
        with pytest.raises(failure, match="half-way"):
            attack(x, y)
    assert same(before, snapshot(model))
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)
    assert not x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_under_no_grad_and_inference_mode(context: Any) -> None:
    model, x, y = mlp(), images(4), torch.arange(4)
    expected = PGD(model)(x, y)
    with context():
        assert torch.equal(PGD(model)(x, y), expected)
        assert torch.equal(PGD(model)(images(4), y), expected)


def test_train_mode_uses_batch_statistics() -> None:
    model, x, y = cnn(), images(6), torch.arange(6)
    assert not torch.equal(PGD(model, mode="train")(x, y), PGD(model)(x, y))


def test_wants_no_parameter_gradients() -> None:
    model = mlp()
    PGD(model)(images(4), torch.arange(4))
    assert all(p.grad is None for p in model.parameters())


def test_input_that_requires_grad_and_channels_last() -> None:
    model, x, y = cnn(), images(4), torch.arange(4)
    expected = PGD(model)(x, y)
    assert torch.equal(PGD(model)(x.clone().requires_grad_(), y), expected)
    colour = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    flat = mlp(192)
    last = colour.to(memory_format=torch.channels_last)
    assert torch.allclose(PGD(flat)(last, y[:2]), PGD(flat)(colour, y[:2]), atol=1e-6)


X, Y = images(3), torch.tensor([0, 1, 2])


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten()


BAD_INPUT = [
    (lambda m: PGD(m)([1], Y), TypeError, "x must be a tensor, got list"),
    (lambda m: PGD(m)(X.int(), Y), TypeError, "x must have dtype"),
    (lambda m: PGD(m)(X + 1, Y), ValueError, r"x must lie in the box \[0, 1\], got values in"),
    (lambda m: PGD(m)(X * 255, Y), ValueError, r"x must lie in the box"),
    (lambda m: PGD(m)(X * math.nan, Y), ValueError, "x must be finite, got 2352 NaN"),
    (lambda m: PGD(m)(X, Y.float()), TypeError, "y must have dtype int64"),
    (lambda m: PGD(m)(X, Y[:2]), ValueError, r"y must have shape \(3,\), got \(2,\)"),
    (lambda m: PGD(m)(X, Y + 9), ValueError, "y must be in 0 .. 9, the model's classes, got 11"),
    (lambda m: PGD(m)(X, Y - 1), ValueError, "y must be >= 0, got -1"),
    (lambda m: PGD(m, eps=-0.1), ValueError, "eps must be finite and >= 0, got -0.1"),
    (lambda m: PGD(m, eps=math.nan), ValueError, "eps must be finite"),
    (lambda m: PGD(m, alpha=-1.0), ValueError, "alpha must be finite"),
    (lambda m: PGD(m, steps=-1), ValueError, "steps must be an integer >= 0"),
    (lambda m: PGD(m, restarts=0), ValueError, "restarts must be an integer >= 1"),
    (lambda m: PGD(m, norm="L3"), ValueError, "norm must be one of"),
    (lambda m: PGD(m, loss="hinge"), ValueError, "loss must be"),
    (lambda m: PGD(m, mode="test"), ValueError, "mode must be 'eval' or 'train'"),
    (lambda m: PGD(m, box=(1.0, 0.0)), ValueError, "box must have lo <= hi"),
    (lambda m: PGD(m, compile="fast"), ValueError, "compile must be"),
    (lambda m: PGD(m, autocast=torch.float32), ValueError, "autocast must be"),
    (lambda m: PGD(3), TypeError, "model must be callable"),
    (lambda m: PGD(Pair())(X, Y), TypeError, "model must return a tensor of logits, got tuple"),
    (lambda m: PGD(Flat())(X, Y), ValueError, r"model must return logits of shape \(3, classes\), got \(2352,\)"),
    (lambda m: PGD(m).run(X, Y, start=X[:2]), ValueError, "start must have the shape of x"),
    (lambda m: PGD(m).run(X, Y, index=Y[:2]), ValueError, r"index must have shape \(3,\)"),
    (lambda m: PGD(m, seed=-1)(X, Y), ValueError, "seed must be in"),
    (lambda m: fr.Linf(-1.0), ValueError, "Linf: eps must be a finite number >= 0"),
    (lambda m: fr.L2(0.5, box=(1.0, 0.0)), ValueError, "L2: box must have lo <= hi"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_INPUT)
def test_errors_name_the_argument_and_change_nothing(call: Any, error: Any, message: str) -> None:
    model = mixed()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        call(model)
    assert same(before, snapshot(model))


def test_threat_in_place_of_eps() -> None:
    model, x, y = mlp(), images(4), torch.arange(4)
    assert torch.equal(PGD(model, threat=fr.L2(0.7), alpha=0.2)(x, y), PGD(model, 0.7, 0.2, norm="L2")(x, y))
