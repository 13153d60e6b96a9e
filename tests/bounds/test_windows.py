"""CROWN through windows: the bounds that whole images give, at every edge, for every layer that has windows."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.bounds import windows
from fastrobust.bounds.captured import program_for
from fastrobust.bounds.interval import Interval, Region
from fastrobust.bounds.layers import Window
from fastrobust.threat import Threat


class Mixed(nn.Module):
    """Strides, groups, dilation, padding, batch norm, a max pool, constants, a sum, a product, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.third = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.strided, self.pool = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), nn.MaxPool2d(3, 2, 1)
        self.joined, self.dilated = nn.Conv2d(14, 8, 1), nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.last = nn.Linear(8 * 42, 5)
        self.register_buffer("scale", 1 + torch.rand(1, 14, 11))
        nn.init.uniform_(self.norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu() * self.scale
        y = self.third(self.second(x).relu()) + x
        y = torch.cat([self.strided(y.relu()).relu(), self.pool(y)], 1)
        y = self.joined(y).relu()
        y = torch.tanh(self.dilated(y)) * y
        out: Tensor = self.last(y.flatten(1))
        return out


class Line(nn.Module):
    """Convolutions in one dimension, whose windows are spans."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv1d(5, 5, 5, stride=2), nn.ReLU(), nn.Conv1d(5, 4, 3),
            nn.LeakyReLU(), nn.Flatten(), nn.LazyLinear(3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def case(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    x = torch.rand(3, 2, 14, 11) if kind is Mixed else torch.rand(3, 2, 23)
    model = kind().eval()
    model(x)
    return model, x


def cut(monkeypatch: pytest.MonkeyPatch, side: int) -> set[int]:
    """Values are cut into tiles of that side wherever they can be, 0 for nowhere; returns those that were."""
    seen = set[int]()

    def tiles(view: windows.View, rows: int) -> list[Window]:
        found = list(product(*([slice(at, min(at + side, n)) for at in range(0, n, side)] for n in view.shape[1:])))
        if len(view.shape) == 1 or windows._cone(view.steps, view.target, found[0]) is None:
            return []
        seen.add(view.target)
        return found

    monkeypatch.setattr(windows.View, "tiles", tiles if side else lambda *_: [])
    return seen


@pytest.mark.parametrize("threat", [fr.Linf(0.05), fr.L2(0.4), fr.L1(1.0)], ids=lambda t: t.norm)
@pytest.mark.parametrize("kind", [Mixed, Line])
def test_windows_change_nothing_but_rounding(
    kind: type[nn.Module], threat: Threat, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = case(kind)
    cut(monkeypatch, 0)
    expected = [fr.bounds.crown(model, x[:1], threat, sound) for sound in (True, False)]
    for side in (1, 3, 4, 8):
        seen = cut(monkeypatch, side)
        for sound, wide in zip((True, False), expected, strict=True):
            found = fr.bounds.crown(model, x[:1], threat, sound)
            torch.testing.assert_close(found.lower, wide.lower, rtol=0, atol=2e-6)
            torch.testing.assert_close(found.upper, wide.upper, rtol=0, atol=2e-6)
        assert len(seen) == (5 if kind is Mixed else 2)


@pytest.mark.parametrize("kind", [Mixed, Line])
def test_windows_hold_what_the_network_does(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = case(kind)
    cut(monkeypatch, 3)
    found = fr.bounds.crown(model, x, fr.Linf(0.1))
    low, high = (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1)
    for k in range(300):
        share = torch.rand_like(x)
        point = torch.lerp(low, high, share.round() if k % 2 else share)
        z = model(torch.minimum(torch.maximum(point, low), high))
        assert (found.lower <= z).all()
        assert (z <= found.upper).all()


@pytest.mark.parametrize(("kernel", "padding", "size"), [(3, 10, 32), (1, 4, 40), (3, 8, 64)])
def test_tiles_that_see_padding_alone(kernel: int, padding: int, size: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(4, 2, kernel, padding=padding), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3),
    ).eval()  # fmt: skip
    x = torch.rand(1, 3, size, size)
    found, z = fr.bounds.crown(model, x, fr.Linf(0.01)), model(x)
    assert (found.lower <= z).all()
    assert (z <= found.upper).all()


def test_large_images_are_cut_and_small_ones_are_not() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                         nn.Flatten(), nn.Linear(8 * 32 * 32, 10))  # fmt: skip
    seen = view(wide, torch.rand(1, 3, 32, 32))
    pieces = seen.tiles(2 * 8 * 32 * 32)
    assert len(pieces) > 3
    covered = torch.zeros(32, 32)
    for rows, columns in pieces:
        covered[rows, columns] += 1
    assert (covered == 1).all()
    assert seen.tiles(1) == []  # one function is as well brought back whole
    flat = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    assert view(flat, torch.rand(1, 4)).tiles(128) == []


def view(model: nn.Module, x: Tensor) -> windows.View:
    """Of what the second ReLU reads."""
    program, box = program_for("test", model.eval(), x), Region(Interval(x, x))
    return windows.whole(3, program.steps, box, [], [])
