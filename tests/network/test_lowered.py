"""Networks that the engine lacks: the lowered graph through PyTorch, its layout, and its steps as one recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sample_nets import assert_same, shaken
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.attacks import _graph
from fastrobust.network import Compiled, compile


class Cosine(nn.Module):
    """Something that the engine has no layer for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(x)


class Transformer(nn.Module):
    """Patches, one block of attention and a perceptron, mean over the patches."""

    def __init__(self, fused: bool, width: int = 12, heads: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.fused, self.heads = fused, heads
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.before, self.between, self.after = (nn.LayerNorm(width) for _ in range(3))
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.body = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = h + self.out(self.attend(self.before(h)))
        h = h + self.body(self.between(h))
        out: Tensor = self.last(self.after(h).mean(1))
        return out

    def attend(self, h: Tensor) -> Tensor:
        batch, places, width = h.shape
        q, k, v = self.mix(h).view(batch, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-2, -1) / k.shape[-1] ** 0.5, -1) @ v
        return mixed.transpose(1, 2).reshape(batch, places, width)


class Places(nn.Module):
    """Operations that depend on how tensors lie in memory, or write to what others read."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Linear(6 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.kind == "view":
            h = F.relu(self.second(F.relu(h, inplace=True)) + h, inplace=True)
            h = h.view(h.shape[0], -1)
        elif self.kind == "contiguous":
            h = h.permute(0, 2, 3, 1).contiguous().view(h.shape[0], -1)
        elif self.kind == "written":
            flat = h.reshape(h.shape[0], -1)
            flat.mul_(2)  # h as well
            h = flat + h.reshape(h.shape[0], -1)
        return torch.cos(self.last(h))


def points(count: int, sample: tuple[int, ...], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    x, y = torch.rand(count, *sample), torch.randint(4, (count,))
    return x.to(device), y.to(device)


@pytest.mark.parametrize(("fused", "words"), [(True, "scaled_dot_product_attention"), (False, "aten.")])
def test_a_transformer_runs_lowered(fused: bool, words: str) -> None:
    torch.manual_seed(0)
    model = Transformer(fused).eval()
    x, y = points(9, (3, 16, 16))
    compiled = compile(model, x)
    assert compiled.engine is None
    assert "aten." in compiled.reason
    assert "test_lowered.py" in compiled.reason or "no native" in compiled.reason
    assert words in compiled.explain(verbose=True)
    assert_same(compiled, model, x, y)
    for norm, eps, alpha in (("Linf", 0.05, 0.01), ("L2", 0.7, 0.2)):
        plain, ours = (fr.attacks.PGD(model, eps, alpha, 5, norm=norm, compile=c).run(x, y) for c in (False, True))
        assert float(((plain.x_adv - ours.x_adv).abs() > 1e-4).float().mean()) <= 0.02  # a sign may flip on rounding
        assert torch.allclose(plain.loss, ours.loss, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("kind", "last"), [("view", True), ("contiguous", True), ("written", False)])
def test_channels_last_changes_no_value(kind: str, last: bool) -> None:
    torch.manual_seed(0)
    model = Places(kind).eval()
    x, y = points(5, (3, 8, 8))
    compiled = compile(model, x)
    assert ("channels_last" in compiled.explain()) == last
    assert_same(compiled, model, x, y)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert torch.allclose(compiled(x), model(x), atol=1e-5)


def test_layout_is_a_rule_of_the_network() -> None:
    for channels, dtype, last in ((3, torch.float32, True), (1, torch.float32, False), (3, torch.float64, False)):
        model = shaken(nn.Sequential(fr.models.small_cnn(channels, 4, 12, 4), Cosine())).to(dtype)
        x = torch.rand(3, channels, 12, 12, dtype=dtype)
        assert ("channels_last" in compile(model, x).explain()) == last


# --- one recording of all steps; on the CPU a recorder that calls the loop itself ----------------------------------


def net(device: torch.device | str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return shaken(nn.Sequential(fr.models.small_cnn(3, 4, 8, 4), Cosine())).to(device)


def again(once: Callable[[], None], loop: Callable[[], None], device: torch.device) -> Callable[[], None]:
    once()
    return loop


def failing(once: Callable[[], None], loop: Callable[[], None], device: torch.device) -> Callable[[], None]:
    once()
    raise RuntimeError("operation not permitted when stream is capturing")


def test_recorded_steps_are_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    x, y = points(7, (3, 8, 8))
    each = torch.linspace(0.01, 0.05, 7)
    settings: list[dict[str, Any]] = [
        {"norm": "Linf", "eps": 0.05, "alpha": 0.01},
        {"norm": "Linf", "eps": each, "alpha": each / 4},
        {"norm": "L2", "eps": 0.7, "alpha": 0.2, "loss": "dlr"},
        {"norm": "L1", "eps": 5.0, "alpha": 2.0, "loss": "kl"},
        {"norm": "Linf", "eps": 0.05, "alpha": 0.01, "loss": "dlr", "targeted": True},
        {"norm": "L2", "eps": 0.7, "alpha": 0.2, "loss": "margin", "restarts": 3},
    ]
    for keys in settings:
        network = compile(model, x)
        plain = fr.attacks.PGD(network, steps=4, **keys).run(x, y)
        with monkeypatch.context() as patch:
            patch.setattr(_graph, "recorder", lambda device: again)
            attack = fr.attacks.PGD(network, steps=4, **keys)
            attack.run(x.flip(0), y.flip(0), index=torch.arange(7).flip(0))
            ours = attack.run(x, y)
            assert "CUDA graph" in attack.explain()
        for a, b in zip(plain, ours, strict=True):
            assert torch.equal(a, b), keys


def test_a_recording_sees_refreshed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graph, "recorder", lambda device: again)
    model = net()
    x, y = points(7, (3, 8, 8))
    network = compile(model, x)
    attack = fr.attacks.PGD(network, 0.05, 0.01, 4)
    first = [attack(x, y) for _ in range(3)]
    held = [w.data_ptr() for w in network._weights]
    with torch.no_grad():
        for p in model.parameters():
            p.neg_()
    model[0][0].weight = nn.Parameter(model[0][0].weight.detach().clone())  # other memory too
    second = attack(x, y)
    assert [w.data_ptr() for w in network._weights] == held
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[2], second)
    assert torch.equal(second, fr.attacks.PGD(compile(model, x), 0.05, 0.01, 4)(x, y))


def test_each_kind_has_a_recording_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[torch.device] = []

    def counting(once: Callable[[], None], loop: Callable[[], None], device: torch.device) -> Callable[[], None]:
        recorded.append(device)
        return again(once, loop, device)

    monkeypatch.setattr(_graph, "recorder", lambda device: counting)
    model = net()
    x, y = points(8, (3, 8, 8))
    network = compile(model, x)
    for _ in range(3):
        for rows in (slice(0, 8), slice(0, 3)):
            # Another object with the same settings is the same kind.
            ours = fr.attacks.PGD(network, 0.05, 0.01, 4)(x[rows], y[rows])
            assert torch.equal(ours, fr.attacks.PGD(network, 0.05, 0.01, 4, early_stop=4)(x[rows], y[rows]))
    assert len(recorded) == 2
    for k in range(9):
        fr.attacks.PGD(network, 0.05 + k / 100, 0.01, 4)(x, y)  # once each: nothing is recorded
    assert len(recorded) == 2
    assert len(_graph._known[network]) == _graph.MOST
    with pytest.raises(ValueError, match=r"y must be in 0 \.\. 3"):
        [fr.attacks.PGD(network, 0.1, 0.01, 4)(x, y + 4 * k) for k in (0, 0, 1)]


def test_what_cannot_be_recorded_runs_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graph, "recorder", lambda device: failing)
    x, y = points(7, (3, 8, 8))
    network = compile(net(), x)
    attack = fr.attacks.PGD(network, 0.05, 0.01, 4)
    first = attack(x, y)
    assert "from the second on" in attack.explain()
    assert torch.equal(first, attack(x, y))
    assert torch.equal(first, attack(x, y))
    assert "RuntimeError: operation not permitted" in attack.explain()
    keys: dict[str, dict[str, Any]] = {
        "early stop": {"early_stop": True},
        "a function": {"loss": lambda z, y: F.cross_entropy(z, y, reduction="none")},
        "tensors": {"box": (torch.zeros(3, 8, 8), 1.0)},
        "autocast": {"autocast": torch.bfloat16},
    }
    for words, key in keys.items():
        attack = fr.attacks.PGD(network, 0.05, 0.01, 4, **key)
        attack(x, y)
        assert words in attack.explain()


def test_a_cuda_graph_makes_the_same_steps(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a CUDA device")
    model = net(device)
    x, y = points(20, (3, 8, 8), device)
    network: Compiled = compile(model, x)
    for norm, eps, alpha in (("Linf", 0.05, 0.01), ("L2", 0.7, 0.2), ("L1", 5.0, 2.0)):
        attack = fr.attacks.PGD(network, eps, alpha, 5, norm=norm)
        plain = attack(x, y)
        for _ in range(2):
            assert torch.allclose(attack(x, y), plain, atol=1e-4)
            assert "all steps are one CUDA graph" in attack.explain()
        with torch.no_grad():
            for p in model.parameters():
                p.neg_()
        replayed = attack(x, y)
        assert torch.allclose(replayed, fr.attacks.PGD(compile(model, x), eps, alpha, 5, norm=norm)(x, y), atol=1e-4)
