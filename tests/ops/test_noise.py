"""Noisy copies: the draws' distributions and independence, what they are keyed by, layouts, rounding, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from fastrobust import _backend, ops
from fastrobust.ops import _rounding as rounding
from fastrobust.ops.noise import NOISE

KINDS = ("normal", "uniform", "laplace")
MOMENT = {  # E z^k
    "normal": lambda k: math.prod(range(1, k, 2)) if k % 2 == 0 else 0,
    "uniform": lambda k: 1 / (k + 1) if k % 2 == 0 else 0,
    "laplace": lambda k: math.factorial(k) if k % 2 == 0 else 0,
}
LAW = {"normal": stats.norm(), "uniform": stats.uniform(-1, 2), "laplace": stats.laplace()}


def slots(count: int, images: int = 1, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """image, copy and index of so many copies of each image, image after image."""
    every = torch.arange(count * images)
    return every // count, first + every % count, torch.arange(images)


def draws(kind: str, copies: int, dim: int, seed: int = 0, first: int = 0, images: int = 1) -> NDArray[np.float64]:
    """(images, copies, dim), as the float32 kernel makes them."""
    found = ops.noisy_copies(torch.zeros(images, dim), *slots(copies, images, first), seed, kind)
    return found.double().view(images, copies, dim).numpy()


# --- what is drawn ----------------------------------------------------------------------------------------------


def test_integer_stream_is_that_of_philox(isa: str) -> None:
    """Uniform draws in float64 hold their words; `philox` is tested with Random123's known answers."""
    copy, index = torch.tensor([0, 2**32 - 1, 5]), torch.tensor([2**32 - 1, 7])
    image, seed, dim = torch.tensor([0, 1, 1]), 2**64 - 3, 4099
    v = ops.noisy_copies(torch.zeros(2, dim, dtype=torch.float64), image, copy, index, seed, "uniform")
    words = rounding.philox(seed, torch.arange((dim + 3) // 4), copy[:, None], index[image][:, None], NOISE)
    expected = torch.stack(words, -1).flatten(1)[:, :dim]
    assert torch.equal((v + 1) * 2.0**31 - 0.5, expected.double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions(kind: str, dtype: torch.dtype, isa: str) -> None:
    n = 400_000
    z = ops.noisy_copies(torch.zeros(1, 1000, dtype=dtype), *slots(n // 1000), 1, kind).double().numpy().ravel()
    assert stats.kstest(z, LAW[kind].cdf).pvalue > 1e-3
    for power in (1, 2, 3, 4):
        mean, more = MOMENT[kind](power), MOMENT[kind](2 * power)
        assert abs((z**power).mean() - mean) < 4.5 * math.sqrt((more - mean**2) / n), power
    assert np.unique(np.abs(z)).size > 0.97 * n  # 32 bits of radius: 24 would repeat themselves
    assert (z > 0).mean() == pytest.approx(0.5, abs=4.5 / (2 * math.sqrt(n)))


@pytest.mark.parametrize(
    ("kind", "beyond", "total"),
    [("normal", (4.0, 5.0, 5.6), 600_000_000), ("laplace", (10.0, 14.0, 17.0), 150_000_000)],
)
def test_tails(kind: str, beyond: tuple[float, ...], total: int) -> None:
    """24-bit uniforms stop at 5.77 and would give 2 of the 13 normal draws beyond 5.6."""
    dim, copies = 2000, 3000
    if _backend.plain is None:  # the reference, some hundred times slower
        total = 2 * dim * copies
    x, counts = torch.zeros(1, dim), np.zeros(len(beyond))
    for first in range(0, total // dim, copies):
        z = ops.noisy_copies(x, *slots(copies, first=first), 3, kind).abs_()
        far = z[z > beyond[0]]
        counts += [int((far > t).sum()) for t in beyond]
    for t, count in zip(beyond, counts, strict=True):
        p = 2 * LAW[kind].sf(t)
        assert stats.binomtest(int(count), total, p).pvalue > 1e-4, (t, count, p * total)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_independent(kind: str) -> None:
    """No correlation, plain or of magnitudes, between copies, images, seeds, and elements at any small distance."""
    n = 64_000
    base = draws(kind, 8, n // 8)[0]
    others = {
        "copies": draws(kind, 8, n // 8, first=8)[0],
        "seeds": draws(kind, 8, n // 8, seed=1)[0],
        "far seeds": draws(kind, 8, n // 8, seed=2**32)[0],
        "images": draws(kind, 8, n // 8, images=2)[1],
        **{f"elements {lag} apart": np.roll(base, lag, 1) for lag in (1, 2, 3, 4, 5, 8, 16, 64, 1024)},
        **{f"copies {lag} apart": np.roll(base, lag, 0) for lag in (1, 2, 4)},
    }
    for what, other in others.items():
        for way in (lambda v: v, np.abs, lambda v: v**2):
            r = np.corrcoef(way(base).ravel(), way(other).ravel())[0, 1]
            assert abs(r) * math.sqrt(n) < 4.8, what


def test_kinds_are_made_of_one_stream() -> None:
    """The sign and rank of a Laplace draw are those of the word that the uniform draw is."""
    u, v = (draws(kind, 1, 4000).ravel() for kind in ("uniform", "laplace"))
    assert ((v < 0) == (u > 0)).all()
    assert np.allclose(np.abs(v), -np.log(np.where(u > 0, u, u + 1)), rtol=1e-4, atol=1e-6)


def test_splitting_noise_is_the_formula(isa: str) -> None:
    x, scale = torch.rand(3, 41), 0.8
    where = slots(50, 3)
    u = (ops.noisy_copies(torch.zeros_like(x, dtype=torch.float64), *where, 4, "uniform") + 1) / 2
    s = 2 * scale * u
    expected = (s.clamp(max=1) + (x[where[0]].double() > s)) / 2
    assert torch.equal(ops.noisy_copies(x, *where, 4, "split", scale), expected.float())
    assert torch.equal(ops.noisy_copies(x.double(), *where, 4, "split", scale), expected)


@pytest.mark.parametrize("norm", ["L1", "L2", "Linf"])
@pytest.mark.parametrize("dim", [3, 130, 3000])
def test_draws_on_a_sphere(norm: str, dim: int, isa: str) -> None:
    x, where = torch.zeros(2, dim), slots(9, 2)
    radius = torch.rand(18, dtype=torch.float64) + 0.1
    found = ops.noisy_copies(x, *where, 2, "laplace", radius, sphere=norm).double()
    plain = ops.noisy_copies(x, *where, 2, "laplace").double()
    order = {"L1": 1.0, "L2": 2.0, "Linf": math.inf}[norm]
    assert torch.allclose(torch.linalg.vector_norm(found, ord=order, dim=1), radius, rtol=1e-5)
    size = torch.linalg.vector_norm(plain, ord=order, dim=1)
    assert torch.allclose(found, plain * (radius / size)[:, None], rtol=1e-5, atol=1e-7)


# --- what it depends on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "split"])
@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (3, 5), (3, 1029)])
@pytest.mark.parametrize("sphere", [None, "L2"])
def test_a_copy_depends_on_nothing_but_its_key(kind: str, shape: tuple[int, ...], sphere: str | None, isa: str) -> None:
    if kind == "split":
        sphere = None
    x = torch.rand(shape)
    image, copy, index = slots(40, 3)
    index = torch.tensor([9, 2**32 - 1, 0])
    whole = ops.noisy_copies(x, image, copy, index, 6, kind, 0.5, sphere=sphere)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops.noisy_copies(x, image[order], copy[order], index, 6, kind, 0.5, sphere=sphere), whole[order])
    for some in (slice(0, 1), slice(7, 50), slice(119, 120)):
        part = ops.noisy_copies(x, image[some], copy[some], index, 6, kind, 0.5, sphere=sphere)
        assert torch.equal(part, whole[some])
    alone = ops.noisy_copies(x[2:], 0 * copy[:40], copy[80:], index[2:], 6, kind, 0.5, sphere=sphere)
    assert torch.equal(alone, whole[80:])
    shuffled = ops.noisy_copies(x.flip(0), 2 - image, copy, index.flip(0), 6, kind, 0.5, sphere=sphere)
    assert torch.equal(shuffled, whole)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(ops.noisy_copies(x, image, copy, index, 6, kind, 0.5, sphere=sphere), whole)
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(ops.noisy_copies(x, image, copy, index, 7, kind, 0.5, sphere=sphere), whole)
    assert not torch.equal(ops.noisy_copies(x, image, copy + 1, index, 6, kind, 0.5, sphere=sphere), whole)


@pytest.mark.parametrize("kind", [*KINDS, "split"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_channels_last_is_contiguous(kind: str, dtype: torch.dtype, isa: str) -> None:
    x = torch.rand(3, 5, 6, 7, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    where = slots(11, 3)
    for sphere in (None,) if kind == "split" else (None, "L1"):
        expected = ops.noisy_copies(x, *where, 8, kind, 2.0, sphere=sphere, dtype=dtype)
        last = x.to(memory_format=torch.channels_last)
        found = ops.noisy_copies(last, *where, 8, kind, 2.0, sphere=sphere, dtype=dtype)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert not found.is_contiguous()
        assert torch.equal(found, expected)


def test_any_strides() -> None:
    where = slots(6, 4)
    x = torch.rand(4, 3, 10)
    expected = ops.noisy_copies(x, *where, 1)
    wide = torch.rand(4, 3, 20)
    wide[..., ::2] = x
    assert torch.equal(ops.noisy_copies(wide[..., ::2], *where, 1), expected)
    assert torch.equal(ops.noisy_copies(x.transpose(1, 2).contiguous().transpose(1, 2), *where, 1), expected)
    same = ops.noisy_copies(x[:1].expand(4, 3, 10), *where, 1)
    assert torch.equal(same, ops.noisy_copies(x[:1].repeat(4, 1, 1), *where, 1))
    twice = [torch.stack([t, t], 1)[:, 0] for t in where]
    assert torch.equal(ops.noisy_copies(x, *twice, 1), expected)
    offset = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    assert torch.equal(ops.noisy_copies(offset, *where, 1), expected)


@pytest.mark.parametrize("scale", [0.3, 1e-6, 7e4])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_narrow_results_are_rounded_once(scale: float, wide: torch.dtype, narrow: torch.dtype, isa: str) -> None:
    """Subnormal and infinite ones too: they are torch's rounding of the wide result."""
    x, where = torch.zeros(2, 700, dtype=wide), slots(20, 2)
    found = ops.noisy_copies(x, *where, 5, "normal", scale, dtype=narrow)
    assert found.dtype == narrow
    assert torch.equal(found, ops.noisy_copies(x, *where, 5, "normal", scale).to(narrow))


def test_scales() -> None:
    x, where = torch.rand(2, 33), slots(4, 2)
    each = torch.rand(8, dtype=torch.float64)
    found = ops.noisy_copies(x, *where, 5, scale=each)
    for s in range(8):
        alone = ops.noisy_copies(x, where[0][s:][:1], where[1][s:][:1], where[2], 5, scale=float(each[s]))
        assert torch.equal(alone[0], found[s])
    assert torch.equal(ops.noisy_copies(x, *where, 5, scale=0.0), x[where[0]])
    assert torch.allclose(
        ops.noisy_copies(x, *where, 5, scale=-1.0) + ops.noisy_copies(x, *where, 5), 2 * x[where[0]], atol=1e-6
    )


def test_constants_for_autograd_and_no_side_effects() -> None:
    x, where = torch.rand(2, 33, requires_grad=True), slots(4, 2)
    state = torch.random.get_rng_state()
    found = ops.noisy_copies(x, *where, 5)
    assert not found.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)


def test_empty() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert ops.noisy_copies(torch.rand(2, 3, 4), none, none, torch.arange(2), 0).shape == (0, 3, 4)
    assert ops.noisy_copies(torch.rand(0, 3), none, none, none, 0, sphere="L2").shape == (0, 3)
    assert ops.noisy_copies(torch.rand(2, 0, 4), *slots(3, 2), 0, sphere="L1").shape == (6, 0, 4)
    assert ops.noisy_copies(torch.rand(2), *slots(3, 2), 0).shape == (6,)


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": 3}, "x must be a tensor, got int"),
        ({"x": torch.rand(2, 3).half()}, "x must have dtype float32 or float64, got float16"),
        ({"x": torch.tensor(1.0)}, "x must have a dimension of images, got a 0-dimensional"),
        ({"x": torch.zeros(1, 1).expand(1, 2**31)}, "x must have less than 2\\^31 elements a sample, got 2147483648"),
        ({"image": [0]}, "image must be a tensor, got list"),
        ({"image": torch.zeros(4)}, "image must have dtype int64, got float32"),
        ({"image": torch.zeros(4, 1, dtype=torch.int64)}, r"image must have shape \(slots,\), got \(4, 1\)"),
        ({"copy": torch.arange(3)}, r"copy must have shape that of image, \(4,\), got \(3,\)"),
        ({"copy": torch.arange(4, device="meta")}, "copy must be on x's device cpu, got meta"),
        ({"index": torch.arange(3)}, r"index must have shape \(2,\), got \(3,\)"),
        ({"index": torch.tensor([0, 2**32])}, r"index must be in 0 .. 2\^32 - 1, got 0 .. 4294967296"),
        ({"image": torch.tensor([0, 1, 2, 0])}, "image must be in 0 .. 1, got 0 .. 2"),
        ({"image": torch.tensor([0, 1, -1, 0])}, "image must be in 0 .. 1, got -1 .. 1"),
        ({"copy": torch.tensor([0, 1, -1, 0])}, r"copy must be in 0 .. 2\^32 - 1, got -1 .. 1"),
        ({"seed": -1}, r"seed must be in 0 .. 2\^64 - 1, got -1"),
        ({"seed": 2**64}, "seed must be in"),
        ({"kind": "cauchy"}, "kind must be one of normal, uniform, laplace, split, got 'cauchy'"),
        ({"scale": "1"}, "scale must be a number or a tensor, got str"),
        ({"scale": math.inf}, "scale must be finite, got inf"),
        ({"scale": torch.rand(4)}, "scale must have dtype float64, got float32"),
        ({"scale": torch.rand(3).double()}, r"scale must be a number or have shape \(4,\), got \(3,\)"),
        ({"scale": torch.rand(4, device="meta").double()}, "scale must be on x's device cpu, got meta"),
        ({"sphere": "L3"}, "sphere must be None or one of Linf, L2, L1, got 'L3'"),
        ({"sphere": "L1", "kind": "split"}, "sphere must be None for kind 'split', got 'L1'"),
        ({"dtype": torch.float64}, "dtype must be x's torch.float32, torch.float16 or torch.bfloat16"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(change: dict[str, Any], says: str) -> None:
    image, copy, index = slots(2, 2)
    arguments = {"x": torch.rand(2, 3), "image": image, "copy": copy, "index": index, "seed": 0, **change}
    with pytest.raises((ValueError, TypeError), match=f"noisy_copies: {says}"):
        ops.noisy_copies(**arguments)
