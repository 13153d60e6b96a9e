"""Derandomised splitting noise: every neighbour of every tiny image; tight radii; what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrobust.smoothing import DeterministicSmooth, Splitting


class Table(nn.Module):
    """A classifier without any regularity: each input has logits of its own, drawn from a hash of its bits."""

    def __init__(self, classes: int, seed: int, bias: float = 0.0) -> None:
        super().__init__()
        self.classes, self.seed, self.bias = classes, seed, bias

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for row in x.flatten(1).double().tolist():
            generator = torch.Generator().manual_seed(hash((self.seed, *row)) % 2**31)
            rows.append(torch.rand(self.classes, generator=generator))
        logits = torch.stack(rows) if rows else x.new_zeros(0, self.classes)
        logits[:, 0] += self.bias
        return logits


def all_images(levels: int, dim: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(levels + 1), repeat=dim)), dtype=torch.float64) / levels


def cells_by_the_paper(k: int, t: int, period: int, levels: int) -> float:
    """The centre of the cell that holds k / levels, in the paper's words: thresholds, one by one."""
    cuts = [t + 0.5 + period * j for j in range(-3 - levels // period, 4 + levels // period)]
    below = max([c for c in cuts if c < k], default=0.0)
    above = min([c for c in cuts if c > k], default=levels)
    return (max(below, 0) + min(above, levels)) / 2 / levels


def splittings() -> Iterator[tuple[int, float, int]]:
    yield from [(3, 0.5, 3), (3, 1.2, 3), (4, 0.3, 3), (6, 0.9, 2), (5, 0.2, 2), (2, 0.25, 4)]


@pytest.mark.parametrize(("levels", "lam", "dim"), list(splittings()))
def test_copies_are_cells(levels: int, lam: float, dim: int) -> None:
    noise, x = Splitting(lam, levels, seed=5), all_images(levels, dim)
    period, offsets = noise.period, noise.offsets(x.shape[1:])
    assert period == int(2 * lam * levels)
    for copy in range(period):
        found = noise.copies(x, torch.arange(len(x)), torch.full((len(x),), copy))
        for row, values in zip(x, found.tolist(), strict=True):
            for element, value in enumerate(values):
                t = (int(offsets[element]) + copy) % period
                assert value == cells_by_the_paper(round(float(row[element]) * levels), t, period, levels)
    if lam >= 0.5:  # the paper's other form: (min(s, 1) + 1[x > s]) / 2
        s = (torch.arange(period)[:, None] + offsets) % period
        s = (s + 0.5) / levels
        other = (s.clamp(max=1) + (x[7] > s)) / 2
        assert torch.allclose(noise.copies(x[7:8], torch.zeros(period).long(), torch.arange(period)), other.double())


@pytest.mark.parametrize(("levels", "lam", "dim"), list(splittings()))
@pytest.mark.parametrize("bias", [0.0, 0.6, 0.9])
def test_nothing_within_a_radius_is_said_otherwise(levels: int, lam: float, dim: int, bias: float) -> None:
    """All pairs of images, and classifiers that know no neighbourhood."""
    x = all_images(levels, dim)
    distance = (x[:, None] - x[None]).abs().sum(-1)
    larger = 0
    for seed in range(3):
        found = DeterministicSmooth(Table(3, seed, bias), 3, Splitting(lam, levels, seed)).certify(x)
        assert (found.votes.sum(1) == Splitting(lam, levels).period).all()
        assert torch.equal(found.prediction, found.votes.argmax(1))
        within = distance <= found.radius[:, None] + 1e-9
        assert (found.prediction[:, None] == found.prediction[None])[within].all()
        larger += int((found.radius > 0).sum())
    assert larger > 0 or bias < 0.9 or Splitting(lam, levels).period < 2


def test_each_step_moves_one_vote_at_most() -> None:
    """What the proof counts, on a classifier that says another class of every input."""
    x, noise = all_images(4, 2), Splitting(0.4, 4, 3)
    copies = torch.stack([noise.copies(x, torch.arange(25), torch.full((25,), c)) for c in range(noise.period)])
    changed = (copies[:, :, None] != copies[:, None]).any(-1).sum(0)
    steps = ((x[:, None] - x[None]).abs().sum(-1) * 4).round()
    assert (changed <= steps).all()
    assert (changed == steps.clamp(max=noise.period))[steps == 1].all()


@pytest.mark.parametrize("lam", [0.5, 0.7, 2.0, 0.25])
def test_a_radius_is_tight(lam: float) -> None:
    """f says whether the element lies above its cut: one vote a grey level."""

    class Above(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, torch.full_like(x, 0.5001)], 1)

    levels = 16
    smooth = DeterministicSmooth(Above(), 2, Splitting(lam, levels))
    x = torch.arange(levels + 1)[:, None] / levels
    found = smooth.certify(x)
    sides = set()
    for k in range(levels + 1):
        steps = round(float(found.radius[k]) * levels)
        nearest = [abs(k - j) for j in range(levels + 1) if found.prediction[j] != found.prediction[k]]
        assert not nearest or steps < min(nearest)
        if nearest and lam >= 0.5:
            assert min(nearest) == steps + 1, k
            sides.add(int(found.prediction[k]))
    assert lam < 0.5 or sides == {0, 1} or lam == 2.0


def test_draws_go_to_the_lower_class() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x * 0, x - 0.5, x * 0 - 9], 1)

    found = DeterministicSmooth(Half(), 3, Splitting(0.5, 4)).certify(torch.arange(5)[:, None] / 4)
    assert found.votes.tolist() == [[4, 0, 0], [3, 1, 0], [2, 2, 0], [1, 3, 0], [0, 4, 0]]
    assert found.prediction.tolist() == [0, 0, 0, 1, 1]
    assert (found.radius * 4).tolist() == [2, 1, 0, 0, 1]


def test_the_engine_and_pytorch_agree_and_batches_do_not_matter() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    for layer in (model[1], model[3]):  # no class wins everywhere
        layer.bias.data = -layer.weight.data.sum(1) * (0.5 if layer is model[1] else 0.2)
    x = torch.randint(0, 256, (9, 3, 4)) / 255
    noise = Splitting(0.8, seed=11)
    native, plain = (DeterministicSmooth(model, 4, noise, compile=c) for c in (True, False))
    a, b = native.certify(x), plain.certify(x)
    assert torch.equal(a.votes, b.votes)
    assert ((a.votes > 0).sum(1) > 1).any()
    assert noise.period == 408
    for one in (native, plain):
        assert torch.equal(one.votes(x[[4, 2]]), a.votes[[4, 2]])
        assert torch.equal(one.predict(x), a.prediction)
    assert torch.equal(DeterministicSmooth(model, 4, Splitting(0.8, seed=11)).certify(x).radius, a.radius)
    other = DeterministicSmooth(model, 4, Splitting(0.8, seed=12)).votes(x)
    assert not torch.equal(other, a.votes)
    assert a.votes.shape == (9, 4)
    assert plain.certify(x[:0]).radius.shape == (0,)


def test_offsets_are_spread_and_bytes_are_on_the_grid() -> None:
    offsets = Splitting(1.0, seed=2).offsets(torch.Size([3, 64, 64]))
    assert offsets.shape == (3, 64, 64)
    counts = torch.bincount(offsets.flatten(), minlength=510)
    assert counts.min() > 0
    assert counts.max() < 60  # 24 on average
    assert len(counts) == 510
    k = torch.arange(256)
    image, copy = torch.zeros(7).long(), torch.arange(7)
    ways = [k / 255, k * (1 / 255), (k.double() / 255).float(), k.double() / 255]
    found = [Splitting(0.5).copies(way[None], image, copy).float() for way in ways]
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize(("lam", "levels"), [(16.0, 65535), (0.0137, 65535), (0.3, 65535), (4000.0, 255), (0.01, 255)])
def test_cells_are_exact_in_float32(lam: float, levels: int) -> None:
    """Next to cuts, where a rounded quotient would choose the wrong cell."""
    noise = Splitting(lam, levels, seed=1)
    period = noise.period
    t = (int(noise.offsets(torch.Size([1]))[0]) + torch.tensor([0, 1, period // 2, period - 1])) % period
    k = torch.cat([t + n * period + off for n in range(-1, 5000) for off in (0, 1)] if period < 2000 else [t, t + 1])
    k = torch.cat([k, torch.tensor([0, 1, levels - 1, levels])])
    k = k[(k >= 0) & (k <= levels)][:4000]
    image, copy = (
        torch.arange(len(k)).repeat(4),
        torch.tensor([0, 1, period // 2, period - 1]).repeat_interleave(len(k)),
    )
    found = noise.copies((k.double() / levels)[:, None].float(), image, copy)
    places = (t.repeat_interleave(len(k)), k.repeat(4))
    start = 2 * places[0] + 1 + 2 * period * torch.div(places[1] - places[0] - 1, period, rounding_mode="floor")
    expected = start.clamp(min=0) + (start + 2 * period).clamp(max=2 * levels)
    assert torch.equal(found[:, 0], (expected.double() / (4 * levels)).float())


def test_nan_has_no_vote() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > self.most, torch.nan, torch.cat([x, 1 - x], 1))

        most = 0.0

    model = Broken()
    smooth = DeterministicSmooth(model, 2, Splitting(0.5, 4))
    none = smooth.certify(torch.tensor([[0.5], [1.0]]))
    assert (none.votes == 0).all()
    assert none.prediction.tolist() == [-1, -1]
    assert none.radius.tolist() == [0, 0]
    model.most = 0.5
    some = smooth.certify(torch.tensor([[0.0]]))
    assert some.votes.tolist() == [[0, 4]]


def test_models_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    state = torch.random.get_rng_state()
    DeterministicSmooth(model, 2, Splitting(0.5)).certify(torch.zeros(2, 1, 2, 2))
    assert model.training
    assert model[1].training
    assert torch.equal(torch.random.get_rng_state(), state)


def exact(model: Any, classes: int = 2, **options: Any) -> DeterministicSmooth:
    return DeterministicSmooth(model, classes, Splitting(0.5), **options)


class Batchwise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)).flatten(1)[:, :2]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, x: Splitting(0), "lam must be a finite number > 0, got 0"),
        (lambda m, x: Splitting(-0.5), "lam must be a finite number > 0, got -0.5"),
        (lambda m, x: Splitting(float("nan")), "lam must be a finite number > 0, got nan"),
        (lambda m, x: Splitting(0.001), "lam must make 1 .. 2097152 copies, floor\\(2 lam levels\\), got 0.001"),
        (lambda m, x: Splitting(1e5), "lam must make 1 .. 2097152 copies, floor\\(2 lam levels\\), got 100000"),
        (lambda m, x: Splitting(0.5, 0), "levels must be an integer in 1 .. 65535, got 0"),
        (lambda m, x: Splitting(0.5, seed=-1), "seed must be in 0 .. 2\\^64 - 1, got -1"),
        (lambda m, x: exact(m).certify(x + 0.001), "multiples of 1/255, got a value off"),
        (lambda m, x: exact(m).certify(x + 1), "x must lie in 0 .. 1, got values in"),
        (lambda m, x: exact(m).certify(x / 0), "x must be finite"),
        (lambda m, x: exact(m).certify(x[0, 0, 0]), "must have shape \\(batch, ...\\)"),
        (lambda m, x: exact(m).certify(x.half()), "dtype float32 or float64, got float16"),
        (lambda m, x: exact(m, 3).certify(x), "num_classes must be the model's, 2, got 3"),
        (lambda m, x: exact(nn.Identity(), 3).certify(x), "model's, of shape"),
        (lambda m, x: exact(m, 0), "num_classes must be an integer >= 1, got 0"),
        (lambda m, x: DeterministicSmooth(m, 2, 0.5), "noise must be a Splitting"),
        (lambda m, x: exact(lambda x: x), "model must be a torch.nn.Module"),
        (lambda m, x: exact(m, compile="yes"), "compile must be 'auto', True or False"),
        (lambda m, x: exact(Batchwise()).certify(x), "treat each row by itself"),
        (lambda m, x: exact(Batchwise(), compile=True).certify(x), "compile=True, but"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call: Any, says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        call(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.full((2, 1, 2, 2), 0.2))
