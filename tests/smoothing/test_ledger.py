"""Votes on disk: answers are those of the sampler, whatever was killed, cut, flipped or mixed up."""

from __future__ import annotations

import json
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrobust.smoothing import Gaussian, Ledger, Smooth, ledger, recertify
from fastrobust.smoothing.ledger import Recorded
from fastrobust.smoothing.sampling import Sampler

NOISE = Gaussian(0.5)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))


def points(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 4, generator=torch.Generator().manual_seed(1))


@lru_cache
def sampler(seed: int = 0, noise: Gaussian = NOISE) -> Sampler:
    return Sampler(net(seed), 3, noise)


def opened(path: Path, seed: int | None = None) -> Recorded:
    return Ledger(path).over(sampler(), seed)


def test_answers_are_the_samplers_and_only_what_is_missing_is_drawn(tmp_path: Path) -> None:
    path, x, bare = tmp_path / "votes", points(), sampler()
    index = torch.tensor([5, 0, 2**32 - 1, 7, 8, 9])
    first = opened(path, 3)
    a = first.votes(x, 200, 3, index, 100)
    assert torch.equal(a, bare.votes(x, 200, 3, index, 100))
    assert first.drawn == 1200
    for _ in range(2):  # from memory, and from the file
        again = opened(path)
        assert (again.seed, again.fresh) == (3, False)
        assert torch.equal(again.votes(x, 200, 3, index, 100), a)
        assert again.drawn == 0
    # Other ranges and orders: the parts that are held are not drawn again.
    order = torch.tensor([4, 1])
    assert torch.equal(again.votes(x[order], 350, 3, index[order], 50), bare.votes(x[order], 350, 3, index[order], 50))
    assert again.drawn == 2 * 150
    last = opened(path)
    assert torch.equal(last.votes(x, 350, 3, index, 50), bare.votes(x, 350, 3, index, 50))
    assert last.drawn == 4 * 150
    # The same ids with other values, and the same values with other ids, are others.
    assert torch.equal(last.votes(x + 1, 200, 3, index, 100), bare.votes(x + 1, 200, 3, index, 100))
    assert torch.equal(last.votes(x, 200, 3, None, 100), bare.votes(x, 200, 3, None, 100))
    assert last.drawn == 4 * 150 + 2 * 1200


def test_certificates_are_those_without_a_ledger_and_are_resumed_without_a_draw(tmp_path: Path) -> None:
    x, radii = points(), [0.05, 0.2]
    plain = Smooth(net(), 3, NOISE, seed=11)
    for _ in range(2):
        kept = Smooth(net(), 3, NOISE, seed=11, ledger=tmp_path / "votes")
        for found, expected in (
            (kept.certify(x, 50, 25_000), plain.certify(x, 50, 25_000)),
            (kept.certify_at(x, radii, n_max=3000), plain.certify_at(x, radii, n_max=3000)),
        ):
            assert torch.equal(found.radius, expected.radius)
            assert torch.equal(found.prediction, expected.prediction)
            assert torch.equal(found.samples, expected.samples)
            assert torch.equal(found.certified, expected.certified)
        assert torch.equal(kept.predict(x), plain.predict(x))
    assert isinstance(kept.sampler, Recorded)
    assert kept.sampler.drawn == 0


def test_a_fresh_seed_is_drawn_once_and_stays(tmp_path: Path) -> None:
    path, x = tmp_path / "votes", points()
    a = Smooth(net(), 3, NOISE, ledger=path).certify(x, 50, 200)
    b = Smooth(net(), 3, NOISE, ledger=path).certify(x, 50, 200)
    assert a.fresh
    assert b.fresh
    assert a.seed == b.seed
    assert torch.equal(a.radius, b.radius)
    assert not Smooth(net(), 3, NOISE, seed=a.seed, ledger=path).certify(x, 50, 200).fresh
    assert Smooth(net(), 3, NOISE, ledger=tmp_path / "other").certify(x, 50, 200).seed != a.seed
    Smooth(net(), 3, NOISE, seed=5, ledger=tmp_path / "known")
    known = Smooth(net(), 3, NOISE, ledger=tmp_path / "known").certify(x, 50, 200)
    assert (known.seed, known.fresh) == (5, False)


def test_cut_anywhere_it_goes_on(tmp_path: Path) -> None:
    """Every length that a kill can leave: what is whole is used, and the file is whole again after."""
    path, x = tmp_path / "votes", points(3)
    expected = opened(path, 3).votes(x, 50, 3)
    whole = path.read_bytes()
    records = [i + 1 for i, byte in enumerate(whole) if byte == 10][2:]  # ends of the header and of each record
    for length in range(records[0], len(whole)):
        path.write_bytes(whole[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = opened(path)
        assert path.stat().st_size == max(end for end in records if end <= length)
        if length % 7 == 0:
            assert torch.equal(found.votes(x, 50, 3), expected)
            assert found.drawn == 50 * sum(end > length for end in records)
            assert path.read_bytes() == whole
        found.close()


def test_a_flipped_bit_anywhere_is_no_wrong_count(tmp_path: Path) -> None:
    path, x = tmp_path / "votes", points(2)
    expected = opened(path, 3).votes(x, 50, 3)
    whole = path.read_bytes()
    header = whole.index(b"\n", whole.index(b"\n", whole.index(b"\n") + 1) + 1) + 1
    refused = left_out = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        if place < header:
            with pytest.raises(ValueError, match=r"not a ledger of votes|its header is damaged"):
                opened(path)
            refused += 1
            continue
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = opened(path)
            assert torch.equal(found.votes(x, 50, 3), expected)
        found.close()
        assert found.drawn
        left_out += any("damaged records are left out" in str(w.message) for w in said)
    assert refused == header
    assert left_out > len(whole) - header - 10  # the last line's end is taken for a kill


def test_records_of_another_ledger_are_left_out(tmp_path: Path) -> None:
    x = points(2)
    for name, seed in (("a", 3), ("b", 4)):
        opened(tmp_path / name, seed).votes(x, 50, seed)
    with (tmp_path / "a").open("ab") as file:
        file.write(b"".join((tmp_path / "b").read_bytes().splitlines(keepends=True)[3:]))
    with pytest.warns(UserWarning, match=r"a: 2 damaged records are left out and drawn again"):
        found = opened(tmp_path / "a")
    assert torch.equal(found.votes(x, 50, 3), sampler().votes(x, 50, 3))


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inner, self.scale, self.sizes = net(), scale, (1, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * self.scale
        return out


def test_other_experiments_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes"
    opened(path, 3)
    for other, says in (
        (sampler(1), "holds votes of another model; give another path"),
        (Sampler(nn.Sequential(net(), nn.Identity()), 3, NOISE), "another model"),
        (sampler(noise=Gaussian(0.25)), r"another noise: Gaussian\(sigma=0.5\), not Gaussian\(sigma=0.25\)"),
        (Sampler(net(), 4, NOISE), "another num_classes: 3, not 4"),
        (Sampler(net(), 3, NOISE, compile=False), "another way to run"),
        (Sampler(net(), 3, NOISE, autocast=torch.bfloat16), "another way to run"),
    ):
        with pytest.raises(ValueError, match=says):
            Ledger(path).over(other)
    with pytest.raises(ValueError, match="holds votes of seed 3, got 4"):
        opened(path, 4)
    with pytest.raises(ValueError, match="holds votes of seed 3, got 4"):
        opened(path).votes(points(), 10, 4)
    with pytest.raises(ValueError, match="another model"):
        Ledger(path, about="a file").over(sampler())
    plain = tmp_path / "scaled"
    Ledger(plain).over(Sampler(Scaled(1.0), 3, NOISE))
    Ledger(plain).over(Sampler(Scaled(1.0).train(), 3, NOISE))  # the mode is not part of it
    with pytest.raises(ValueError, match="another model"):
        Ledger(plain).over(Sampler(Scaled(2.0), 3, NOISE))


class Remembers(nn.Module):
    """Keeps what it last saw."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        found: Tensor = self.inner(x)
        return found


def test_activations_that_are_kept_may_be_left_out(tmp_path: Path) -> None:
    x = points()
    smooth = Smooth(Remembers(), 3, NOISE, ledger=tmp_path / "votes", compile=False)
    smooth.predict(x, 100)
    with pytest.raises(ValueError, match=r"before its 'seen' changed; .* or name it in Ledger\(path, ignore=...\)"):
        smooth.predict(x, 100)
    kept = Ledger(tmp_path / "others", ignore=["seen"])
    smooth = Smooth(Remembers(), 3, NOISE, ledger=kept, compile=False)
    first = smooth.predict(x, 100)
    for model in (smooth.bare.model, Remembers()):
        assert torch.equal(Smooth(model, 3, NOISE, ledger=kept, compile=False).predict(x, 100), first)


def test_a_network_that_changes_is_noticed(tmp_path: Path) -> None:
    """Old votes are no votes of the new network, and the new one's must not be added to them."""
    model, x = Scaled(1.0), points()
    smooth = Smooth(model, 3, NOISE, ledger=tmp_path / "votes")
    first = smooth.certify(x, n=500)
    assert torch.equal(smooth.certify(x, n=500).radius, first.radius)
    model.inner[1].weight.data.add_(1e-3)
    for call in (smooth.certify, smooth.predict, smooth.predict_sequential, lambda x: smooth.certify_at(x, 0.1)):
        with pytest.raises(ValueError, match=r"votes of the network before its 'inner.1.weight' changed"):
            call(x)
    with pytest.raises(ValueError, match=r"before its 'inner.1.weight' changed"):
        recertify(smooth, Smooth(Scaled(1.0), 3, NOISE, seed=5), x, 0.1)
    model.load_state_dict(Scaled(1.0).state_dict())
    assert torch.equal(smooth.certify(x, n=500).radius, first.radius)
    model.scale = 2.0
    with pytest.raises(ValueError, match=r"before its 'scale' changed"):
        smooth.predict(x)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a ledger of votes of this version"),
        (b"\x00\xff" * 400, "not a ledger"),
        (b"fastrobust votes 2\n{}\n00\n", "not a ledger of votes of this version"),
        (b"fastrobust votes 1\n", "its header is damaged"),
        (b'fastrobust votes 1\n{"seed": 3}\nffffffffffffffff\n', "its header is damaged"),
    ],
)
def test_other_files_are_refused_and_left_as_they_are(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "votes"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        opened(path)
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match="path must be a file, got the folder"):
        opened(tmp_path)


def test_wrong_arguments_are_the_samplers(tmp_path: Path) -> None:
    smooth, x = Smooth(net(), 3, NOISE, seed=3, ledger=tmp_path / "votes"), points()
    calls: list[tuple[Any, str]] = [
        (lambda: smooth.predict(x[0, 0]), r"x must have shape \(batch, ...\)"),
        (lambda: smooth.predict(x / 0), "x must be finite"),
        (lambda: smooth.predict(x.long()), "x must"),
        (lambda: smooth.predict(x, index=torch.zeros(2)), "index must"),
        (lambda: Smooth(net(), 4, NOISE, ledger=tmp_path / "four").predict(x), "num_classes must be the model's, 3"),
    ]
    for call, says in calls:
        with pytest.raises((ValueError, TypeError), match=says):
            call()
    assert smooth.predict(x[:0]).shape == (0,)


def test_the_file_is_text(tmp_path: Path) -> None:
    """As docs/smoothing/scale.md says."""
    path = tmp_path / "votes"
    votes = opened(path, 3).votes(points(1), 40, 3, torch.tensor([7]), 100)[0]
    magic, header, check, record = path.read_text().splitlines()
    assert magic == ledger.MAGIC
    assert len(check) == 16
    about = json.loads(header)
    assert (about["noise"], about["num_classes"], about["seed"]) == ("Gaussian(sigma=0.5)", 3, 3)
    index, digest, first, samples, said, _ = record.split(" ")
    assert (index, first, samples, len(digest)) == ("7", "100", "40", 32)
    assert said == ",".join(f"{c}:{n}" for c, n in enumerate(votes.tolist()) if n)


def test_copies_without_a_vote_are_written_down(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * float("nan")

    for drawn in (80, 0):
        kept = Ledger(tmp_path / "votes").over(Sampler(Broken(), 3, NOISE), 3)
        assert int(kept.votes(points(2), 40, 3).sum()) == 0
        assert kept.drawn == drawn
