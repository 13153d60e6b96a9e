"""Certifies points as a program, also under torchrun: `python votes_worker.py FOLDER [SEED]`

It prints "votes" at each draw. At the end every process leaves what it found in FOLDER/rank-N.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from fastrobust import processes
from fastrobust.smoothing import Gaussian, Smooth, ledger, sampling
from fastrobust.training.ranks import Ranks

RADII = [0.05, 0.2]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))


def points() -> Tensor:
    return torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(1))


class Announced(sampling.Sampler):
    def votes(self, x: Tensor, samples: int, seed: int, index: Tensor | None = None, first: int = 0) -> Tensor:
        print("votes", flush=True)
        return super().votes(x, samples, seed, index, first)


def certify(smooth: Smooth) -> dict[str, Tensor]:
    x = points()
    fixed, several, one = smooth.certify(x, 50, 20_000), smooth.certify_at(x, RADII, n_max=5000), smooth.predict(x[:1])
    found = {f"{name} {key}": getattr(c, key) for name, c in (("fixed", fixed), ("several", several))
             for key in ("prediction", "radius", "certified", "samples")}  # fmt: skip
    return {**found, "one": one, "votes": smooth.sampler.votes(x, 77, several.seed, first=7)}


def main() -> None:
    torch.set_num_threads(1)
    folder, seed = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
    Ranks.join(torch.device("cpu"))
    ledger.PIECE = 500  # many writes, so that kills fall between them
    smooth = Smooth(net(), 3, Gaussian(0.5), seed=seed, ledger=folder / "votes", processes=True)
    smooth.bare.__class__ = Announced
    found, rank = certify(smooth), processes.place()[0]
    if processes.place()[1] > 1:
        try:
            smooth.sampler.votes(points(), 10, smooth.seed or 0, torch.arange(5) + rank)
        except ValueError as error:
            (folder / f"rank-{rank}.txt").write_text(str(error))
    torch.save(found, folder / f"rank-{rank}.pt")


if __name__ == "__main__":
    main()
