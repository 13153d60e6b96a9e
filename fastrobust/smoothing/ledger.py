"""A ledger of votes: what was drawn is written down, so that a killed run goes on where it was.

Votes are a function of the network, the noise, the seed, the sample with its id, and the range of copies. The ledger
names the first three in its header and the others in its records; whoever asks for votes that it holds gets those, and
the rest is drawn and added. Counts are those of a run that was never interrupted.

The file is text (docs/smoothing/scale.md). Every record carries a checksum that covers the header's, so that a damaged
record, or one of another ledger, is never counted: it is left out with a warning, and its copies are drawn again.
"""

from __future__ import annotations

import glob
import hashlib
import json
import secrets
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastrobust import _backend, _checks, processes
from fastrobust._files import replacing
from fastrobust.smoothing.fingerprint import digest_of, parts_of
from fastrobust.smoothing.sampling import BATCH, Sampler

__all__ = ["Ledger", "Recorded", "Votes"]

MAGIC = "fastrobust votes 1"
PIECE = 10 * BATCH  # copies drawn between two writes: what a kill may cost

Held = dict[tuple[int, str], dict[tuple[int, int], str]]
"""Sample's id and digest -> first copy and number of copies -> votes as they are written."""


class Votes(Protocol):
    """What certificates draw from: `Sampler`, or one in front of it."""

    @property
    def num_classes(self) -> int: ...

    def begin(self) -> None:
        """Called before a certificate's first votes."""
        ...

    def votes(self, x: Tensor, samples: int, seed: int, index: Tensor | None = None, first: int = 0) -> Tensor: ...


@dataclass(frozen=True)
class Header:
    """Whose votes these are.

    Attributes:
        model: digest of the network's parameters, buffers and structure.
        noise: the noise as it prints.
        num_classes: logits.
        runs: how the network was run, on which logits may depend in their last bits.
        seed: key of the noise.
        fresh: whether the seed was drawn when the ledger was made.
    """

    model: str
    noise: str
    num_classes: int
    runs: str
    seed: int
    fresh: bool

    def text(self) -> str:
        body = f"{MAGIC}\n{json.dumps(asdict(self))}\n"
        return f"{body}{_check(body.encode())}\n"


class Ledger:
    """Votes of one network under one noise and one seed, on disk.

    Processes that share the work write files of their own, `path`, `path`.1 and so on, and read all of them: how many
    there are may change from run to run.

    Args:
        path: of the file; it is made where there is none.
        about: what else the network's votes depend on, if its parameters, buffers and attributes do not tell, such as
            the code of its `forward`.
        ignore: names of attributes, as "features" or "block.features", that change without changing what the network
            says, as where it keeps activations.
    """

    def __init__(self, path: str | Path, about: str = "", ignore: Sequence[str] = ()) -> None:
        self.path, self.about, self.ignore = Path(path), about, frozenset(ignore)

    def over(self, sampler: Sampler, seed: int | None = None, shared: bool = False) -> Recorded:
        """The sampler with this ledger in front of it.

        Args:
            seed: None: the ledger's own, which is drawn afresh where it is made here.
            shared: whether all processes of `torchrun` open it together.

        Raises:
            ValueError: where the file is no ledger, or one of another network, noise or seed.
        """
        header = processes.from_first(lambda: self._open(sampler, seed)) if shared else self._open(sampler, seed)
        rank = processes.place()[0] if shared else 0
        own = Path(f"{self.path}.{rank}") if rank else self.path
        if not own.exists():
            _make(own, header)
        named = self.path.parent.glob(f"{glob.escape(self.path.name)}.*")
        others = [path for path in named if path.suffix[1:].isdigit()]
        held: Held = {}
        for path in sorted({self.path, own, *others}):
            for key, first, samples, votes in _records(path, header, cut=path == own):
                held.setdefault(key, {})[first, samples] = votes
        return Recorded(sampler, own, header, held, header.fresh and seed is None, self.ignore)

    def _open(self, sampler: Sampler, seed: int | None) -> Header:
        """The file's header, or that of the file made here: the network is fixed before a seed is drawn."""
        if self.path.is_dir():
            raise ValueError(f"Ledger: path must be a file, got the folder {self.path}")
        if not self.path.parent.is_dir():
            raise ValueError(f"Ledger: path must be in a folder that exists, got {self.path}")
        settings = {k: v for k, v in vars(sampler).items() if k not in ("model", "noise") and not k.startswith("_")}
        runs = f"torch {torch.__version__}, {_kernels()}, {settings}"
        mark = (
            digest_of(parts_of(sampler.model, self.ignore), self.about),
            repr(sampler.noise),
            sampler.num_classes,
            runs,
        )
        if not self.path.exists():
            header = Header(*mark, secrets.randbits(64) if seed is None else seed, seed is None)
            _make(self.path, header)
            return header
        with self.path.open("rb") as file:
            header = _header(self.path, file.readline(), file.readline(), file.readline())
        theirs = (header.model, header.noise, header.num_classes, header.runs)
        for what, found, wanted in zip(("model", "noise", "num_classes", "way to run"), theirs, mark, strict=True):
            if found != wanted:
                shown = "" if what == "model" else f": {found}, not {wanted}"
                raise ValueError(f"Ledger: {self.path} holds votes of another {what}{shown}; give another path")
        if seed is not None and seed != header.seed:
            raise ValueError(f"Ledger: {self.path} holds votes of seed {header.seed}, got {seed}; give another path")
        return header


class Recorded:
    """Votes from a ledger where it holds them; others are drawn and written down.

    Attributes:
        seed: the ledger's.
        fresh: whether that was drawn when the ledger was made, and nobody named it since. The network was fixed before;
            inputs must have been chosen without regard to it.
        drawn: copies that were not in the ledger.
    """

    def __init__(
        self, sampler: Sampler, path: Path, header: Header, held: Held, fresh: bool, ignore: frozenset[str]
    ) -> None:
        self.sampler, self.path, self.num_classes = sampler, path, sampler.num_classes
        self.seed, self.fresh, self.drawn = header.seed, fresh, 0
        self._ignore, self._parts = ignore, parts_of(sampler.model, ignore)
        self._held, self._salt = held, _salt(header)
        self._file = path.open("ab")

    def votes(self, x: Tensor, samples: int, seed: int, index: Tensor | None = None, first: int = 0) -> Tensor:
        """As those of `Sampler`."""
        if seed != self.seed:
            raise ValueError(f"Ledger: {self.path} holds votes of seed {self.seed}, got {seed}")
        if not isinstance(x, Tensor) or x.dim() < 2 or not x.numel() or samples < 1:
            return self.sampler.votes(x, samples, seed, index, first)  # nothing to draw, or wrong, and it says how
        index = torch.arange(len(x), device=x.device) if index is None else index
        _checks.check_labels("Smooth", "index", index, x)
        counts = torch.zeros(len(x), self.num_classes, dtype=torch.int64)
        keys = list(zip(index.tolist(), _digests(x), strict=True))
        gaps: dict[tuple[int, int], list[int]] = {}
        for row, key in enumerate(keys):
            for begin, count, votes in self._cover(key, first, first + samples):
                if votes is None:
                    gaps.setdefault((begin, count), []).append(row)
                else:
                    _add(counts[row], votes)
        for (begin, count), missing in gaps.items():
            rows = torch.tensor(missing)
            for part in rows.split(max(1, PIECE // count)):
                for start in range(begin, begin + count, PIECE):
                    size, at = min(PIECE, begin + count - start), part.to(x.device)
                    found = self.sampler.votes(x[at], size, seed, index[at], start).cpu()
                    self._write([keys[row] for row in part.tolist()], start, size, found)
                    counts[part] += found
        return counts.to(x.device)

    def begin(self) -> None:
        """Raises ValueError where the network is no longer the one whose votes these are."""
        was, now = self._parts, parts_of(self.sampler.model, self._ignore)
        if now != was:
            name = next(name for name in [*was, *now] if was.get(name) != now.get(name))
            raise ValueError(
                f"Ledger: {self.path} holds votes of the network before its {name!r} changed; "
                "make a new Smooth with another path, or name it in Ledger(path, ignore=...) if it does not matter"
            )

    def close(self) -> None:
        """Close the file. What was written stays."""
        self._file.close()

    def _cover(self, key: tuple[int, str], first: int, end: int) -> Iterator[tuple[int, int, str | None]]:
        """first .. end - 1 in ranges, each with its votes, or None where they are to be drawn."""
        ranges = self._held.get(key, {})
        inside = sorted((start, -size) for start, size in ranges if start >= first and start + size <= end)
        for start, size in inside:
            if start < first:  # overlaps the one before
                continue
            if start > first:
                yield first, start - first, None
            yield start, -size, ranges[start, -size]
            first = start - size
        if first < end:
            yield first, end - first, None

    def _write(self, keys: list[tuple[int, str]], first: int, samples: int, counts: Tensor) -> None:
        lines = []
        for (index, digest), row in zip(keys, counts.tolist(), strict=True):
            votes = ",".join(f"{c}:{count}" for c, count in enumerate(row) if count) or "-"
            body = f"{index} {digest} {first} {samples} {votes}"
            lines.append(f"{body} {_check(body.encode(), self._salt)}\n")
            self._held.setdefault((index, digest), {})[first, samples] = votes
        self._file.write("".join(lines).encode())
        self._file.flush()
        self.drawn += samples * len(keys)


def _add(counts: Tensor, votes: str) -> None:
    for part in votes.split(",") if votes != "-" else ():
        label, _, count = part.partition(":")
        counts[int(label)] += int(count)


def _records(path: Path, header: Header, cut: bool) -> Iterator[tuple[tuple[int, str], int, int, str]]:
    """The sound records of a file: key, first copy, copies, votes. A last line that has no end is what a kill left."""
    salt, damaged = _salt(header), 0
    with path.open("r+b" if cut else "rb") as file:
        if _header(path, file.readline(), file.readline(), file.readline()) != header:
            raise ValueError(f"Ledger: {path} belongs to another ledger than its neighbours; move it away")
        sound = file.tell()
        for line in file:
            if not line.endswith(b"\n"):
                break
            sound += len(line)
            body, _, check = line[:-1].rpartition(b" ")
            if check.decode("ascii", "replace") != _check(body, salt):
                damaged += 1
                continue
            index, digest, first, samples, votes = body.decode().split(" ")
            yield (int(index), digest), int(first), int(samples), votes
        if cut:
            file.truncate(sound)
    if damaged:
        warnings.warn(f"Ledger: {path}: {damaged} damaged records are left out and drawn again", stacklevel=4)


def _header(path: Path, magic: bytes, text: bytes, check: bytes) -> Header:
    if magic.decode("ascii", "replace") != f"{MAGIC}\n":
        raise ValueError(f"Ledger: {path} is not a ledger of votes of this version")
    if check.decode("ascii", "replace") != f"{_check(magic + text)}\n":
        raise ValueError(f"Ledger: {path}: its header is damaged, so whose votes it holds is not known")
    return Header(**json.loads(text))


def _make(path: Path, header: Header) -> None:
    """A kill leaves either no file or a whole header."""
    with replacing(path) as file:
        file.write(header.text().encode())


def _salt(header: Header) -> bytes:
    return hashlib.blake2b(header.text().encode(), digest_size=16).digest()


def _check(body: bytes, salt: bytes = b"") -> str:
    return hashlib.blake2b(body, digest_size=8, key=salt).hexdigest()


def _digests(x: Tensor) -> list[str]:
    """Of each sample's values, shape, type and kind of device: an id alone does not say what it was drawn for."""
    about = f"{tuple(x.shape[1:])} {x.dtype} {x.device.type}".encode()
    rows = x.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    return [hashlib.blake2b(about + row.tobytes(), digest_size=16).hexdigest() for row in rows]


def _kernels() -> str:
    native: Any = _backend.cpu if _backend.backend != "reference" else None
    return "reference" if native is None else f"native {native.isa()}"
