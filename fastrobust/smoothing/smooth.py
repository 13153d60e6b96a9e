"""Smoothed classifiers: predictions and certificates of g, which says what f says most often under noise."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastrobust.processes import from_first
from fastrobust.smoothing import statistics
from fastrobust.smoothing.ledger import Ledger, Votes
from fastrobust.smoothing.noise import Noise
from fastrobust.smoothing.sampling import Sampler
from fastrobust.smoothing.sharding import Shared

__all__ = ["Certificate", "Smooth"]


@dataclass(frozen=True)
class Certificate:
    """Of the smoothed classifier g, never of f: that anything said of a sample is wrong has a probability <= alpha.

    Attributes:
        prediction: (batch,) int64: g's class, -1 where `certify` abstains; the class that `certify_at` tested.
        radius: (batch,) float64: within it, in the noise's norm and the input's units, g says the same; of `certify_at`
            the largest of those certified; 0 where there is none.
        certified: (batch, radii) bool: which of the given radii hold; `certify` is given none.
        samples: (batch,) int64, those that chose the class included.
        seed: key of the noise.
        fresh: whether the seed was drawn for this call, or for the ledger that it goes on with. What a replay says
            holds for an x and a model that were chosen without regard to that noise alone.
    """

    prediction: Tensor
    radius: Tensor
    certified: Tensor
    samples: Tensor
    seed: int
    fresh: bool


class Smooth:
    """g(x) = the class that f(x + noise) most probably is (Cohen et al., ICML 2019).

    Args:
        model: f, from (batch, ...) to logits (batch, classes); run in eval mode and left as it is.
        num_classes: how many logits there are.
        noise: `Gaussian(sigma)`.
        seed: key of the noise, 0 .. 2^64 - 1. None: drawn afresh from the system at each call, and recorded: whoever
            knows the noise beforehand can choose x so that the statistics are wrong.
        compile: "auto", True or False, as in the attacks: where the native engine serves, noise, network and votes are
            one call, and no noisy batch is ever stored.
        progress: show a bar.
        ledger: a file, or a `Ledger`, that votes are written to and read from, so that a killed run goes on where it
            was. The seed, if None, is then the ledger's, drawn when that was made.
        processes: share the copies out over the processes of `torchrun`, all of which must make the same calls.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, noise: Noise, *, seed: int | None = None,
        compile: str | bool = "auto", progress: bool = False, ledger: str | Path | Ledger | None = None,
        processes: bool = False,
    ) -> None:  # fmt: skip
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**64):
            raise ValueError(f"Smooth: seed must be None or in 0 .. 2^64 - 1, got {seed!r}")
        self.bare = Sampler(model, num_classes, noise, compile)
        self.num_classes, self.noise, self.seed, self.progress = num_classes, noise, seed, progress
        self.sampler: Votes = self.bare
        self.fresh, self.processes = seed is None, processes
        if ledger is not None:
            recorded = (ledger if isinstance(ledger, Ledger) else Ledger(ledger)).over(self.bare, seed, processes)
            self.sampler, self.seed, self.fresh = recorded, recorded.seed, recorded.fresh
        if processes:
            self.sampler = Shared(self.sampler)

    def predict(self, x: Tensor, n: int = 1000, alpha: float = 0.001, index: Tensor | None = None) -> Tensor:
        """g(x), or -1: (batch,). An answer is wrong with a probability of at most alpha (Cohen's PREDICT).

        Args:
            x: (batch, ...), float32 or float64.
            n: noisy copies.
            index: (batch,) int64 ids that key the noise; 0 .. batch - 1 if None.
        """
        _need(alpha, n=n)
        votes = self.sampler.votes(x, n, self._key(), index)
        top = votes.topk(min(2, self.num_classes), 1)
        counts = torch.cat([top.values, votes.new_zeros(len(x), 1)], 1)[:, :2].cpu().numpy()
        sure = torch.from_numpy(statistics.two_sided(counts[:, 0], counts[:, 1]) <= alpha).to(x.device)
        return torch.where(sure, top.indices[:, 0], -1)

    def certify(
        self, x: Tensor, n0: int = 100, n: int = 100_000, alpha: float = 0.001, index: Tensor | None = None
    ) -> Certificate:
        """Cohen's CERTIFY: n0 copies choose the class, n others bound its probability p from below, by Clopper-Pearson.

        Args as those of `predict`, and n0: copies for the choice, independent of the n.
        """
        _need(alpha, n0=n0, n=n)
        key = self._key()
        chosen = self.sampler.votes(x, n0, key, index).argmax(1)
        counts = self.sampler.votes(x, n, key, index, first=n0).gather(1, chosen[:, None])[:, 0]
        radius = self.noise.radius(statistics.lower_bound(counts.cpu().numpy(), n, alpha), math.prod(x.shape[1:]))
        found = torch.from_numpy(np.asarray(radius)).to(x.device)
        prediction, samples = torch.where(found > 0, chosen, -1), torch.full_like(chosen, n0 + n)
        none = torch.zeros(len(x), 0, dtype=torch.bool, device=x.device)
        return Certificate(prediction, found, none, samples, key, self.fresh)

    def certify_at(
        self, x: Tensor, radii: float | Sequence[float], n0: int = 100, n_max: int = 100_000, alpha: float = 0.001,
        index: Tensor | None = None,
    ) -> Certificate:  # fmt: skip
        """Whether g says the same within each radius: as many samples as that takes, by group-sequential tests.

        Looks and boundaries are fixed before sampling (`statistics.sequential`), and the claims of a sample hold all
        together. A sample leaves once all its radii are decided or given up.

        Args:
            radii: one or more, each > 0.
            n_max: samples after which every test ends.
            Others as those of `certify`.

        Raises:
            ValueError: also where n_max samples could not certify the smallest radius.
        """
        _need(alpha, n0=n0, n_max=n_max)
        wanted = [float(r) for r in ([radii] if isinstance(radii, (int, float)) else radii)]
        if not wanted or not all(0 < r < float("inf") for r in wanted):
            raise ValueError(f"certify_at: radii must be finite numbers > 0, got {radii!r}")
        looks = statistics.looks_until(n_max)
        order = sorted(range(len(wanted)), key=wanted.__getitem__)
        dim = math.prod(x.shape[1:])
        tests = statistics.nested([self.noise.probability(wanted[k], dim) for k in order], alpha, looks)
        if not tests[0].possible:
            raise ValueError(f"certify_at: n_max = {n_max} samples cannot certify the radius {min(wanted)} at {alpha}")
        key = self._key()
        ids = torch.arange(len(x), device=x.device) if index is None else index
        chosen = self.sampler.votes(x, n0, key, ids).argmax(1)
        upper, lower = (
            torch.tensor(part, device=x.device) for part in ([t.upper for t in tests], [t.lower for t in tests])
        )
        certified = torch.zeros(len(x), len(wanted), dtype=torch.bool, device=x.device)
        going = torch.tensor([t.possible for t in tests], device=x.device).repeat(len(x), 1)
        counts, samples = torch.zeros_like(chosen), torch.full_like(chosen, n0)
        for j, look in enumerate(tqdm(looks, "looks", disable=not self.progress)):
            rows = going.any(1).nonzero()[:, 0]
            if not len(rows):
                break
            before = looks[j - 1] if j else 0
            votes = self.sampler.votes(x[rows], look - before, key, ids[rows], first=n0 + before)
            counts[rows] += votes.gather(1, chosen[rows, None])[:, 0]
            samples[rows] += look - before
            certified |= going & (counts[:, None] >= upper[:, j])
            going &= (counts[:, None] > lower[:, j]) & ~certified
        certified = certified[:, torch.tensor(order).argsort().to(x.device)]
        radius = (certified * torch.tensor(wanted, dtype=torch.float64, device=x.device)).amax(1)
        return Certificate(chosen, radius, certified, samples, key, self.fresh)

    def _key(self) -> int:
        if self.seed is not None:
            return self.seed
        return from_first(lambda: secrets.randbits(64)) if self.processes else secrets.randbits(64)


def _need(alpha: float, **counts: int) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"Smooth: alpha must be between 0 and 1, got {alpha!r}")
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"Smooth: {name} must be an integer >= 1, got {count!r}")
