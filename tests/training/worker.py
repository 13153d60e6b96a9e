"""A small training run as a program: `python worker.py FOLDER '{"field": value, ...}'`, also under torchrun.

Reads its data from FOLDER/../data.pt and prints "step" when a step begins. At the end every rank leaves a digest of
its weights in FOLDER/rank-N.txt, so that a test can compare them. Threads of torch.distributed that are left when
Python ends are printed as an error.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from small import net, stored
from torch import Tensor, nn

from fastrobust import training


def announced(objective: training.Objective) -> training.Objective:
    def call(model: nn.Module, x: Tensor, y: Tensor, adversary: training.Adversary) -> tuple[Tensor, Tensor]:
        print("step", flush=True)
        return objective(model, x, y, adversary)

    return call


def threads_left() -> None:
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if left := [name for name in names if "gloo" in name]:
        print("threads left:", *left, file=sys.stderr)


def main() -> None:
    atexit.register(threads_left)  # before all others, so that it is the last to run
    torch.set_num_threads(1)
    folder, fields = Path(sys.argv[1]), json.loads(sys.argv[2])
    kind = fields.pop("net", "plain")
    for name, objective in training.OBJECTIVES.items():
        training.OBJECTIVES[name] = announced(objective)
    result = training.fit(
        net(kind), stored(folder.parent / "data.pt"), training.TrainConfig(**fields), folder, progress=False
    )
    digest = hashlib.sha256()
    for value in result.last.weights.values():
        digest.update(value.numpy().tobytes())
    (folder / f"rank-{os.environ.get('RANK', '0')}.txt").write_text(digest.hexdigest())


if __name__ == "__main__":
    main()
