"""``python -m benchmarks.memory``: how much memory a PGD-10 takes beside model and data, ours and torchattacks'.

Each number comes from a process of its own: the highest resident memory during two attacks less that before the first.
Linux only.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

import fastrobust as fr
from benchmarks.test_attacks import ALPHA, EPS, NETS, STEPS, peer, setting

WHO = ("fastrobust, compiled", "torchattacks")


def measure(who: str, net: str) -> float:
    """In MiB, in this process."""
    torch.set_num_threads(2)
    model, x, y = setting(net)
    keys = {"eps": EPS, "alpha": ALPHA, "steps": STEPS, "random_start": False}
    if who == "torchattacks":
        attack = peer("torchattacks").PGD(model, **keys)
    else:
        attack = fr.attacks.PGD(fr.network.compile(model, x), **keys)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    for _ in range(2):
        attack(x, y)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))  # kB


def table() -> list[str]:
    """All networks, each in processes of their own, as Markdown."""
    lines = [f"| memory of a PGD-10 beside model and data | {' | '.join(WHO)} |", "|---|---:|---:|"]
    for net in NETS:
        found = [
            subprocess.run(
                [sys.executable, "-m", "benchmarks.memory", who, net], capture_output=True, text=True, check=True
            ).stdout
            for who in WHO
        ]
        lines.append(f"| {net} | {' | '.join(f'{float(value):.0f} MiB' for value in found)} |")
    return lines


if __name__ == "__main__":
    print(measure(*sys.argv[1:]) if len(sys.argv) == 3 else "\n".join(table()))
