"""Captured and compiled networks compute what the model computes, gradients included, and refuse by name."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastrobust as fr
from fastrobust import _backend
from fastrobust.network import CaptureError, Compiled, capture, compile
from fastrobust.network.trust import compiled_for, work_of

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
        paths.append(compiled.gradient(x, y))
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


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "cnn7", "resnet18", "preact_resnet18"])
def test_every_model_of_the_library(name: str) -> None:
    torch.manual_seed(0)
    model = shaken(fr.models.create(name, (3, 32, 32), 10, 8))
    x, y = torch.rand(19, 3, 32, 32), torch.randint(10, (19,))
    compiled = compile(model, x)
    assert (compiled.engine is not None) == (_backend.plain is not None), compiled.explain()
    assert_same(compiled, model, x, y)


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


@native
def test_batches_and_threads_do_not_change_a_bit() -> None:
    model = shaken(fr.models.small_cnn(1, 4, 12, 5))
    x, y = torch.rand(41, 1, 12, 12), torch.randint(5, (41,))
    compiled = compile(model, x)
    whole = compiled.gradient(x, y)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = compiled.gradient(x, y)
    finally:
        torch.set_num_threads(threads)
    parts = [compiled.gradient(x[i : i + 7].clone(), y[i : i + 7].clone()) for i in range(0, 41, 7)]
    for k in range(2):
        assert torch.equal(whole[k], one[k])
        assert torch.equal(whole[k], torch.cat([p[k] for p in parts]))


def test_parameters_are_read_again() -> None:
    model = shaken(fr.models.small_cnn(1, 4, 12, 5))
    x = torch.rand(3, 1, 12, 12)
    compiled, frozen = compile(model, x), compile(model, x, frozen=True)
    before = compiled(x)
    with torch.no_grad():
        next(model.parameters()).data.mul_(1.5)  # does not change Tensor._version
        model.get_buffer("1.running_mean").add_(0.3)
    assert not torch.allclose(before, compiled(x))
    assert torch.allclose(compiled(x), model(x), atol=1e-5)
    assert torch.equal(frozen(x), before)
    frozen.refresh()
    assert torch.allclose(frozen(x), model(x), atol=1e-5)


def test_the_model_is_left_alone() -> None:
    model = fr.models.small_cnn(1, 4, 12, 5).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    compile(model, torch.rand(2, 1, 12, 12))(torch.rand(2, 1, 12, 12))
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_weights_that_are_computed() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(12, 9)), nn.ReLU(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(9, 4)),
    ).eval()  # fmt: skip
    x, y = torch.rand(5, 12), torch.randint(4, (5,))
    assert_same(compile(model, x), model, x, y)


class Clones(nn.Module):
    """A copy that is written to, beside the original."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.line(x)
        out: Tensor = self.line(h.clone().relu_() + h)
        return out


class Counts(nn.Module):
    """Writes to a buffer in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        out: Tensor = self.line(x) + self.calls
        return out


class Whole(nn.Module):
    """A scale that is no float32."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 3)
        self.register_buffer("scale", torch.tensor([2, 3, 4]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(x) * self.scale
        return out


class Broadcast(nn.Module):
    """(batch, 6, 1, 1) plus (6,) is (batch, 6, 1, 6): shapes that look alike to an engine of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.shift = nn.Linear(36, 3), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line((x[:, :, None, None] + self.shift).flatten(1))
        return out


@pytest.mark.parametrize("kind", [Clones, Whole, Broadcast])
def test_networks_that_look_simpler_than_they_are(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    x = torch.randn(5, 6)
    assert_same(compile(model, x), model, x, torch.randint(3, (5,)))
    assert compiled_for(model, x)[0] is not None


def test_a_network_that_writes_to_a_buffer_is_refused() -> None:
    model = Counts().eval()
    with pytest.raises(CaptureError, match="writes to"):
        compile(model, torch.rand(2, 6))
    before = model.calls.clone()
    assert compiled_for(model, torch.rand(2, 6))[0] is None
    assert torch.equal(before, model.calls)


def test_parameters_of_another_kind_are_captured_anew() -> None:
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    x = torch.rand(4, 6)
    kept = compile(model, x)
    assert compiled_for(model, x)[0] is not None
    model[0].weight, model[0].bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4))
    with pytest.raises(ValueError, match="refresh: a parameter now gives"):
        kept.refresh()
    compiled, reason = compiled_for(model, x)
    assert compiled is not None, reason
    assert torch.allclose(compiled(x), model(x), atol=1e-6)
    model.double()  # the same modules, memory of another width: nothing may be read as float32
    with pytest.raises(ValueError, match="float64"):
        compiled.refresh()


@pytest.mark.parametrize("register", ["register_full_backward_pre_hook", "register_full_backward_hook"])
def test_hooks_are_noticed_after_the_capture(register: str) -> None:
    model = Odd("").eval()
    x = torch.rand(4, 6)
    assert compiled_for(model, x)[0] is not None
    getattr(model.line, register)(lambda *_: None)
    assert "hooks" in compiled_for(model, x)[1]
    plain = Odd("").eval()
    handle = getattr(nn.modules.module, register.replace("register", "register_module"))(lambda *_: None)
    try:
        assert "global" in compiled_for(plain, x)[1]
    finally:
        handle.remove()
    assert compiled_for(plain, x)[0] is not None


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


class Doubtful(nn.Module):
    """Says something else than its capture at points near the boundary, as rounding may."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 2)
        self.doubts = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(x)
        return out + torch.tensor([3.0, 0.0]) if self.doubts else out


@native
@pytest.mark.parametrize("early_stop", [True, False])
def test_success_is_the_models_own_word(early_stop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Doubtful().eval()
    x, y = torch.rand(40, 8), torch.zeros(40, dtype=torch.int64)
    copy = compile(model, x)
    model.doubts = True
    monkeypatch.setattr("fastrobust.network.trust.compiled_for", lambda *_: (copy, ""))
    result = fr.attacks.PGD(model, 0.2, 0.05, 10, compile=True, early_stop=early_stop).run(x, y)
    logits = model(result.x_adv)
    assert torch.equal(result.success, logits.argmax(1) != y)
    assert torch.allclose(result.loss, F.cross_entropy(logits, y, reduction="none"), atol=1e-5)
    assert bool((result.steps[~result.success] == 10).all())  # nobody is let go before the model agrees


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


@pytest.mark.parametrize(
    ("kind", "words"),
    [("custom", "Step"), ("random", "random"), ("branch", "cannot be exported"), ("pair", "one tensor")],
)
def test_what_is_not_provably_the_users_runs_eagerly(kind: str, words: str) -> None:
    compiled, reason = compiled_for(Odd(kind).eval(), torch.rand(4, 6))
    assert compiled is None
    assert words in reason


def test_hooks_run_eagerly() -> None:
    model = Odd("").eval()
    x = torch.rand(4, 6)
    assert compiled_for(model, x)[0] is not None
    model.line.register_full_backward_hook(lambda *_: None)
    compiled, reason = compiled_for(model, x)  # noticed although the capture was cached
    assert compiled is None
    assert "hooks" in reason


def test_changed_modules_are_captured_anew() -> None:
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    x = torch.rand(4, 6)
    first = compiled_for(model, x)[0]
    model.append(nn.ReLU())
    second = compiled_for(model, x)[0]
    assert first is not None
    assert second is not None
    assert torch.allclose(second(x), model(x), atol=1e-6)


@native
def test_an_op_without_a_layer_is_named_with_its_place() -> None:
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cos(self.line(x))

    model = Cosine().eval()
    compiled = compile(model, torch.rand(2, 6))
    assert "aten.cos" in compiled.reason
    assert "test_network.py" in compiled.reason
    assert "lowered graph" in compiled.explain()
    assert torch.allclose(compiled(torch.ones(2, 6)), model(torch.ones(2, 6)))


def test_errors_name_the_argument() -> None:
    with pytest.raises(TypeError, match=r"capture: model must be a torch.nn.Module, got function"):
        capture(lambda x: x, torch.rand(1, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="capture: example must be a tensor"):
        capture(nn.Linear(2, 2), [1.0])  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="must return one tensor"):
        capture(Odd("pair"), torch.rand(2, 6))


@native
@pytest.mark.parametrize(("norm", "eps", "alpha"), [("Linf", 0.05, 0.02), ("L2", 0.7, 0.2), ("L1", 5.0, 2.0)])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"targeted": True},
        {"loss": "dlr"},
        {"loss": "margin", "restarts": 2},
        {"loss": "dlr", "targeted": True},
        {"early_stop": True},
        {"early_stop": 2},
        {"early_stop": True, "restarts": 3, "targeted": True},
    ],
)
def test_pgd_in_the_engine_is_pgd(norm: str, eps: float, alpha: float, keys: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = shaken(fr.models.small_cnn(1, 4, 12, 5))
    x, y = torch.rand(53, 1, 12, 12), torch.randint(5, (53,))
    plain = fr.attacks.PGD(model, eps, alpha, 6, norm=norm, compile=False, **keys).run(x, y)
    ours = fr.attacks.PGD(model, eps, alpha, 6, norm=norm, compile=True, **keys).run(x, y)
    off = ((plain.x_adv - ours.x_adv).abs() > 1e-4).float().mean()
    assert float(off) <= 0.02  # a sign may flip on rounding
    assert torch.allclose(plain.loss, ours.loss, rtol=1e-2, atol=1e-3)
    assert torch.equal(plain.steps, ours.steps)
    assert torch.equal(plain.bad_gradients, ours.bad_gradients)
    order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
    assert float((ours.x_adv.double() - x.double()).flatten(1).norm(order, dim=1).max()) <= eps
    assert float(ours.x_adv.min()) >= 0
    assert float(ours.x_adv.max()) <= 1


def test_a_compiled_network_is_a_model_to_attack() -> None:
    model = shaken(fr.models.small_cnn(1, 4, 12, 5))
    x, y = torch.rand(5, 1, 12, 12), torch.randint(5, (5,))
    attack = fr.attacks.PGD(compile(model, x), 0.1, 0.03, 5)
    assert "no call yet" in attack.explain()
    first = attack(x, y)
    assert "Sequential" in attack.explain()
    eager = fr.attacks.PGD(model, 0.1, 0.03, 5)
    eager(x, y)
    assert "little work" in eager.explain()
    assert torch.equal(first, attack(x, y))
    with torch.no_grad():
        next(model.parameters()).neg_()
    assert not torch.equal(first, attack(x, y))  # stale weights would give the same points
    early = fr.attacks.PGD(compile(model, x), 0.1, 0.03, 5, early_stop=True).run(x, y)
    assert bool((early.steps <= 5).all())


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


def test_the_cache_keeps_no_model_alive() -> None:
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    gone = weakref.ref(model)
    assert compiled_for(model, torch.rand(4, 6))[0] is not None
    del model
    gc.collect()
    assert gone() is None


def test_a_model_that_keeps_changing_is_not_captured_for_ever() -> None:
    model = Odd("").eval()
    x = torch.rand(4, 6)
    for k in range(8):
        model.label = object()  # type: ignore[assignment]
        compiled, reason = compiled_for(model, x)
        assert (compiled is None) == (k >= 4), reason
    assert "change from call to call" in reason


def test_looking_at_a_model_draws_no_random_numbers() -> None:
    model, noisy, x = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3)).eval(), Odd("random").eval(), torch.rand(4, 6)
    state = torch.random.get_rng_state()
    assert work_of(model, x) == 2 * (6 * 3 + 3 * 3)
    work_of(noisy, x)
    assert compiled_for(model, x)[0] is not None
    assert compiled_for(noisy, x)[0] is None
    assert torch.equal(state, torch.random.get_rng_state())
