"""Whole attacks: PGD-10 beside torchattacks, foolbox, the loop people write, and the model's own cost."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrobust as fr

EPS, ALPHA, STEPS, BATCH = 8 / 255, 2 / 255, 10, 128

NETS = {
    "MLP 5-50x6-5": ((5,), lambda: fr.models.mlp((5,), [50] * 6, 5)),
    "MLP 784-256-256-10": ((1, 28, 28), lambda: fr.models.mlp((1, 28, 28), [256, 256], 10)),
    "CNN 28x28": ((1, 28, 28), lambda: fr.models.small_cnn(1, 16, 28, 10)),
}


def peer(name: str) -> ModuleType:
    """torchattacks imports torchvision for attacks that are not used here; an empty module will do."""
    sys.modules.setdefault("torchvision", ModuleType("torchvision"))
    return pytest.importorskip(name, reason=f"the public peer {name} is not installed", exc_type=ImportError)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    "who", ["fastrobust", "torchattacks", "foolbox", "eager loop", "model forward + backward x 10"]
)
def test_pgd10_linf(benchmark: Any, who: str, net: str) -> None:
    benchmark.group = f"PGD-10 Linf, {net}, batch {BATCH}"
    shape, make = NETS[net]
    torch.manual_seed(0)
    model = make().eval()
    x = torch.rand(BATCH, *shape)
    y = model(x).argmax(1)

    def loop() -> Tensor:
        x_adv = x.clone()
        for _ in range(STEPS):
            x_adv.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
            x_adv = x_adv.detach() + ALPHA * grad.sign()
            x_adv = torch.clamp(x + torch.clamp(x_adv - x, -EPS, EPS), 0, 1)
        return x_adv

    ours = fr.attacks.PGD(model, EPS, ALPHA, STEPS, random_start=False)

    def passes() -> None:
        for _ in range(STEPS):
            free = x.detach().requires_grad_()
            torch.autograd.grad(model(free).sum(), free)

    if who == "torchattacks":
        theirs = peer("torchattacks").PGD(model, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False)
        run: Any = lambda: theirs(x, y)  # noqa: E731
    elif who == "foolbox":
        foolbox = peer("foolbox")
        victim = foolbox.PyTorchModel(model, bounds=(0, 1))
        attack = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=STEPS, random_start=False)
        run = lambda: attack(victim, x, y, epsilons=EPS)  # noqa: E731
    else:
        run = {"fastrobust": lambda: ours(x, y), "eager loop": loop, "model forward + backward x 10": passes}[who]
    if isinstance(result := run(), Tensor):  # same iterates: at most 2% of the values differ, by flipped signs
        differ = ((result - ours(x, y)).abs() > 1e-5).float().mean()
        assert differ <= 0.02
        benchmark.extra_info["share of values that differ"] = float(differ)
    benchmark.pedantic(run, rounds=9, warmup_rounds=2)


@pytest.mark.parametrize("who", ["all steps", "early stop"])
def test_early_stop(benchmark: Any, who: str) -> None:
    benchmark.group = "PGD-50 Linf, MLP 784-256-256-10, most points fooled early"
    torch.manual_seed(0)
    model: nn.Module = fr.models.mlp((1, 28, 28), [256, 256], 10).eval()
    x = torch.rand(BATCH, 1, 28, 28)
    y = model(x).argmax(1)
    attack = fr.attacks.PGD(model, 0.1, 0.01, 50, early_stop=who == "early stop")
    benchmark.pedantic(lambda: attack(x, y), rounds=9, warmup_rounds=2)
