"""A captured network computes what the model computes, with the model's parameters of the moment, or is refused."""

from __future__ import annotations

import pytest
import torch
from sample_nets import Odd, assert_same, native, shaken
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.network import CaptureError, capture, compile
from fastrobust.network.trust import compiled_for


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
    assert "test_capture.py" in compiled.reason
    assert "lowered graph" in compiled.explain()
    assert torch.allclose(compiled(torch.ones(2, 6)), model(torch.ones(2, 6)))


def test_errors_name_the_argument() -> None:
    with pytest.raises(TypeError, match=r"capture: model must be a torch.nn.Module, got function"):
        capture(lambda x: x, torch.rand(1, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="capture: example must be a tensor"):
        capture(nn.Linear(2, 2), [1.0])  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="must return one tensor"):
        capture(Odd("pair"), torch.rand(2, 6))


def test_attributes_stay_the_same_objects() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.scales, self.named, self.calls = nn.Linear(3, 2), [2.0], {"shift": 1.0}, 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x.shape
            found: Tensor = self.line(x) * self.scales[0] + self.named["shift"]
            return found

    model = Keeps()
    held = dict(vars(model))
    capture(model, torch.rand(2, 3))
    assert vars(model).keys() == held.keys()
    assert all(value is held[name] for name, value in vars(model).items())
