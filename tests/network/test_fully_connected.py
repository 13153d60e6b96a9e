"""Fully connected networks on every device there is: the native engine does what PyTorch does, sample by sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrobust as fr
from fastrobust import _backend
from fastrobust.attacks import PGD
from fastrobust.network import Compiled, compile

NETS = [((5,), (50,) * 6, 5), ((64,), (128, 128), 10), ((1, 28, 28), (256, 256), 10), ((3, 7), (), 3)]
SETTINGS = {"Linf": (0.05, 0.01), "L2": (0.5, 0.1), "L1": (2.0, 0.5)}


@pytest.fixture(autouse=True)
def _native(device: torch.device) -> None:
    if _backend.module_for(device) is None:
        pytest.skip(f"no native engine for {device}")


def made(shape: tuple[int, ...], hidden: tuple[int, ...], classes: int, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    net = fr.models.mlp(shape, hidden, classes)
    if len(shape) == 3:
        net = nn.Sequential(fr.models.Normalize((0.3,), (0.5,)), net)
    return net.to(device).eval()


def points(count: int, shape: tuple[int, ...], classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(count)
    return torch.rand(count, *shape, generator=g).to(device), torch.randint(classes, (count,), generator=g).to(device)


def compiled_from(model: nn.Module, x: Tensor) -> Compiled:
    compiled = compile(model, x)
    assert compiled.engine is not None, compiled.explain()
    return compiled


@pytest.mark.parametrize(("shape", "hidden", "classes"), NETS)
@pytest.mark.parametrize("count", [1, 37])
def test_logits_and_gradients(
    shape: tuple[int, ...], hidden: tuple[int, ...], classes: int, count: int, device: torch.device
) -> None:
    model = made(shape, hidden, classes, device)
    x, y = points(count, shape, classes, device)
    compiled = compiled_from(model, x)
    exact, points_64 = made(shape, hidden, classes, device).double(), x.double().requires_grad_()
    logits = exact(points_64)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), points_64)
    logits = logits.detach()
    got, _, _, slope = compiled.gradient(x, y)
    assert torch.equal(got, compiled(x))
    assert float((got - logits).norm()) <= 1e-5 * float(logits.norm())
    assert float((slope - gradient).norm()) <= 1e-4 * float(gradient.norm())


@pytest.mark.parametrize(("shape", "hidden", "classes"), NETS)
@pytest.mark.parametrize("norm", SETTINGS)
def test_attacks(
    shape: tuple[int, ...], hidden: tuple[int, ...], classes: int, norm: str, device: torch.device
) -> None:
    model = made(shape, hidden, classes, device)
    x, y = points(37, shape, classes, device)
    eps, alpha = SETTINGS[norm]
    compiled = compiled_from(model, x)
    for early_stop in (False, True):
        ours, eager = (
            PGD(net, eps, alpha, 10, norm=norm, early_stop=early_stop, compile=False, cycles=False).run(x, y)
            for net in (compiled, model)
        )
        near = (ours.x_adv - eager.x_adv).flatten(1).abs().amax(1) <= 1e-4
        assert float(near.float().mean()) >= 0.9  # the sign of a gradient near zero may flip on rounding
        assert torch.equal(ours.success[near], eager.success[near])
        assert torch.equal(ours.steps[near], eager.steps[near])
        assert torch.allclose(ours.loss[near], eager.loss[near], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", SETTINGS)
def test_a_sample_does_not_see_its_batch(norm: str, device: torch.device) -> None:
    model = made((64,), (50, 33), 7, device)
    x, y = points(4500, (64,), 7, device)  # enough for the largest blocks
    eps, alpha = SETTINGS[norm]
    attack = PGD(compiled_from(model, x), eps, alpha, 5, norm=norm, random_start=False)
    whole = attack(x, y)
    for part in (slice(0, 1), slice(7, 29), slice(4401, 4500)):
        assert torch.equal(attack(x[part], y[part]), whole[part])


def test_a_graph_attacks_the_refreshed_network(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a CUDA device")
    model = made((64,), (50,), 7, device)
    x, y = points(20, (64,), 7, device)
    compiled = compiled_from(model, x)

    def attack(x_adv: Tensor) -> Tensor:
        compiled.pgd(x_adv, x, y, "ce", None, None, 5, 0.01, 0.05, "Linf", (0.0, 1.0), "exact")
        return x_adv

    attack(x.clone())
    x_adv, graph = x.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attack(x_adv)
    with torch.no_grad():
        for p in model.parameters():
            p.neg_()
    compiled.refresh()
    x_adv.copy_(x)
    graph.replay()
    assert torch.equal(x_adv, attack(x.clone()))
