"""PGD timed against the plain PyTorch loop and torchattacks: same start, in turns, iterates compared."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrobust.attacks import PGD

from .metrics import eval_mode

TOLERANCE = 1e-5


def eager_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Tensor:
    """Linf PGD from x as everyone writes it, op by op: (batch, ...) points in the ball and in [0, 1]."""
    x_adv = x
    for _ in range(steps):
        grad = input_gradient(model, x_adv, y)
        x_adv = x_adv + alpha * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy with respect to x, in x's shape."""
    point = x.detach().requires_grad_(True)
    return torch.autograd.grad(functional.cross_entropy(model(point), y), point)[0]


def compare(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int, rounds: int = 5
) -> dict[str, Any]:
    """Time one attack per contender from the start x; the ``timing`` entry of results.json.

    The contenders take turns and each round begins with another, so a slow moment hits all alike.
    ``contenders[0]`` is ours, on a compiled copy of the network made beforehand; the others say how many of
    their final pixels are more than 1e-5 away from ours. ``loss_gap`` is the largest relative difference from
    the mean loss that we reach. ``model_alone_s`` is the time of the same number of forward passes and input
    gradients in plain PyTorch. ``missing`` says why a peer was not timed.
    """

    def model_alone() -> Tensor:
        for _ in range(steps):
            input_gradient(model, x, y)
        return x

    compiled, eager = (
        PGD(model, eps=eps, alpha=alpha, steps=steps, random_start=False, compile=wish) for wish in (True, False)
    )
    runs: dict[str, Callable[[], Tensor]] = {
        "fastrobust": lambda: compiled(x, y),
        "fastrobust, not compiled": lambda: eager(x, y),
        "eager loop": lambda: eager_pgd(model, x, y, eps, alpha, steps),
    }
    missing = []
    try:
        torchattacks = importlib.import_module("torchattacks")
        peer = torchattacks.PGD(model, eps=eps, alpha=alpha, steps=steps, random_start=False)
        runs["torchattacks"] = lambda: peer(x, y)
    except Exception as error:  # a peer that does not import must not take the report with it
        missing.append(f"torchattacks was not timed: {error}")
    with eval_mode(model):
        points = {name: run() for name, run in runs.items()}
        seconds = _take_turns({**runs, "model": model_alone}, rounds)
        with torch.no_grad():
            loss = {name: functional.cross_entropy(model(point), y).item() for name, point in points.items()}
    differing = {name: int(((p - points["fastrobust"]).abs() > TOLERANCE).sum()) for name, p in points.items()}
    return {
        "steps": steps,
        "eps": eps,
        "alpha": alpha,
        "batch": len(x),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "pixels": x.numel(),
        "tolerance": TOLERANCE,
        "loss_gap": max(abs(value / loss["fastrobust"] - 1) for value in loss.values()),
        "model_alone_s": statistics.median(seconds["model"]),
        "missing": missing,
        "contenders": [
            {
                "name": name,
                "median_s": statistics.median(seconds[name]),
                "seconds": seconds[name],
                "pixels_differing": None if name == "fastrobust" else differing[name],
            }
            for name in runs
        ],
    }


def _take_turns(runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds
