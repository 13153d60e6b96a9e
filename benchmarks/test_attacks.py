"""Whole attacks: PGD-10 beside torchattacks, foolbox, the loop people write, and the model's own cost."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.network.lower import lower

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10


def mlp(*sizes: int) -> nn.Module:
    parts: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def cnn(channels: int, width: int, size: int) -> nn.Module:
    def layer(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU()]

    convolutions = [*layer(channels, width, 1), *layer(width, 2 * width, 2), *layer(2 * width, 2 * width, 2)]
    features = 2 * width * (size // 4) ** 2
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 10))


# name -> (sample, batch, constructor)
NETS = {
    "MLP 5-50x6-5": ((5,), 128, lambda: mlp(5, *[50] * 6, 5)),
    "MLP 64-128-128-10": ((64,), 128, lambda: mlp(64, 128, 128, 10)),
    "MLP 784-256-256-10": ((1, 28, 28), 128, lambda: mlp(784, 256, 256, 10)),
    "CNN 28x28": ((1, 28, 28), 128, lambda: cnn(1, 16, 28)),
    "CNN 32x32": ((3, 32, 32), 128, lambda: cnn(3, 32, 32)),
    "ResNet-18, width 16": ((3, 32, 32), 64, lambda: fr.models.resnet18(3, 10, 16)),
}


def setting(net: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network with batch-norm statistics and scales drawn at random, in eval mode, points and labels."""
    shape, batch, make = NETS[net]
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    x = torch.rand(batch, *shape)
    return model.eval(), x, model.eval()(x).argmax(1)


def folded(model: nn.Module, x: Tensor) -> Any:
    """The best that PyTorch's own operations do: batch norm folded, channels_last."""
    network = fr.network.capture(model, x)
    lowered = lower(network)
    weights = [
        w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w
        for w in lowered.weights(*network.tensors())
    ]
    return lambda points: lowered.forward(points, *weights)


def peer(name: str) -> ModuleType:
    """torchattacks imports torchvision for attacks that are not used here; an empty module will do."""
    sys.modules.setdefault("torchvision", ModuleType("torchvision"))
    return pytest.importorskip(name, reason=f"the public peer {name} is not installed", exc_type=ImportError)


WHO = [
    "fastrobust, compiled", "fastrobust, eager", "torchattacks", "foolbox", "eager loop", "folded + channels_last",
    "folded + channels_last + torch.compile",
]  # fmt: skip


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("points", [None, 1], ids=["batch", "one point"])
def test_pgd10_linf(benchmark: Any, points: int | None, who: str, net: str, peak: float) -> None:
    model, x, y = setting(net)
    x, y = x[:points], y[:points]
    benchmark.group = f"PGD-10 Linf, {net}, batch {len(x)}"
    if who.startswith("folded") and x.dim() != 4:
        pytest.skip("fully connected networks have no batch norm to fold and no channels")

    def loop(logits: Any) -> Tensor:
        x_adv = x.clone()
        for _ in range(STEPS):
            x_adv.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(logits(x_adv), y), x_adv)
            x_adv = x_adv.detach() + ALPHA * grad.sign()
            x_adv = torch.clamp(x + torch.clamp(x_adv - x, -EPS, EPS), 0, 1)
        return x_adv

    compiled = fr.network.compile(model, x)
    ours = fr.attacks.PGD(compiled, EPS, ALPHA, STEPS, random_start=False)
    if who == "torchattacks":
        theirs = peer("torchattacks").PGD(model, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False)
        run: Any = lambda: theirs(x, y)  # noqa: E731
    elif who == "foolbox":
        foolbox = peer("foolbox")
        victim = foolbox.PyTorchModel(model, bounds=(0, 1))
        attack = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=STEPS, random_start=False)
        run = lambda: attack(victim, x, y, epsilons=EPS)  # noqa: E731
    elif who.startswith("folded"):
        x, fast = x.contiguous(memory_format=torch.channels_last), folded(model, x)
        if "torch.compile" in who:
            torch._dynamo.reset()
            fast = torch.compile(fast, dynamic=False)
        run = lambda: loop(fast)  # noqa: E731
    else:
        eager = fr.attacks.PGD(model, EPS, ALPHA, STEPS, random_start=False, compile=False)
        run = {
            "fastrobust, compiled": lambda: ours(x, y),
            "fastrobust, eager": lambda: eager(x, y),
            "eager loop": lambda: loop(model),
        }[who]
    if isinstance(result := run(), Tensor):  # same iterates: at most 2% of the values differ, by flipped signs
        differ = ((result - ours(x.contiguous(), y)).abs() > 1e-5).float().mean()
        assert differ <= 0.02
        benchmark.extra_info["share of values that differ"] = float(differ)
    benchmark.pedantic(run, rounds=9, warmup_rounds=2)
    if who == "fastrobust, compiled":
        operations = 2 * 2 * compiled.multiplications * len(x) * STEPS  # forward, and backward to the input
        rate = operations / benchmark.stats.stats.median
        benchmark.extra_info.update({"GFLOP/s": rate / 1e9, "share of the peak": rate / peak, "peak": peak / 1e9})


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("who", ["fastrobust, compiled", "eager, inference_mode"])
def test_forward(benchmark: Any, who: str, net: str) -> None:
    model, x, _ = setting(net)
    benchmark.group = f"forward pass, {net}, batch {len(x)}"
    compiled = fr.network.compile(model, x)

    def eager() -> Tensor:
        with torch.inference_mode():
            out: Tensor = model(x)
        return out

    assert torch.allclose(eager(), compiled(x), rtol=1e-3, atol=1e-3)
    benchmark.pedantic({"fastrobust, compiled": lambda: compiled(x)}.get(who, eager), rounds=30, warmup_rounds=5)


@pytest.mark.parametrize("who", ["all steps", "early stop"])
def test_early_stop(benchmark: Any, who: str) -> None:
    benchmark.group = "PGD-50 Linf, MLP 784-256-256-10, most points fooled early"
    torch.manual_seed(0)
    model: nn.Module = fr.models.mlp((1, 28, 28), [256, 256], 10).eval()
    x = torch.rand(128, 1, 28, 28)
    y = model(x).argmax(1)
    attack = fr.attacks.PGD(model, 0.1, 0.01, 50, early_stop=who == "early stop")
    benchmark.pedantic(lambda: attack(x, y), rounds=9, warmup_rounds=2)
