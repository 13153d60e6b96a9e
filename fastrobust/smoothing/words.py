"""Random words of 64 bits, a function of their number alone."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrobust.ops import _rounding as rounding

__all__ = ["words64"]


def words64(seed: int, dim: int, copy: Tensor, index: Tensor, stream: int) -> Tensor:
    """Uniform on -2^63 .. 2^63 - 1: Philox's counter is (element // 2, copy, index, stream), two words an element.

    Args:
        dim: elements of a slot.
        copy, index: (slots,) int64, 0 .. 2^32 - 1.

    Returns:
        (slots, dim) int64.
    """
    blocks = torch.arange((dim + 1) // 2, device=copy.device)
    words = rounding.philox(seed, blocks, copy[:, None], index[:, None], stream)
    pairs = [(words[first] - 2**31) * 2**32 + words[first + 1] for first in (0, 2)]
    return torch.stack(pairs, -1).flatten(1)[:, :dim].contiguous()
