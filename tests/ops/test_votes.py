"""Votes: counts against bincount of argmax; NaN, ties, layouts, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastrobust import ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def counted(logits: Tensor, image: Tensor, images: int) -> Tensor:
    """Row by row."""
    counts = torch.zeros(images, logits.shape[1], dtype=torch.int64)
    for row, i in zip(logits, image, strict=True):
        values = row.tolist()
        if all(v == v for v in values):
            counts[i, values.index(max(values))] += 1
    return counts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 10, 33, 257])
def test_votes_are_those_of_argmax(dtype: torch.dtype, classes: int, isa: str) -> None:
    """Many equal logits, NaN in any place, infinities; the first of equals wins, as torch.argmax has it."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(300, classes, generator=generator).mul_(3).round_().to(dtype)
    logits[::11, 0], logits[3::11, -1], logits[5::11, classes // 2] = torch.nan, torch.nan, torch.nan
    logits[7::11], logits[8::11, -1] = -torch.inf, torch.inf
    image = torch.randint(5, (300,), generator=generator)
    counts = torch.full((5, classes), 7)
    assert ops.add_votes(logits, image, counts) is counts
    assert torch.equal(counts - 7, counted(logits, image, 5))
    plain = ~logits.isnan().any(1)
    flat = torch.bincount(image[plain] * classes + logits[plain].argmax(1), minlength=5 * classes)
    assert torch.equal(counts - 7, flat.view(5, classes))


def test_counts_add_up_over_any_division() -> None:
    logits, image = torch.randn(5000, 10), torch.arange(5000) % 3
    whole, parts = (torch.zeros(3, 10, dtype=torch.int64) for _ in range(2))
    ops.add_votes(logits, image, whole)
    for begin in range(0, 5000, 617):
        ops.add_votes(logits[begin : begin + 617], image[begin : begin + 617], parts)
    assert torch.equal(whole, parts)
    assert int(whole.sum()) == 5000
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    assert torch.equal(ops.add_votes(logits, image, torch.zeros_like(whole)), whole)
    torch.set_num_threads(before)


def test_any_strides() -> None:
    logits, image = torch.randn(40, 6), torch.arange(40) % 4
    expected = counted(logits, image, 4)
    counts = torch.zeros(6, 4, dtype=torch.int64).T
    ops.add_votes(logits.T.contiguous().T, torch.stack([image, image], 1)[:, 1], counts)
    assert torch.equal(counts, expected)
    wide = torch.zeros(4, 12, dtype=torch.int64)
    ops.add_votes(logits, image, wide[:, ::2])
    assert torch.equal(wide[:, ::2], expected)
    assert int(wide[:, 1::2].sum()) == 0


def test_the_version_is_bumped_and_logits_may_need_gradients() -> None:
    logits, counts = torch.randn(4, 3, requires_grad=True), torch.zeros(2, 3, dtype=torch.int64)
    before = counts._version
    ops.add_votes(logits, torch.tensor([0, 1, 1, 0]), counts)
    assert counts._version > before
    assert int(counts.sum()) == 4


def test_empty() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert int(ops.add_votes(torch.rand(0, 3), none, torch.zeros(2, 3, dtype=torch.int64)).sum()) == 0
    assert ops.add_votes(torch.rand(0, 3), none, torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"logits": [1.0]}, "logits must be a tensor, got list"),
        ({"logits": torch.zeros(4, 3, dtype=torch.int64)}, "logits must have dtype float32 or float64 or bfloat16"),
        ({"logits": torch.rand(4)}, r"logits must have shape \(slots, classes >= 1\), got \(4,\)"),
        ({"logits": torch.rand(4, 0)}, r"logits must have shape \(slots, classes >= 1\), got \(4, 0\)"),
        ({"image": torch.zeros(4)}, "image must have dtype int64, got float32"),
        ({"image": torch.zeros(3, dtype=torch.int64)}, r"image must have shape \(4,\), got \(3,\)"),
        ({"image": torch.tensor([0, 1, 2, 0])}, "image must be in 0 .. 1, got 0 .. 2"),
        ({"image": torch.tensor([0, 1, -1, 0])}, "image must be in 0 .. 1, got -1 .. 1"),
        ({"counts": torch.zeros(2, 3)}, "counts must have dtype int64, got float32"),
        ({"counts": torch.zeros(2, 4, dtype=torch.int64)}, r"counts must have shape \(images, 3\), got \(2, 4\)"),
        ({"counts": torch.zeros(3, dtype=torch.int64)}, r"counts must have shape \(images, 3\), got \(3,\)"),
        ({"counts": torch.zeros(2, 3, dtype=torch.int64, device="meta")}, "counts must be on cpu, got meta"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(change: dict[str, Any], says: str) -> None:
    right = {"logits": torch.rand(4, 3), "image": torch.tensor([0, 1, 1, 0])}
    arguments = {**right, "counts": torch.zeros(2, 3, dtype=torch.int64), **change}
    with pytest.raises((ValueError, TypeError), match=f"add_votes: {says}"):
        ops.add_votes(**arguments)
