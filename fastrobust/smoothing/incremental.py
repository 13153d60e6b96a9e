"""Certificates of a changed network from the votes of the one it was made of (docs/smoothing/scale.md, with the proof).

After Ugare et al., "Incremental Randomized Smoothing Certification", ICLR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrobust import processes
from fastrobust.smoothing import statistics
from fastrobust.smoothing.certificate import Certificate, radii_of
from fastrobust.smoothing.smooth import Smooth

__all__ = ["recertify"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

OLD, PAIRS, ANEW = 0.1, 0.4, 0.5  # shares of alpha: the old votes, the disparity, certifying anew
ROOM = 2.0  # times the pairs that would do if no vote were lost: with it about a fifth of the slack may be


def recertify(
    old: Smooth, new: Smooth, x: Tensor, radii: float | Sequence[float], n0: int = 100, n: int = 100_000,
    alpha: float = 0.001, index: Tensor | None = None,
) -> Certificate:  # fmt: skip
    """Whether the new network's smoothed classifier says the same within each radius, as far as the old one's does.

    Let p be the old network's probability of its class c, and zeta that a noisy copy is c for the old network and not
    for the new one: the new network's probability of c is at least p - zeta. The old votes bound p from below; copies
    under fresh noise that both networks see bound zeta from above. How many, the old votes say: as many as show that
    zeta is below what the old votes have to spare at the largest radius they prove. Where they show it not, or would
    take more than n passes, the sample is certified anew by `certify_at`. It is not where the old votes prove nothing.

    Args:
        old: with the seed or the ledger of its votes: copies n0 .. n0 + n - 1, a number fixed in advance, as `certify`
            draws them. Those that its ledger lacks are drawn.
        new: another network under the same noise, with a seed that is not the old one's.
        x: (batch, ...), as were given to `old`.
        radii: one or more, each > 0.
        n0, n: copies that chose and that bound the old class; n is also the most that certifying anew takes.
        alpha: the probability that anything said of a sample is wrong is at most this, over the noise of both.
        index: (batch,) int64 ids, as were given to `old`.

    Returns:
        The new network's certificate, as that of `certify_at`; `samples` counts the passes of both networks under fresh
        noise.

    Raises:
        ValueError: naming the argument.
    """
    wanted = radii_of("recertify", radii)
    if not 0 < alpha < 1:
        raise ValueError(f"recertify: alpha must be between 0 and 1, got {alpha!r}")
    if old.noise != new.noise or old.num_classes != new.num_classes:
        raise ValueError(
            f"recertify: new must have the noise and classes of old, {old.noise} and {old.num_classes}, "
            f"got {new.noise} and {new.num_classes}"
        )
    if old.seed is None:
        raise ValueError("recertify: old must have a seed or a ledger, which say what its votes were")
    anew, key = copy(new), new._key()
    anew.seed = key
    if key == old.seed:
        raise ValueError("recertify: new must have another seed than old, whose noise has been looked at")
    ids = torch.arange(len(x), device=x.device) if index is None else index
    old.sampler.begin()
    chosen = old.sampler.votes(x, n0, old.seed, ids).argmax(1)
    counts = old.sampler.votes(x, n, old.seed, ids, first=n0).gather(1, chosen[:, None])[:, 0]
    before = statistics.lower_bound(counts.cpu().numpy(), n, OLD * alpha)
    least = np.array([new.noise.probability(r, math.prod(x.shape[1:])) for r in wanted])
    pairs = pairs_for(before, least, n, alpha)
    lost = _lost(old, new, x, ids, chosen, torch.from_numpy(pairs), key).numpy()
    sure = carried(before, least, pairs, lost, alpha)
    certified, held = (torch.from_numpy(which).to(x.device) for which in (sure, before[:, None] > least))
    samples, prediction = torch.from_numpy(2 * pairs).to(x.device), chosen.clone()
    again = (held & ~certified).any(1).nonzero()[:, 0]
    if len(again):
        tried = held[again].any(0).nonzero()[:, 0]
        found = anew.certify_at(x[again], [wanted[k] for k in tried.tolist()], n0=n0, n_max=n, alpha=ANEW * alpha,
                                index=ids[again])  # fmt: skip
        # Where both say something it is of one class, or what was said first stays.
        agrees = (found.prediction == chosen[again]) | ~certified[again].any(1)
        certified[again[:, None], tried] |= found.certified & agrees[:, None]
        prediction[again] = torch.where(agrees, found.prediction, chosen[again])
        samples[again] += found.samples
    radius = (certified * torch.tensor(wanted, dtype=torch.float64, device=x.device)).amax(1)
    return Certificate(prediction, radius, certified, samples, key, old.fresh and new.fresh)


def pairs_for(before: Floats, least: Floats, n: int, alpha: float) -> Counts:
    """How many copies both networks are to see, by the old votes alone; 0 where that would take more passes than n.

    Args:
        before: (batch,) lower bounds of the old class's probability.
        least: (radii,) what the probability must exceed.
    """
    held = before[:, None] > least
    slack = np.where(held, before[:, None] - least, 1.0).min(1)  # at the largest radius that is held
    pairs = np.ceil(ROOM * -math.log(PAIRS * alpha) / slack)
    found: Counts = np.where(held.any(1) & (2 * pairs <= n), pairs, 0).astype(np.int64)
    return found


def carried(before: Floats, least: Floats, pairs: Counts, lost: Counts, alpha: float) -> NDArray[np.bool_]:
    """Which radii the new network has where so many pairs lost the class: (batch, radii)."""
    zeta = np.ones(len(pairs))
    for m in np.unique(pairs[pairs > 0]):
        here = pairs == m
        zeta[here] = 1 - statistics.lower_bound(m - lost[here], int(m), PAIRS * alpha)
    found: NDArray[np.bool_] = (before - zeta)[:, None] > least
    return found


def _lost(old: Smooth, new: Smooth, x: Tensor, ids: Tensor, chosen: Tensor, pairs: Tensor, key: int) -> Tensor:
    """How many of each sample's pairs are its class for the old network and are not for the new one: (batch,).

    Copy after copy, for the samples that want it. Both networks see the copy by `Sampler.votes`, the old one just as it
    was seen when it voted.
    """
    rank, world = processes.place() if new.processes else (0, 1)
    lost = torch.zeros(len(x), dtype=torch.int64)
    mine = torch.arange(rank, len(x), world)
    for number in range(int(pairs[mine].max()) if len(mine) else 0):
        rows = mine[pairs[mine] > number]
        at = rows.to(x.device)
        was, now = (
            side.bare.votes(x[at], 1, key, ids[at], number).gather(1, chosen[at, None])[:, 0] for side in (old, new)
        )
        lost[rows] += ((was > 0) & (now == 0)).cpu()
    return processes.total(lost) if world > 1 else lost
