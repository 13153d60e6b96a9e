"""Counter-based keys: every random choice is a function of what it is for, never of what ran before it.

The mixing function is SplitMix64's finaliser (Steele, Lea & Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014). It is written in wrapping integer arithmetic, so a key is the same on every machine
and version.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash64(*words: int | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Hash integer words, in order, to uniform uint64 values; arrays broadcast, the result is at least 1-d."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        bits = np.uint64(word & _MASK) if isinstance(word, int) else word.astype(np.uint64)
        state = (state ^ bits) + _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def key(*words: int) -> int:
    """A seed in [0, 2^63) that depends on every word and on their order."""
    return int(hash64(*words)[0] >> np.uint64(1))
