"""Votes: of every noise and both paths, in any division; models that cannot be sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sample_nets import Mixed, native, shaken
from scipy import stats
from torch import Tensor, nn

from fastrobust import ops
from fastrobust.network import compile
from fastrobust.smoothing import Gaussian, Laplace, Uniform
from fastrobust.smoothing.sampling import Sampler


class Drawn:
    """A noise of `ops.noisy_copies`; what it certifies does not matter here. `tells` the engine what it draws."""

    norm = "L1"

    def __init__(self, kind: str, scale: float, tells: bool = True, **more: Any) -> None:
        self.kind, self.scale, self.more = kind, scale, more
        if tells:
            self.drawn = (kind, scale)

    def radius(self, p: NDArray[np.float64], dim: int) -> NDArray[np.float64]:
        return 0 * p

    def probability(self, radius: float, dim: int) -> float:
        return 1.0

    def copies(self, x: Tensor, image: Tensor, copy: Tensor, index: Tensor, seed: int) -> Tensor:
        return ops.noisy_copies(x, image, copy, index, seed, self.kind, self.scale, **self.more)


@native
@pytest.mark.parametrize("kind", ["normal", "uniform", "laplace"])
def test_the_engine_draws_every_kind(kind: str, isa: str) -> None:
    """All three ways of counting: but for near ties the engine's noise, the engine on stored copies, and the model."""
    torch.manual_seed(0)
    model, x = shaken(Mixed()), torch.randn(5, 2, 6, 6)
    index, classes = torch.tensor([7, 0, 2**32 - 1, 3, 4]), model(x).shape[1]
    noise = {"normal": Gaussian, "uniform": Uniform, "laplace": Laplace}[kind](0.4)
    ways = [(noise, True), (Drawn(kind, 0.4, tells=False), True), (noise, False)]
    whole, stored, plain = (
        Sampler(model, classes, noise, way).votes(x, 300, 2**63 + 5, index, first=11) for noise, way in ways
    )
    assert (whole.sum(1) == 300).all()
    assert int((whole - stored).abs().sum()) <= 4
    assert int((whole - plain).abs().sum()) <= 4
    other = Sampler(model, classes, Drawn("normal" if kind != "normal" else "laplace", 0.4), True)
    assert int((other.votes(x, 300, 2**63 + 5, index, first=11) - whole).abs().sum()) > 20


@native
@pytest.mark.parametrize("kind", ["normal", "uniform", "laplace"])
def test_the_engine_noise_is_that_of_the_op(kind: str, isa: str) -> None:
    """Element by element: a network that compares one with a threshold, just below and above the op's."""
    n, where = 6, (torch.zeros(16, dtype=torch.int64), 5 + torch.arange(16))
    x, index, seed = torch.rand(1, n), torch.tensor([77]), 2**40 + 3
    noisy = ops.noisy_copies(x, *where, index, seed, kind, 0.7).double()
    model = nn.Linear(n, 2).eval()
    compiled = compile(model, x)
    for element in range(n):
        for copy in (0, 7, 15):
            value = float(noisy[copy, element])
            for off, votes in ((-2e-6, [[0, 1]]), (2e-6, [[1, 0]])):
                with torch.no_grad():
                    model.weight.zero_()
                    model.weight[1, element] = 1
                    model.bias.copy_(torch.tensor([value + off * max(1, abs(value)), 0]))
                assert compiled.votes(x, 1, 0.7, seed, index, first=5 + copy, kind=kind).tolist() == votes


@pytest.mark.parametrize("kind", ["normal", "laplace", "split"])
def test_votes_are_additive_and_keyed_by_index_and_copy(kind: str) -> None:
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(4, 3, 4)
    sampler, index = Sampler(model, 3, Drawn(kind, 0.6), False), torch.tensor([5, 1, 9, 2])
    whole = sampler.votes(x, 1500, 3, index)
    assert (whole.sum(1) == 1500).all()
    parts = sampler.votes(x, 700, 3, index) + sampler.votes(x, 800, 3, index, first=700)
    assert int((whole - parts).abs().sum()) <= 2  # PyTorch may round otherwise in another batch
    assert int((sampler.votes(x[[3, 0]], 1500, 3, index[[3, 0]]) - whole[[3, 0]]).abs().sum()) <= 2
    assert not torch.equal(sampler.votes(x, 1500, 4, index), whole)


def test_votes_of_a_linear_model_have_their_probabilities() -> None:
    """P(z < t) of one element that is compared with a threshold, for each kind; splitting noise by its formula."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [1.0]]))
        model.bias.zero_()
    x, n, scale = torch.tensor([[-0.3], [0.0], [0.8]]), 40_000, 0.5
    laws = {"normal": stats.norm, "laplace": stats.laplace, "uniform": stats.uniform(-1, 2)}
    for kind, law in laws.items():
        votes = Sampler(model, 2, Drawn(kind, scale), False).votes(x, n, 8)
        for row, value in zip(votes[:, 1], x[:, 0], strict=True):
            assert stats.binomtest(int(row), n, float(law.sf(-float(value) / scale))).pvalue > 1e-4, kind
    with torch.no_grad():
        model.bias[0] = 0.6  # (min(s, 1) + [x > s]) / 2 > 0.6 where 0.2 < s < 0.8, s uniform on 0 .. 1
    votes = Sampler(model, 2, Drawn("split", scale), False).votes(x[2:], n, 8)
    assert stats.binomtest(int(votes[0, 1]), n, 0.6).pvalue > 1e-4


def test_one_batch_holds_several_images_and_is_full() -> None:
    sizes: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x[:, :3]

    votes = Sampler(Counting(), 3, Gaussian(0.5), False).votes(torch.rand(7, 5), 400, 1)
    assert (votes.sum(1) == 400).all()
    assert sizes == [1024, 2, 1024, 752]  # the two are the check that samples do not influence each other


def test_channels_last_images_are_served_so() -> None:
    class Strided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.is_contiguous(memory_format=torch.channels_last)
            return x[:, :, 0, 0]

    x = torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last)
    a = Sampler(Strided(), 3, Gaussian(0.5), False).votes(x, 50, 1)
    b = Sampler(Strided(), 3, Gaussian(0.5), False).votes(x.clone(), 50, 1)
    assert torch.equal(a, b)


class Mixing(nn.Module):
    """Logits that depend on the batch, each by a way of its own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.norm = way, nn.BatchNorm2d(3, affine=False, track_running_stats=False)

    def forward(self, x: Tensor) -> Any:
        logits = x.flatten(1)[:, :4]
        match self.way:
            case "batch statistics":
                return self.norm(x).flatten(1)[:, :4]
            case "softmax over samples":
                return logits.softmax(0)
            case "random":
                return logits + torch.rand_like(logits)
            case "tuple":
                return logits, logits
            case "one dimension":
                return logits[:, 0]
            case "one row":
                return logits.mean(0, keepdim=True)
        return logits


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("batch statistics", "model must give a sample the same logits whatever else is in the batch"),
        ("softmax over samples", "model must give a sample the same logits whatever else is in the batch"),
        ("random", "at every call; those of the first sample differ by"),
        ("tuple", "model must give a tensor of logits, got tuple"),
        ("one dimension", r"logits \(batch, classes\) for each of 500 samples, got \(500,\)"),
        ("one row", r"logits \(batch, classes\) for each of 500 samples, got \(1, 4\)"),
    ],
)
@pytest.mark.parametrize("sigma", [0.01, 0.5])
def test_models_that_cannot_be_sampled(way: str, says: str, sigma: float) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        Sampler(Mixing(way), 4, Gaussian(sigma)).votes(torch.rand(5, 3, 6, 6), 100, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_dependence(dtype: torch.dtype) -> None:
    """Also of a model in 16 bits, and of one that says NaN."""

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 7)).to(dtype)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x.to(dtype))
            return out

    torch.manual_seed(0)
    assert int(Sampler(Narrow(), 7, Gaussian(0.5)).votes(torch.rand(3, 3, 6, 6), 700, 0).sum()) == 2100

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3].to(dtype) * float("nan")

    assert int(Sampler(Odd(), 3, Gaussian(0.5)).votes(torch.rand(3, 3, 6, 6), 70, 0).sum()) == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s, x: s.votes(x[0, 0, 0], 5, 0), r"x must have shape \(batch, ...\), got \(4,\)"),
        (lambda s, x: s.votes(x / 0, 5, 0), "x must be finite"),
        (lambda s, x: s.votes(x, 5, 0, torch.arange(3)), r"index must have shape \(2,\), got \(3,\)"),
        (lambda s, x: s.votes(x, 5, 0, first=2**32 - 4), r"copies must be numbered in 0 .. 2\^32 - 1, got 4294967296"),
        (lambda s, x: Sampler(s.model, 0, s.noise), "num_classes must be an integer >= 1, got 0"),
        (lambda s, x: Sampler(s.model, 4, s.noise, "yes"), "compile must be 'auto', True or False, got 'yes'"),
        (lambda s, x: Sampler(s.model, 4, s.noise, True).votes(x.double(), 5, 0), "compile=True, but"),
        (lambda s, x: Sampler(s.model, 5, s.noise).votes(x, 5, 0), "num_classes must be the model's, 4, got 5"),
    ],
)
def test_wrong_arguments_are_named(call: Any, says: str) -> None:
    sampler = Sampler(Mixing("none"), 4, Gaussian(0.5))
    with pytest.raises((ValueError, TypeError), match=f"Smooth: {says}"):
        call(sampler, torch.rand(2, 3, 4, 4))
