"""A small training run as a program: `python worker.py FOLDER [field=value ...]`, also under torchrun.

Prints "ready" when the first step begins. Under torchrun every rank leaves a digest of its final weights in
FOLDER/rank-N.txt, so that a test can compare them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from small import net, splits

from fastrobust import training


def main() -> None:
    torch.set_num_threads(1)
    folder, fields = Path(sys.argv[1]), json.loads(sys.argv[2])
    kind = fields.pop("net", "plain")
    model = net(kind)
    first = model.register_forward_pre_hook(lambda *_: (first.remove(), print("ready", flush=True))[0])
    result = training.fit(model, splits(), training.TrainConfig(**fields), folder, progress=False)
    digest = hashlib.sha256()
    for value in result.last.weights.values():
        digest.update(value.numpy().tobytes())
    (folder / f"rank-{os.environ.get('RANK', '0')}.txt").write_text(digest.hexdigest())


if __name__ == "__main__":
    main()
