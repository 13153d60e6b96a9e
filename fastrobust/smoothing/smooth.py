"""Smoothed classifiers: predictions and certificates of g, which says what f says most often under noise."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastrobust import _checks
from fastrobust.processes import from_first
from fastrobust.smoothing import mixtures, sequential, statistics
from fastrobust.smoothing.certificate import Certificate, Prediction, radii_of
from fastrobust.smoothing.ledger import Ledger, Votes
from fastrobust.smoothing.noise import Noise, TwoClass
from fastrobust.smoothing.sampling import Sampler
from fastrobust.smoothing.sharding import Shared
from fastrobust.smoothing.statistics import Counts, Floats
from fastrobust.smoothing.units import Box, warn_of_noise, warn_of_values

__all__ = ["Smooth"]

COPIES = 50_000  # at a time, of all samples together, where a progress bar shows how far it is
FIRST, GROWTH = 10, 1.25  # of the looks of predict_sequential


class Smooth:
    """g(x) = the class that f(x + noise) most probably is (Cohen et al., ICML 2019).

    Args:
        model: f, from (batch, ...) to logits (batch, classes); run in eval mode and left as it is.
        num_classes: how many logits there are.
        noise: one of `fastrobust.smoothing`, as `Gaussian(sigma)`.
        seed: key of the noise, 0 .. 2^64 - 1. None: drawn afresh from the system at each call, and recorded: whoever
            knows the noise beforehand can choose x so that the statistics are wrong.
        compile: "auto", True or False, as in the attacks: where the native engine serves, noise, network and votes are
            one call, and no noisy batch is ever stored.
        autocast: torch.bfloat16 or torch.float16: the network runs in 16 bits (`torch.autocast`), and the certificate
            is for that network. None: in its own types, also where the caller has an autocast of his own.
        progress: show a bar, with the share certified so far.
        ledger: a file, or a `Ledger`, that votes are written to and read from, so that a killed run goes on where it
            was. The seed, if None, is then the ledger's, drawn when that was made.
        processes: share the copies out over the processes of `torchrun`, all of which must make the same calls.
        box: (lo, hi) of the input's values; None: no box. A warning says where x leaves it, or where sigma exceeds its
            width: sigma is in the units of the model's input, so a model that normalises must do so inside.
        clip: the model sees noisy copies clipped to the box. The certificate is then for that other f; by default
            nothing is clipped after noise is added.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, noise: Noise, *, seed: int | None = None,
        compile: str | bool = "auto", autocast: torch.dtype | None = None, progress: bool = False,
        ledger: str | Path | Ledger | None = None, processes: bool = False, box: Box | None = (0.0, 1.0),
        clip: bool = False,
    ) -> None:  # fmt: skip
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**64):
            raise ValueError(f"Smooth: seed must be None or in 0 .. 2^64 - 1, got {seed!r}")
        if box is not None:
            _checks.check_box("Smooth", box)
        elif clip:
            raise ValueError("Smooth: clip=True needs a box, got None")
        if clip and box is not None and isinstance(model, nn.Module):
            model = nn.Sequential(nn.Hardtanh(*box), model)
        warn_of_noise(noise, box)
        self.box = box
        self.bare = Sampler(model, num_classes, noise, compile, autocast)
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

        Raises:
            ValueError: also where n copies could not prove anything; so do all other methods.
        """
        ids = self._begin(x, index, alpha, n=n)
        if not statistics.two_sided(n, 0) <= alpha:
            raise ValueError(f"predict: n = {n} samples cannot prove anything at alpha = {alpha}; use more")

        def judge(rows: slice, counts: Counts) -> tuple[Counts, Floats]:
            top = np.sort(np.pad(counts, ((0, 0), (1, 0))), axis=1)
            sure = statistics.two_sided(top[:, -1], top[:, -2]) <= alpha
            return np.where(sure, counts.argmax(1), -1), np.zeros(len(counts))

        return self._judged(x, n, self._key(), ids, 0, judge, "decided")[0]

    def predict_sequential(
        self, x: Tensor, n_max: int = 10_000, alpha: float = 0.001, index: Tensor | None = None
    ) -> Prediction:
        """g(x), or -1 after n_max copies, with as many copies as that takes: at p = 0.99 some 30.

        Classes are ruled out one by one (`mixtures.Elimination`). An answer is wrong with a probability of at most
        alpha. Args as those of `predict`.
        """
        ids = self._begin(x, index, alpha, n_max=n_max)
        if n_max < FIRST or mixtures.half_beta(n_max - FIRST, n_max - FIRST, 0.5) < -math.log(alpha):
            raise ValueError(f"predict_sequential: n_max = {n_max} samples cannot prove anything at alpha = {alpha}")
        key, race = self._key(), mixtures.Elimination(len(x), self.num_classes, alpha)
        samples, going, before = np.zeros(len(x), dtype=np.int64), np.arange(len(x)), 0
        with tqdm(total=len(x), unit="sample", disable=not self.progress) as bar:
            for look in sequential.looks_until(n_max, FIRST, GROWTH):
                if not len(going):
                    break
                at = torch.from_numpy(going).to(x.device)
                votes = self.sampler.votes(x[at], look - before, key, ids[at], before)
                race.add(going, votes.cpu().numpy())
                samples[going], before = look, look
                going = going[race.left[going].sum(1) > 1]
                bar.update(len(x) - len(going) - bar.n)
        found, used = (torch.from_numpy(part).to(x.device) for part in (race.answers(), samples))
        return Prediction(found, used, key, self.fresh)

    def certify(
        self, x: Tensor, n0: int = 100, n: int = 100_000, alpha: float = 0.001, index: Tensor | None = None, *,
        runner_up: bool = False,
    ) -> Certificate:  # fmt: skip
        """Cohen's CERTIFY: n0 copies choose the class, n others bound its probability p from below, by Clopper-Pearson.

        Args as those of `predict`, and
            n0: copies for the choice, independent of the n.
            runner_up: bound the runner-up's probability from above too, each bound at alpha / 2: larger radii where
                several other classes share the votes, and slightly smaller ones where one has them all. For
                Gaussian noise.
        """
        ids = self._begin(x, index, alpha, n0=n0, n=n)
        dim, key = math.prod(x.shape[1:]), self._key()
        between = self._two_class("certify: runner_up") if runner_up else None

        def radius(own: Counts, counts: Counts) -> Floats:
            votes = counts[np.arange(len(own)), own]
            if between is None:
                return self.noise.radius(statistics.lower_bound(votes, n, alpha), dim)
            return _between(between, votes, statistics.strongest(counts, own, counts, 1), n, alpha, dim)

        _need_some("certify", radius, self.num_classes, n, alpha)
        chosen = self.sampler.votes(x, n0, key, ids).argmax(1).cpu().numpy()

        def judge(rows: slice, counts: Counts) -> tuple[Counts, Floats]:
            found = radius(chosen[rows], counts)
            return np.where(found > 0, chosen[rows], -1), found

        return self._certificate(x, n0 + n, key, *self._judged(x, n, key, ids, n0, judge))

    def certify_top_k(
        self, x: Tensor, y: Tensor, k: int, n0: int = 100, n: int = 100_000, alpha: float = 0.001,
        index: Tensor | None = None,
    ) -> Certificate:  # fmt: skip
        """Radii within which y is among the k most probable classes of g (Jia et al., ICLR 2020). For Gaussian noise.

        n0 copies guess the strongest rivals; n others bound the probability of y from below at alpha / 2, and, each
        at alpha / 2k for s = 1 .. k, that of the s most probable classes beside y and the k - s strongest rivals.

        Args as those of `certify`, and
            y: (batch,) int64 classes, chosen without regard to the noise.
            k: 1 .. num_classes - 1; 1 gives the radii of `certify` with runner_up, for y.

        Returns:
            `prediction` is y, or -1 where no radius was proven.
        """
        ids = self._begin(x, index, alpha, n0=n0, n=n)
        _checks.check_labels("certify_top_k", "y", y, x)
        if not (isinstance(k, Integral) and 1 <= k < self.num_classes):
            raise ValueError(f"certify_top_k: k must be in 1 .. num_classes - 1 = {self.num_classes - 1}, got {k!r}")
        own = y.cpu().numpy()
        if ((own < 0) | (own >= self.num_classes)).any():
            raise ValueError(f"certify_top_k: y must be in 0 .. {self.num_classes - 1}")
        dim, key, between = math.prod(x.shape[1:]), self._key(), self._two_class("certify_top_k")

        def radius(own: Counts, counts: Counts, guess: Counts | None = None) -> Floats:
            rivals = statistics.strongest(counts, own, counts if guess is None else guess, k)
            return _between(between, counts[np.arange(len(own)), own], rivals, n, alpha, dim)

        _need_some("certify_top_k", radius, self.num_classes, n, alpha)
        guess = self.sampler.votes(x, n0, key, ids).cpu().numpy()

        def judge(rows: slice, counts: Counts) -> tuple[Counts, Floats]:
            found = radius(own[rows], counts, guess[rows])
            return np.where(found > 0, own[rows], -1), found

        return self._certificate(x, n0 + n, key, *self._judged(x, n, key, ids, n0, judge))

    def certify_at(
        self, x: Tensor, radii: float | Sequence[float], n0: int = 100, n_max: int = 100_000, alpha: float = 0.001,
        index: Tensor | None = None, *, test: str = "exact",
    ) -> Certificate:  # fmt: skip
        """Whether g says the same within each radius: as many samples as that takes, by group-sequential tests.

        Looks and boundaries are fixed before sampling (`sequential.sequential`), and the claims of a sample hold all
        together. A sample leaves once all its radii are decided or given up.

        Args:
            radii: one or more, each > 0.
            n_max: samples after which every test ends.
            test: "exact" needs the fewest samples; "half_beta", "kt" and "union" are those of the literature.
            Others as those of `certify`.

        Raises:
            ValueError: also where n_max samples could not certify the smallest radius.
        """
        ids = self._begin(x, index, alpha, n0=n0, n_max=n_max)
        if test not in sequential.TESTS:
            raise ValueError(f"certify_at: test must be one of {', '.join(sequential.TESTS)}, got {test!r}")
        wanted = radii_of("certify_at", radii)
        looks = sequential.looks_until(n_max)
        order = sorted(range(len(wanted)), key=wanted.__getitem__)
        dim = math.prod(x.shape[1:])
        tests = sequential.nested([self.noise.probability(wanted[k], dim) for k in order], alpha, looks, test)
        if not tests[0].possible:
            raise ValueError(f"certify_at: n_max = {n_max} samples cannot certify the radius {min(wanted)} at {alpha}")
        key = self._key()
        chosen = self.sampler.votes(x, n0, key, ids).argmax(1)
        upper, lower = (
            torch.tensor(part, device=x.device) for part in ([t.upper for t in tests], [t.lower for t in tests])
        )
        certified = torch.zeros(len(x), len(wanted), dtype=torch.bool, device=x.device)
        going = torch.tensor([t.possible for t in tests], device=x.device).repeat(len(x), 1)
        counts, samples = torch.zeros_like(chosen), torch.full_like(chosen, n0)
        with tqdm(total=len(x), unit="sample", disable=not self.progress) as bar:
            for j, look in enumerate(looks):
                rows = going.any(1).nonzero()[:, 0]  # the look's one wait for the device
                if self.progress:
                    bar.set_postfix(certified=f"{float(certified.any(1).double().mean()):.1%}", copies=look)
                    bar.update(len(x) - len(rows) - bar.n)
                if not len(rows):
                    break
                before = looks[j - 1] if j else 0
                votes = self.sampler.votes(x[rows], look - before, key, ids[rows], first=n0 + before)
                counts[rows] += votes.gather(1, chosen[rows, None])[:, 0]
                samples[rows] += look - before
                certified |= going & (counts[:, None] >= upper[:, j])
                going &= (counts[:, None] > lower[:, j]) & ~certified
            bar.update(len(x) - bar.n)
        certified = certified[:, torch.tensor(order).argsort().to(x.device)]
        radius = (certified * torch.tensor(wanted, dtype=torch.float64, device=x.device)).amax(1)
        return Certificate(chosen, radius, certified, samples, key, self.fresh)

    def _begin(self, x: Tensor, index: Tensor | None, alpha: float, **counts: int) -> Tensor:
        """Checks, and the ids."""
        _need(alpha, **counts)
        _checks.check_tensor("Smooth", "x", x, _checks.ITERATES)
        if x.dim() < 2:
            raise ValueError(f"Smooth: x must have shape (batch, ...), got {tuple(x.shape)}")
        warn_of_values(x, self.box)
        self.sampler.begin()
        if index is None:
            return torch.arange(len(x), device=x.device)
        _checks.check_labels("Smooth", "index", index, x)
        return index

    def _judged(
        self, x: Tensor, n: int, key: int, ids: Tensor, first: int,
        judge: Callable[[slice, Counts], tuple[Counts, Floats]], done: str = "certified",
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Classes and radii that `judge` finds for (rows, counts of n copies each), some samples at a time."""
        said, radius = np.full(len(x), -1), np.zeros(len(x))
        size = max(1, COPIES // n)
        with tqdm(total=len(x), unit="sample", disable=not self.progress) as bar:
            for begin in range(0, len(x), size):
                rows = slice(begin, begin + size)
                counts = self.sampler.votes(x[rows], n, key, ids[rows], first).cpu().numpy()
                said[rows], radius[rows] = judge(rows, counts)
                bar.set_postfix({done: f"{(said[: rows.stop] >= 0).mean():.1%}"}, refresh=False)
                bar.update(len(counts))
        return torch.from_numpy(said).to(x.device), torch.from_numpy(radius).to(x.device)

    def _certificate(self, x: Tensor, samples: int, key: int, said: Tensor, radius: Tensor) -> Certificate:
        none = torch.zeros(len(x), 0, dtype=torch.bool, device=x.device)
        return Certificate(said, radius, none, torch.full_like(said, samples), key, self.fresh)

    def _two_class(self, what: str) -> TwoClass:
        if not isinstance(self.noise, TwoClass):
            raise ValueError(f"{what} needs a noise that has two-class radii, as Gaussian, got {self.noise}")
        return self.noise

    def _key(self) -> int:
        if self.seed is not None:
            return self.seed
        return from_first(lambda: secrets.randbits(64)) if self.processes else secrets.randbits(64)


def _between(noise: TwoClass, own: Counts, rivals: Counts, n: int, alpha: float, dim: int) -> Floats:
    """The radius that n votes prove, of them `own` (batch,) for the class and rivals[s - 1] for any s others."""
    p_a = statistics.lower_bound(own, n, alpha / 2)
    level = alpha / (2 * len(rivals))
    p_b = [np.minimum(statistics.upper_bound(votes, n, level), 1 - p_a) for votes in rivals]
    found: Floats = np.stack([noise.radius_between(p_a, p, dim, s) for s, p in enumerate(p_b, 1)]).max(axis=0)
    return found


def _need_some(name: str, radius: Callable[[Counts, Counts], Floats], classes: int, n: int, alpha: float) -> None:
    """Raises where even unanimous votes prove nothing."""
    unanimous = np.eye(1, classes, dtype=np.int64) * n
    if not radius(np.zeros(1, dtype=np.int64), unanimous)[0] > 0:
        raise ValueError(f"{name}: n = {n} samples cannot certify anything at alpha = {alpha}; use more")


def _need(alpha: float, **counts: int) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"Smooth: alpha must be between 0 and 1, got {alpha!r}")
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 1:
            raise ValueError(f"Smooth: {name} must be an integer >= 1, got {count!r}")
