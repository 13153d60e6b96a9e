"""``python -m benchmarks.exact [--rounds N] [--images N]``: what exact certificates cost beside their forward passes.

Prints medians: noise in whole steps an element, beside torch.randn and the compiled forward pass of as many copies; and
derandomised splitting noise an image, beside the compiled forward pass of its copies, for the smoothing benchmark's
networks. docs/smoothing/exact.md says what they are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

import fastrobust as fr
from benchmarks.smoothing import NETWORKS
from fastrobust.smoothing import DeterministicSmooth, IntegerGaussian, Splitting


def seconds(run: Callable[[], object], rounds: int) -> float:
    """The median of so many runs after a first one."""
    times = list[float]()
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(name: str, given: argparse.Namespace) -> None:
    """Both noises on one network."""
    noise, splitting = IntegerGaussian(0.25), Splitting(0.5)
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randint(0, 256, (given.images, *shape)) / 255
    slots, index = torch.arange(given.copies), torch.arange(given.images)
    batch = x[slots % given.images]
    compiled = fr.network.compile(model, x)
    draw = seconds(lambda: noise.copies(x, slots % given.images, slots, index, 1), given.rounds)
    plain = seconds(lambda: torch.randn_like(batch), given.rounds)
    forward = seconds(lambda: compiled(batch), given.rounds)
    smooth = DeterministicSmooth(model, 10, splitting)
    exact = seconds(lambda: smooth.certify(x), given.rounds) / given.images
    alone = forward * splitting.period / given.copies
    print(
        f"{name}: noise in whole steps {draw / batch.numel() * 1e9:.1f} ns an element (randn "
        f"{plain / batch.numel() * 1e9:.1f}, forward pass {forward / batch.numel() * 1e9:.1f}); splitting noise "
        f"{exact * 1e3:.2f} ms an image (forward passes {alone * 1e3:.2f})"
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.exact", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--copies", type=int, default=1000)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    given = parser.parse_args(arguments)
    for name in given.networks:
        measure(name, given)


if __name__ == "__main__":
    main(sys.argv[1:])
