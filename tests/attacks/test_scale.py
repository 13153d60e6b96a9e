"""Memory that runs out, and 16-bit passes: the answer is as good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attacks.nets import cnn, images, predictions
from attacks.table import MINIMUM, WITHIN
from torch import Tensor, nn

import fastrobust as fr

EPS = {"Linf": 8 / 255, "L2": 0.6, "L1": 6.3}
MAKE: dict[str, Callable[..., Any]] = {
    **{name: lambda model, case=case, **k: case.make(model, EPS[case.norm], **k) for name, case in WITHIN.items()},
    **{name: lambda model, case=case, **k: case.make(model, **case.quick, **k) for name, case in MINIMUM.items()},
}


class Small(nn.Module):
    """An MLP in float64, whose results do not depend on the batch beyond 1e-12, and memory for so many points."""

    def __init__(self, room: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 10)).double()
        self.room, self.largest = room, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError(f"no room for {len(x)}")
        self.largest = max(self.largest, len(x))
        out: Tensor = self.layers(x)
        return out


def task(count: int) -> tuple[Tensor, Tensor]:
    x = images(count).double()
    return x, predictions(Small(count), x)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_out_of_memory_the_batch_is_halved_and_the_run_goes_on(make: Callable[..., Any]) -> None:
    x, y = task(19)
    wide, tight = Small(1000), Small(6)
    expected = make(wide, compile=False).run(x, y)
    found = make(tight, compile=False).run(x, y)
    assert 0 < tight.largest <= 6
    assert torch.equal(found.success, expected.success)
    assert torch.allclose(found.x_adv, expected.x_adv, atol=1e-6)
    assert torch.equal(found.steps, expected.steps)
    with pytest.raises(torch.OutOfMemoryError):
        make(Small(0), compile=False).run(x, y)


@pytest.mark.parametrize("keys", [{}, {"early_stop": True}, {"restarts": 3}, {"loss": "kl"}])
def test_pgd_out_of_memory(keys: dict[str, Any]) -> None:
    x, y = task(19)
    eps = torch.linspace(0.01, 0.05, 19)
    tight = Small(19 if keys.get("loss") == "kl" else 6)
    attack = [fr.attacks.PGD(m, eps, 0.01, 5, compile=False, **keys) for m in (Small(1000), tight)]
    expected, found = (a.run(x, y) for a in attack)
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-6)


def test_batch_statistics_are_not_taken_of_half_a_batch() -> None:
    x, y = task(8)
    with pytest.raises(torch.OutOfMemoryError):
        fr.attacks.PGD(Small(6), compile=False, mode="train")(x, y)


@pytest.mark.parametrize("name", ["APGD ce Linf", "FMN L2", "FABT Linf", "MIFGSM L2", "DDN"])
def test_16_bit_passes_are_verified_in_float32(name: str) -> None:
    x, model = images(24), Small(1000).float()
    y, seen = predictions(model, x), set()
    model.layers[3].register_forward_hook(lambda module, inputs, out: seen.add(out.dtype))
    full, half = (MAKE[name](model, autocast=kind).run(x, y) for kind in (None, torch.bfloat16))
    assert torch.bfloat16 in seen
    assert torch.equal(half.success, predictions(model, half.x_adv) != y)
    assert abs(int(half.success.sum()) - int(full.success.sum())) <= 2


def test_square_within_autoattack_keeps_full_precision() -> None:
    """It looks for small gains of the margin, which 16 bits hide."""
    suite = fr.attacks.AutoAttack(Small(9), verbose=False, autocast=torch.bfloat16)
    precision = {name: attack._victim.autocast for name, attack in suite.attacks.items()}
    assert precision.pop("square") is None
    assert set(precision.values()) == {torch.bfloat16}


def test_a_point_that_fools_16_bits_only_is_attacked_again_in_full() -> None:
    """In bfloat16 this model errs wherever it is asked, so that every step there would stop at once."""

    class Torn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = Small(1000).float().layers

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.layers(x)
            return -logits if logits.dtype == torch.bfloat16 else logits

    x, model = images(24), Torn()
    y = predictions(model, x)
    found, full = (MAKE["APGD ce Linf"](model, autocast=kind).run(x, y) for kind in (torch.bfloat16, None))
    assert torch.equal(found.success, predictions(model, found.x_adv) != y)
    assert int(found.success.sum()) >= int(full.success.sum()) - 1 > 0


@pytest.mark.skipif(fr._backend.plain is None, reason="in PyTorch's layers one batch is served at a time")
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_the_number_of_processors_does_not_matter(make: Callable[..., Any]) -> None:
    """Each serves a batch of its own; the engine's answers do not depend on that, bit for bit."""
    model, x = cnn(), images(51)
    y = predictions(model, x)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append(make(model, compile=True).run(x, y))
        finally:
            torch.set_num_threads(1)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
