"""The engine computes what the model computes, gradients included."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_nets import Layers, Mixed, assert_same, native, shaken
from torch import Tensor, nn

import fastrobust as fr
from fastrobust import _backend
from fastrobust.network import compile


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "cnn7", "resnet18", "preact_resnet18"])
def test_every_model_of_the_library(name: str) -> None:
    torch.manual_seed(0)
    model = shaken(fr.models.create(name, (3, 32, 32), 10, 8))
    x, y = torch.rand(19, 3, 32, 32), torch.randint(10, (19,))
    compiled = compile(model, x)
    assert (compiled.engine is not None) == (_backend.plain is not None), compiled.explain()
    assert_same(compiled, model, x, y)


@native
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_networks(data: Any) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    channels, size = data.draw(st.sampled_from([1, 2, 3, 4])), data.draw(st.integers(4, 11))
    model = shaken(Layers(data.draw, channels, size))
    x = torch.randn(data.draw(st.integers(1, 20)), channels, size, size)
    y = torch.randint(model.last.out_features, (len(x),))  # type: ignore[union-attr, arg-type]
    compiled = compile(model, x)
    assert compiled.engine is not None, compiled.explain()
    assert_same(compiled, model, x, y)


ACTIVATIONS = [
    nn.LeakyReLU(0.1), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.Softplus(),
    nn.Softplus(2.0, 1.0), nn.ELU(), nn.ELU(0.5), nn.Hardtanh(-0.5, 2.0), nn.ReLU6(), nn.ReLU(inplace=True),
    nn.LeakyReLU(inplace=True), nn.SiLU(inplace=True),
]  # fmt: skip


@native
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(activation: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), activation, nn.Flatten(), nn.Linear(5 * 16, 4)).eval()
    x, y = 8 * torch.randn(21, 2, 6, 6), torch.randint(4, (21,))
    compiled = compile(model, x)
    assert compiled.engine is not None, compiled.explain()
    assert_same(compiled, model, x, y)


@native
def test_layers_that_are_not_a_chain() -> None:
    torch.manual_seed(0)
    model, x, y = Mixed().eval(), torch.randn(21, 2, 6, 6), torch.randint(3, (21,))
    compiled = compile(model, x)
    assert compiled.engine is not None, compiled.explain()
    assert_same(compiled, model, x, y)


@native
def test_one_dimensional_convolutions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 6, 5, stride=2, padding=3, dilation=2), nn.BatchNorm1d(6), nn.ReLU(),
        nn.Conv1d(6, 4, 3, padding="same", groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 8, 3),
    )  # fmt: skip
    x, y = torch.randn(18, 3, 17), torch.randint(3, (18,))
    compiled = compile(shaken(model), x)
    assert compiled.engine is not None, compiled.explain()
    assert_same(compiled, model, x, y)


@native
def test_what_overwrites_others_memory_is_left_to_pytorch() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.line(x)
            flat = h.view(-1, 6)
            flat.relu_()
            out: Tensor = self.line(h)
            return out

    model, x, y = Overwrites().eval(), torch.randn(5, 6), torch.randint(6, (5,))
    compiled = compile(model, x)
    assert compiled.engine is None, compiled.explain(verbose=True)
    assert_same(compiled, model, x, y)


class Joined(nn.Module):
    """Channels put together, and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 9, 3, padding=1)
        self.last = nn.Linear(25 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        h = torch.cat([h, self.second(h * h)], 1)
        out: Tensor = self.last(F.avg_pool2d(h, 2).flatten(1))
        return out


@native
@pytest.mark.parametrize(
    "build",
    [
        lambda: fr.models.small_cnn(1, 4, 12, 5),
        lambda: fr.models.mlp((1, 12, 12), (70, 35), 5),
        lambda: fr.models.preact_resnet18(1, 5, 6),
        lambda: nn.Sequential(
            fr.models.Normalize((0.3,), (0.2,)), nn.Conv2d(1, 24, 3, 2, 2, 2), nn.SiLU(), nn.BatchNorm2d(24),
            nn.Upsample(scale_factor=2), nn.Conv2d(24, 18, 5, padding="same"), nn.MaxPool2d(3, 2, 1), nn.Flatten(),
            nn.Linear(18 * 36, 20), nn.GELU(), nn.Linear(20, 5),
        ),
        lambda: Joined(),
    ],
    ids=["small_cnn", "mlp", "preact_resnet18", "layers of all kinds", "joined"],
)  # fmt: skip
def test_batches_and_threads_do_not_change_a_bit(build: Callable[[], nn.Module]) -> None:
    """Few points are served one by one, their channels as lanes; many in blocks."""
    torch.manual_seed(0)
    model = shaken(build())
    x, y = torch.rand(41, 1, 12, 12), torch.randint(5, (41,))
    compiled = compile(model, x)
    assert compiled.engine.singles
    whole = compiled.gradient(x, y)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = compiled.gradient(x, y)
    finally:
        torch.set_num_threads(threads)
    for k in range(4):
        assert torch.equal(whole[k], one[k])
    for size in (1, 7, 20):
        parts = [compiled.gradient(x[i : i + size].clone(), y[i : i + size].clone()) for i in range(0, 41, size)]
        for k in range(4):
            assert torch.equal(whole[k], torch.cat([p[k] for p in parts]))


@native
def test_minus_infinity_and_small_numbers() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))  # type: ignore[operator, union-attr]
    x = torch.tensor([[-math.inf, 1.0, 2.0]]).nan_to_num(neginf=-3e38) * 10  # overflows to -inf in both
    assert torch.equal(compile(model, x)(x), model(x)) or bool(model(x).isnan().any())
    for small in (nn.Tanh(), nn.ELU()):
        net = nn.Sequential(nn.Linear(1, 1, bias=False), small, nn.Linear(1, 1, bias=False)).eval()
        with torch.no_grad():
            net[0].weight.fill_(1.0)  # type: ignore[operator, union-attr]
            net[2].weight.fill_(1.0)  # type: ignore[operator, union-attr]
        points = -torch.logspace(-6, 1, 64)[:, None]
        exact = net.double()(points.double())
        assert torch.allclose(compile(net.float(), points)(points).double(), exact, rtol=2e-6)


@native
def test_a_tape_that_makes_no_sense_is_refused() -> None:
    from fastrobust._C import Engine

    good: dict[str, Any] = {"kind": 0, "in": 0, "weight": 0}
    Engine([(4, 1, 1), (3, 1, 1)], [good], [12])
    bad: list[tuple[Any, Any, Any]] = [
        ([(4, 1, 1), (3, 1, 1)], [{**good, "in": 1}], [12]),
        ([(4, 1, 1), (3, 1, 1)], [{**good, "weight": 1}], [12]),
        ([(4, 1, 1), (3, 1, 1)], [good], [11]),
        ([(4, 1, 1), (3, 2, 1)], [good], [12]),
        ([(4, 1, 1), (3, 1, 1)], [{**good, "groups": 2}], [6]),
        ([(4, 1, 1), (3, 1, 1)], [{**good, "stride": (0, 1)}], [12]),
        ([(4, 1, 1), (3, 1, 1)], [{**good, "kind": 9}], [12]),
        ([(4, 1, 1)], [], []),
    ]
    for values, ops, tensors in bad:
        with pytest.raises(ValueError, match="engine: "):
            Engine(values, ops, tensors)


class Moves(nn.Module):
    """Everything that only moves elements, a pixel shuffle and a channel shuffle by hand among it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(F.pixel_unshuffle(x, 2)))
        h = h.reshape(-1, 2, 4, 3, 3).transpose(1, 2).reshape(x.shape[0], 8, 3, 3) + h
        h = torch.relu(F.pixel_shuffle(h, 2).view(-1, 2, 36)) - h.flip(1).reshape(-1, 2, 36)
        h = h.permute(0, 2, 1).unflatten(1, (6, 6)).permute(0, 3, 1, 2)
        h = F.pad(h, (1, 0, 0, 2), mode="replicate")[:, :, 1:, :-1].roll(1, 2)[:, :, :6] * h.squeeze(1)
        out: Tensor = self.last(h.flatten(1))
        return out


@native
def test_moves_of_elements() -> None:
    torch.manual_seed(0)
    model, x, y = Moves().eval(), torch.randn(21, 1, 6, 6), torch.randint(3, (21,))
    compiled = compile(model, x)
    assert compiled.engine is not None, compiled.explain()
    assert_same(compiled, model, x, y)


class Aliased(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        return torch.relu(h.reshape(-1, 4)) - h.view(-1, 4)


class Shuffles(nn.Module):
    """Mixes samples, or puts numbers in that look like elements."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "batch":
            return (x * 2).flip(0)
        if self.how == "reshape":
            return (x * 2).t().reshape(-1, 4)
        return F.pad(x * 2, (1, 0), value=3.0)


@native
@pytest.mark.parametrize("how", ["batch", "reshape", "constant"])
def test_moves_across_samples_are_refused(how: str) -> None:
    compiled = compile(Shuffles(how), torch.rand(2, 4))
    assert compiled.engine is None
    assert "mixes samples" in compiled.reason


@native
def test_two_names_of_one_value() -> None:
    x, y = torch.randn(5, 4), torch.randint(4, (5,))
    compiled = compile(Aliased(), x)
    assert compiled.engine is not None, compiled.explain()
    assert_same(compiled, Aliased(), x, y)


@pytest.mark.parametrize("tie", ["tied", "weight_norm", "spectral_norm", "batch of one"])
def test_weights_with_two_uses_and_an_example_of_one(tie: str) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    if tie == "tied":
        model[2].weight = model[0].weight
    if tie in ("weight_norm", "spectral_norm"):
        getattr(nn.utils.parametrizations, tie)(model[2])
    x, y = torch.randn(1 if tie == "batch of one" else 7, 6), torch.randint(3, (9,))
    compiled = compile(model.eval(), x)
    assert (compiled.engine is not None) == (_backend.plain is not None), compiled.explain()
    x = torch.randn(9, 6)
    assert_same(compiled, model, x, y)
    with torch.no_grad():
        model[0].weight.mul_(-1.5)
    compiled.refresh()
    assert_same(compiled, model, x, y)


@pytest.mark.parametrize(
    "build", [lambda: fr.models.small_cnn(1, 4, 12, 5), lambda: fr.models.mlp((1, 12, 12), (9,), 5)]
)
def test_whatever_changes_is_seen_by_the_next_call(build: Callable[[], nn.Sequential]) -> None:
    torch.manual_seed(0)
    model, x = build(), torch.rand(3, 1, 12, 12)
    compiled = compile(shaken(model), x)
    last = model[-1]

    def step() -> None:
        torch.optim.Adam(model.parameters(), 0.01, fused=True).step()

    def moved() -> None:
        for buffer in model.buffers():
            buffer.add_(1)

    def replaced() -> None:
        last.bias = nn.Parameter(torch.arange(5.0))

    model(x).sum().backward()
    changes: list[Callable[[], object]] = [step, moved, replaced, lambda: last.weight.data.mul_(1.5)]
    for change in changes:
        for _ in range(2):
            with torch.no_grad():
                change()
            assert torch.allclose(compiled(x), model(x), rtol=1e-4, atol=1e-5)
            assert torch.equal(compiled(x), compiled(x))
