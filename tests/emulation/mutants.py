"""Plants faults in the CUDA kernels, one at a time, and demands that a check of the emulated kernels fails for each.

Every fault is written into a copy of the sources beside the original, behind a switch that is read when the test program
starts: one compilation serves all of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SWITCH = """
#include <cstdlib>
inline int planted() {
  static const int chosen = std::getenv("MUTANT") ? std::atoi(std::getenv("MUTANT")) : -1;
  return chosen;
}
"""


@dataclass(frozen=True)
class Mutant:
    """`old` is an expression or statement that occurs once in `file`; `new` takes its place when it is chosen."""

    what: str
    file: str
    old: str
    new: str

    @property
    def statement(self) -> bool:
        return self.old.endswith(";")

    def switched(self, number: int) -> str:
        if self.statement:
            return f"if (planted() == {number}) {{ {self.new} }} else {{ {self.old} }}"
        return f"(planted() == {number} ? ({self.new}) : ({self.old}))"


TEAM, LINF, STEP, START, LOGIT = "team.cuh", "linf.cuh", "step_rows.cu", "start_rows.cu", "logit_loss.cu"
SYNC_OR = "__syncthreads_or(found & kUseful)", "__syncthreads_or(found & kNonFinite)"
ANY = "__any_sync(kAllLanes, found & kUseful)", "__any_sync(kAllLanes, found & kNonFinite)"
MUTANTS = [
    # barriers
    Mutant("no __syncthreads in the block's reduction", TEAM, "__syncthreads();", ";"),
    Mutant("the scratch's halves do not take turns", TEAM, "turn_ = 1 - turn_;", ";"),
    Mutant("useful gradients not shared in the block", LINF, SYNC_OR[0], "found & kUseful"),
    Mutant("odd gradients not shared in the block", LINF, SYNC_OR[1], "found & kNonFinite"),
    # tails and strides of the block and the warp
    Mutant("a block's loop goes one too far", TEAM, "for (int64_t i = threadIdx.x; i < n;", "i <= n"),
]
