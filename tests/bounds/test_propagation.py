"""Propagation for training: losses, gradients and running statistics of a hand-written chain; soundness; memory."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.bounds import Propagation


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.other = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.last = nn.Linear(6 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        h = F.silu(self.other(self.second(torch.relu(h))) - 0.5 * h)
        h = torch.cat([F.max_pool2d(h[:, :3], 3, 2, 1), F.avg_pool2d(h[:, 3:], 2)], 1)
        out: Tensor = self.last(F.avg_pool2d(h, 2).flatten(1))
        return out


def plain() -> nn.Sequential:
    return nn.Sequential(
        fr.models.Normalize((0.4, 0.5), (0.3, 0.2)), nn.Conv2d(2, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 6, 2, bias=False), nn.BatchNorm2d(6, affine=False), nn.LeakyReLU(0.1), nn.Flatten(),
        nn.Linear(6 * 9, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 4),
    )  # fmt: skip


def drawn(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for value in (module.weight, module.bias, module.running_mean):
                if value is not None:
                    value.data.normal_()
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2)
    return model.double()


def chain(model: nn.Sequential, x: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The classes' logits at x, and the box before the last layer, written down layer by layer."""
    layers = list(model)
    for module in layers[:-1]:
        centre, radius = (lower + upper) / 2, (upper - lower) / 2
        if isinstance(module, nn.Linear):
            x, centre, radius = module(x), module(centre), F.linear(radius, module.weight.abs())
        elif isinstance(module, nn.Conv2d):
            size = module.weight.abs()
            radius = F.conv2d(radius, size, None, module.stride, module.padding)
            x, centre = module(x), module(centre)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            dims, shape = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
            assert module.running_mean is not None
            assert module.running_var is not None
            mean, var = module.running_mean, module.running_var
            if module.training:
                mean, var = x.mean(dims), x.var(dims, correction=0)
            scale = (var + module.eps).rsqrt() if module.weight is None else module.weight / (var + module.eps).sqrt()
            shift = -mean * scale if module.bias is None else module.bias - mean * scale
            module(x.detach())  # moves the running statistics
            x, centre = (v * scale.view(shape) + shift.view(shape) for v in (x, centre))
            radius = radius * scale.abs().view(shape)
        else:
            x, lower, upper = module(x), module(lower), module(upper)
            continue
        lower, upper = centre - radius, centre + radius
    return layers[-1](x), lower, upper


@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_chain_by_hand(training: bool) -> None:
    model = drawn(plain()).train(training)
    other = copy.deepcopy(model)
    assert isinstance(other, nn.Sequential)
    x, y = torch.rand(6, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    lower, upper = x - 0.03, x + 0.05
    found = Propagation(model, x)(x, lower, upper)
    logits, low, high = chain(other, x, lower, upper)
    head = other[-1]
    apart = head.weight[y][:, None] - head.weight
    middle, reach = (low + high)[:, None] / 2, (high - low)[:, None] / 2
    margins = (apart * middle).sum(2) - (apart.abs() * reach).sum(2) + head.bias[y][:, None] - head.bias
    assert torch.allclose(found.logits, logits, rtol=1e-12)
    assert torch.allclose(found.margins(y), margins, rtol=1e-11)
    loss = F.cross_entropy(found.logits, y) + found.cross_entropy(y).mean()
    expected = F.cross_entropy(logits, y) + F.cross_entropy(-margins, y)
    mine = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(expected, list(other.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), mine, theirs, strict=True):
        # A bias before batch norm has no effect in training.
        assert torch.allclose(torch.zeros_like(b) if a is None else a, b, rtol=1e-9, atol=1e-12), name
    for (name, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [plain, Residual])
def test_gradients_by_finite_differences(make: type[nn.Module], training: bool) -> None:
    model = drawn(make()).train(training)
    x, y = torch.rand(3, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 3])
    if make is Residual:
        x = x[..., :8, :8]
    propagation = Propagation(model, x)
    names = [name for name, _ in model.named_parameters()]

    def loss(*values: Tensor) -> Tensor:
        with torch.no_grad():
            kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
        found = torch.func.functional_call(_Caller(model, propagation), dict(zip(names, values, strict=True)), (x, y))
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
        assert isinstance(found, Tensor)
        return found

    values = tuple(value.detach().clone().requires_grad_() for value in model.parameters())
    assert torch.autograd.gradcheck(loss, values, fast_mode=True)


class _Caller(nn.Module):
    """A model whose forward pass is the loss of its propagation, parameters being found by the model's own names."""

    def __init__(self, model: nn.Module, propagation: Propagation) -> None:
        super().__init__()
        self.__dict__["_modules"] = model._modules
        self.__dict__["_parameters"] = model._parameters
        self.model, self.propagation = [model], propagation

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found = self.propagation(x, x - 0.02, x + 0.03)
        return F.cross_entropy(found.logits, y) + found.cross_entropy(y).mean()


@pytest.mark.parametrize("make", [plain, Residual])
def test_boxes_hold_what_the_network_does(make: type[nn.Module]) -> None:
    model = drawn(make()).eval()
    x, y = torch.rand(5, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    found = Propagation(model, x)(x, x - 0.05, x + 0.05)
    assert torch.allclose(found.logits, model(x), rtol=1e-10)
    margins = found.margins(y)
    least = torch.full_like(margins, torch.inf)
    for k in range(200):
        step = 0.1 * torch.rand_like(x) - 0.05 if k % 2 else 0.05 * torch.randn_like(x).sign()
        z = model(x + step)
        least = torch.minimum(least, z.gather(1, y[:, None]) - z)
    assert (margins <= least + 1e-12).all()
    # And of no radius they are the network itself.
    point = Propagation(model, x)(x[:0], x, x).margins(y)
    z = model(x)
    assert torch.allclose(point, z.gather(1, y[:, None]) - z, atol=1e-10)


def test_what_the_backward_pass_keeps() -> None:
    model = fr.models.cnn7(1, 16, 10, 8).train()
    x, y = torch.rand(8, 1, 16, 16), torch.arange(8)
    propagation = Propagation(model, x)

    def kept(run: Callable[[], Tensor]) -> int:
        sizes: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            run()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for at, size in sizes.items() if at not in weights)

    def both() -> Tensor:
        found = propagation(x, x - 0.1, x + 0.1)
        return F.cross_entropy(found.logits, y) + found.cross_entropy(y).mean()

    assert kept(both) <= 2.5 * kept(lambda: F.cross_entropy(model(x), y))


def test_dropout_is_refused_in_training() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    x = torch.rand(2, 4)
    propagation = Propagation(model, x)
    model.eval()
    propagation(x, x, x)
    model.train()
    with pytest.raises(ValueError, match="'1' drops elements at random"):
        propagation(x, x, x)


@pytest.mark.parametrize("loss", ["cross_entropy", "crown_margins", "fused_cross_entropy"])
@pytest.mark.parametrize("build", [plain, Residual])
def test_mixed_precision_keeps_close(build: Callable[[], nn.Module], loss: str) -> None:
    model = drawn(build()).float().train()
    x, y = torch.rand(6, 2, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    propagation, parameters = Propagation(model, x), list(model.parameters())

    def run() -> tuple[Tensor, Tensor]:
        found = getattr(propagation(x, x - 0.02, x + 0.02, keep=True), loss)(y).float().mean()
        slopes = torch.autograd.grad(found, parameters, allow_unused=True, materialize_grads=True)
        return found, torch.cat([slope.flatten() for slope in slopes])

    exact, slope = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, rough_slope = run()
    assert torch.allclose(rough, exact, rtol=0.1)
    assert not torch.equal(rough, exact)
    assert F.cosine_similarity(slope, rough_slope, dim=0) > 0.9


@pytest.mark.parametrize("last", [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2)])
def test_crown_losses_have_gradients_through_average_pools(last: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), last, nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = torch.rand(2, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 1])
    model(x)
    weight = model[0].weight
    assert isinstance(weight, Tensor)

    def loss() -> Tensor:
        found = Propagation(model, x)(x, x - 0.01, x + 0.01, keep=True)
        return found.crown_margins(y).sum() + found.fused_cross_entropy(y).sum()

    (slope,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight += 1e-6 * direction
        high = loss()
        weight -= 2e-6 * direction
        low = loss()
    torch.testing.assert_close((slope * direction).sum(), (high - low) / 2e-6, rtol=1e-5, atol=1e-8)
