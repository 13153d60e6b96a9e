"""Mixtures of likelihood ratios: tests that hold whenever one looks, without any plan of looks.

The wealth of a bet against p = p0 is the likelihood of the votes under a mixture of p, over that under p0. Its expected
value is 1 at p0 however long one plays, so that it reaches 1 / alpha with a probability of at most alpha (Ville, 1939).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special

__all__ = ["Elimination", "boundary", "half_beta", "kt"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def kt(count: Counts | int, n: Counts | int, p0: float) -> Floats:
    """log of the wealth of the mixture Beta(1/2, 1/2) of all p (Krichevsky and Trofimov, 1981), rounded down."""
    k, m = np.asarray(count, dtype=np.float64), np.asarray(n, dtype=np.float64)
    found = special.betaln(k + 0.5, m - k + 0.5) - special.betaln(0.5, 0.5)
    found = found - special.xlogy(k, p0) - special.xlog1py(m - k, -p0)
    return np.asarray(found - (1e-9 + 1e-12 * m))  # the logarithms are of the order of m and right to some 1e-16


def half_beta(count: Counts | int, n: Counts | int, p0: float) -> Floats:
    """log of the wealth of that mixture's part above p0, rounded down: it grows with each vote more."""
    k, m = np.asarray(count, dtype=np.float64), np.asarray(n, dtype=np.float64)
    with np.errstate(divide="ignore"):  # no mass above p0: the wealth is gone
        above = np.log(special.betaincc(k + 0.5, m - k + 0.5, p0)) - math.log(special.betaincc(0.5, 0.5, p0))
    return np.asarray(kt(count, n, p0) + above)


def boundary(wealth: Callable[[Counts, Counts, float], Floats], p0: float, alpha: float, looks: Counts) -> Counts:
    """The least counts, at each look, of at least p0 n votes and a wealth of 1 / alpha; n + 1 where none is enough."""
    if p0 >= 1:  # nothing exceeds it
        return looks + 1
    low, high = np.ceil(p0 * looks).astype(np.int64) - 1, looks + 1  # never enough, always
    while (high - low > 1).any():  # the wealth grows with the count beyond p0 n
        middle = (low + high) // 2
        enough = wealth(middle, looks, p0) >= -math.log(alpha)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


class Elimination:
    """Finds the most likely class of each row by ruling out all others, whatever the number of looks.

    Against each class j it bets on the leader of the votes seen so far: if j were the most likely class, of the next
    votes for either no more than half would be the leader's. The class that is most likely in truth is ruled out with
    a probability of at most alpha, so that an answer, the only class left, is wrong no more often.
    """

    def __init__(self, rows: int, classes: int, alpha: float) -> None:
        self.alpha = alpha
        self.counts = np.zeros((rows, classes), dtype=np.int64)
        self.won, self.lost = np.zeros_like(self.counts), np.zeros_like(self.counts)  # votes for leader and class
        self.left = np.ones((rows, classes), dtype=bool)

    def add(self, rows: NDArray[np.int64], votes: Counts) -> None:
        """(len(rows), classes) further votes of some rows."""
        before = self.counts[rows]
        leader = before.argmax(1)[:, None]
        bets = (before.sum(1) > 0)[:, None] & (np.arange(before.shape[1]) != leader)
        self.won[rows] += np.where(bets, np.take_along_axis(votes, leader, 1), 0)
        self.lost[rows] += np.where(bets, votes, 0)
        self.counts[rows] += votes
        won, lost = self.won[rows], self.lost[rows]
        self.left[rows] &= half_beta(won, won + lost, 0.5) < -math.log(self.alpha)

    def answers(self) -> Counts:
        """(rows,) the only class left; -1 where several are, or none."""
        return np.where(self.left.sum(1) == 1, self.left.argmax(1), -1)
