"""MI-FGSM: torchattacks' iterates, and the gathered gradient in closed form."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from attacks.nets import cnn, images, predictions
from torch import Tensor, nn

from fastrobust import L2
from fastrobust.attacks import MIFGSM


def torchattacks() -> Any:
    sys.modules.setdefault("torchvision", types.ModuleType("torchvision"))  # torchattacks imports it and needs it not
    return pytest.importorskip("torchattacks", reason="torchattacks is an optional peer ([bench] extra)")


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_iterates_are_those_of_torchattacks(decay: float, targeted: bool) -> None:
    peer, model, x = torchattacks(), cnn().double(), images(12).double()
    y = (predictions(model, x) + targeted) % 10
    for steps in (1, 2, 5, 10):
        theirs = peer.MIFGSM(model, eps=0.03, alpha=0.007, steps=steps, decay=decay)
        if targeted:
            theirs.set_mode_targeted_by_label(quiet=True)
        ours = MIFGSM(model, 0.03, 0.007, steps, decay, targeted=targeted)
        assert torch.allclose(ours(x, y), theirs(x, y), rtol=0, atol=1e-12)


def test_in_float32_hardly_a_coordinate_differs_from_torchattacks() -> None:
    peer, model, x = torchattacks(), cnn(), images(12)
    y = predictions(model, x)
    for keywords in ({"compile": False}, {"compile": True}):
        ours = MIFGSM(model, **keywords).run(x, y)
        theirs = peer.MIFGSM(model)(x, y)
        assert ((ours.x_adv - theirs).abs() > 1e-6).double().mean() <= 1e-3
        assert (ours.steps == 10).all()
        assert torch.equal(ours.success, predictions(model, ours.x_adv) != y)


class Path(nn.Module):
    """Two logits whose difference has the gradient (3, 1) at first and (-1, 3) beyond x_0 = 0.55."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, 0], x[:, 1]
        rise = torch.where(a < 0.55, 3 * a + b, 3 * 0.55 + b - (a - 0.55) + 3 * (b - 0.5))
        return torch.stack([torch.full_like(a, 100.0), rise], 1)


@pytest.mark.parametrize(("decay", "way"), [(1.0, 1.0), (0.1, -1.0)])
def test_the_gathered_gradient_decides_the_way(decay: float, way: float) -> None:
    """(3, 1) / 4 decayed plus (-1, 4) / 5: its first sign is that of 0.75 decay - 0.2."""
    x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    one, two = (MIFGSM(Path(), 0.3, 0.1, steps, decay, loss="margin", compile=False)(x, y) for steps in (1, 2))
    assert torch.allclose(one, torch.tensor([[0.6, 0.6]]))
    assert torch.allclose(two - one, torch.tensor([[0.1 * way, 0.1]]), atol=1e-6)
    l2 = MIFGSM(Path(), 0.3, 0.1, 2, decay, "L2", loss="margin", compile=False, threat=L2(0.3))(x, y)
    first = x + 0.1 * torch.tensor([[3.0, 1.0]]) / 10**0.5
    g = decay * torch.tensor([[0.75, 0.25]]) + torch.tensor([[-0.2, 0.8]])
    assert torch.allclose(l2, first + 0.1 * g / g.norm(), atol=1e-6)


def test_all_steps_are_made_unless_told_to_stop() -> None:
    model, x = cnn(), images(9)
    y = predictions(model, x)
    y[:3] = (y[:3] + 1) % 10
    full, early = (MIFGSM(model, 0.1, 0.02, 8, early_stop=stop).run(x, y) for stop in (False, True))
    assert (full.steps == 8).all()
    assert not torch.equal(full.x_adv[:3], x[:3])
    assert torch.equal(early.x_adv[:3], x[:3])
    assert early.success.all()
    assert (early.steps < 8).all()


def test_bad_gradients_move_nothing_and_are_not_gathered() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.stack([x.sum(1), -x.sum(1)], 1)
            z = z * torch.tensor([[1.0], [torch.nan], [0.0], [1e-43]])[: len(x)]
            return z + torch.tensor([5.0, 0.0])

    x, y = torch.full((4, 3), 0.5), torch.zeros(4, dtype=torch.int64)
    found = MIFGSM(Broken(), 0.1, 0.05, 4, loss="margin", compile=False).run(x, y)
    assert torch.equal(found.x_adv[1:3], x[1:3])
    assert found.bad_gradients.tolist() == [0, 4, 4, 0]
    assert not found.success[1]
    assert torch.allclose(found.x_adv[[0, 3]], x[[0, 3]] - 0.1)  # the last one's L1 norm is a subnormal number


@pytest.mark.parametrize(
    ("keywords", "words"),
    [({"decay": -1.0}, "decay must be finite"), ({"alpha": float("nan")}, "alpha must be"), ({"steps": 0}, "steps"),
     ({"norm": "L1"}, "norm must be one of Linf, L2"), ({"restarts": 2}, "restarts must be 1")],
)  # fmt: skip
def test_errors_name_the_argument(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"MIFGSM: {words}"):
        MIFGSM(cnn(), **keywords)
