"""What a fixed number of votes proves: bounds and tests whose probability of a false claim is at most alpha.

Floating point: scipy's binomial functions have relative errors far below 1e-9, by which every bound here is weakened.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

__all__ = ["lower_bound", "strongest", "two_sided", "upper_bound"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
MARGIN = 1e-9  # relative, for errors of floating point


def lower_bound(count: Counts | int, n: int, alpha: float) -> Floats:
    """The one-sided lower bound of Clopper and Pearson (Biometrika, 1934) for a probability, at level 1 - alpha.

    P(count >= k) <= alpha wherever the probability is below the bound for k; 0 for k = 0.
    """
    k = np.asarray(count, dtype=np.float64)
    found = special.betaincinv(np.maximum(k, 1), n - k + 1, alpha)
    return np.where(k > 0, found * (1 - MARGIN), 0.0)


def upper_bound(count: Counts | int, n: int, alpha: float) -> Floats:
    """The one-sided upper bound: what is left by the lower one of the other n - count votes; 1 for count = n."""
    return 1 - lower_bound(n - np.asarray(count), n, alpha)


def two_sided(first: Counts | int, second: Counts | int) -> Floats:
    """The p-value of the exact test that of two classes none is more likely (Hung and Fithian, Ann. Stat. 2019).

    Args:
        first, second: votes of both.
    """
    low = np.minimum(first, second)
    total = np.add(first, second)
    tail: Floats = np.asarray(stats.binom.cdf(low, total, 0.5), dtype=np.float64)
    return np.minimum(1.0, 2 * tail) * (1 + MARGIN)


def strongest(counts: Counts, own: Counts, guess: Counts, k: int) -> Counts:
    """For s = 1 .. k the most votes of any s classes together: other than `own`, and than the k - s strongest of guess.

    The k - s are fixed by other votes than `counts`. Whichever s of the rest are truly the most likely ones, they have
    no more votes than that: an upper bound made of it needs no correction for the choice.

    Args:
        counts: (batch, classes) votes.
        own: (batch,) classes.
        guess: (batch, classes) votes, independent of `counts`.

    Returns:
        (k, batch).
    """
    rows = np.arange(len(counts))
    believed, others = guess.copy(), counts.copy()
    believed[rows, own] = -1
    others[rows, own] = 0
    order = np.argsort(-believed, axis=1, kind="stable")
    found = np.zeros((k, len(counts)), dtype=np.int64)
    for s in range(1, k + 1):
        rest = others.copy()
        np.put_along_axis(rest, order[:, : k - s], 0, axis=1)
        found[s - 1] = np.sort(rest, axis=1)[:, -s:].sum(1)
    return found
