"""``python -m benchmarks.bound_training [--rounds N] [--page]``: training steps with boxes, taking turns.

The network is `cnn7` of width 16 with batch norm, 32 CIFAR-sized samples; a step is the forward and backward pass of
the loss, without the optimizer. Beside the standard step stand the plain-PyTorch hand version of IBP (samples and
boxes, margins of the last layer through batch x classes x features), the same under `torch.compile`, and auto_LiRPA
(github.com/Verified-Intelligence/auto_LiRPA) where it imports. "Kept" is what is alive when the backward pass begins,
besides weights and samples. Results go to benchmarks/results/bound_training.json, with --page into
docs/training/certified.md.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrobust as fr
from benchmarks.certified import by_hand
from benchmarks.peers import peer
from benchmarks.turns import faster, put, take_turns
from fastrobust.evaluation.environment import environment
from fastrobust.training import Adversary, TrainConfig, crown_ibp, ibp

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "bound_training.json", HERE.parent / "docs" / "training" / "certified.md"
EPS = 2 / 255
Step = Callable[[int], Any]


def setting() -> tuple[nn.Module, Tensor, Tensor]:
    """The network in training mode, samples, labels."""
    torch.manual_seed(0)
    return fr.models.cnn7(3, 32, 10, 16).train(), torch.rand(32, 3, 32, 32), torch.randint(10, (32,))


def objective(
    name: Callable[..., tuple[Tensor, Tensor]], model: nn.Module, x: Tensor, y: Tensor, fused: bool = False
) -> Step:
    """A step of an objective when eps has grown half of the way: half of the weight is on the clean loss."""
    config = TrainConfig(objective="ibp", eps=2 * EPS, loss_fusion=fused)
    adversary = Adversary(config, EPS, 0, torch.arange(len(x)))
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step(_: int) -> None:
        loss, _logits = name(model, x, y, adversary)
        torch.autograd.grad(loss, parameters, allow_unused=True)

    return step


def lirpa(method: str, x: Tensor, y: Tensor) -> Step:
    """auto_LiRPA's clean pass and margins, as its own training examples do."""
    library, model = peer("auto_LiRPA"), setting()[0]
    bounded = library.BoundedModule(model, torch.zeros_like(x), bound_opts={"conv_mode": "patches"})
    bounded.train()
    low, high = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    point = library.BoundedTensor(x, library.PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high))
    eye = torch.eye(10)
    c = (eye[y][:, None] - eye)[~eye[y].bool()].view(len(x), 9, 10)
    parameters = [p for p in bounded.parameters() if p.requires_grad]
    zero = torch.zeros(len(x), dtype=torch.int64)

    def step(_: int) -> None:
        logits = bounded(point)
        lower, _upper = bounded.compute_bounds(IBP=True, C=c, method=method, bound_upper=False)
        worst = F.cross_entropy(torch.cat([lower.new_zeros(len(x), 1), -lower], 1), zero)
        loss = (F.cross_entropy(logits, y) + worst) / 2
        torch.autograd.grad(loss, parameters, allow_unused=True)

    return step


class Exponentials(nn.Module):
    """sum_j exp(z_j - z_y), whose logarithm is the loss."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("own", F.one_hot(y, 10).float())

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return (z - (z * self.own).sum(1, keepdim=True)).exp().sum(1, keepdim=True)


def lirpa_fused(x: Tensor, y: Tensor) -> Step:
    """The same with the exponential of the loss as the last layer."""
    library = peer("auto_LiRPA")
    options = {"conv_mode": "patches", "loss_fusion": True}
    bounded = library.BoundedModule(Exponentials(setting()[0], y), torch.zeros_like(x), bound_opts=options)
    bounded.train()
    low, high = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    point = library.BoundedTensor(x, library.PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high))
    parameters = [p for p in bounded.parameters() if p.requires_grad]

    def step(_: int) -> None:
        clean = bounded(point)
        _lower, upper = bounded.compute_bounds(method="CROWN-IBP", bound_lower=False)
        torch.autograd.grad((clean.log().mean() + upper.log().mean()) / 2, parameters, allow_unused=True)

    return step


def kept(step: Step) -> int:
    """Bytes alive when the backward pass begins that were not before the step: what autograd saved, and tensors."""
    before, sizes, begun = alive(), dict[int, int](), False

    def pack(value: Tensor) -> Tensor:
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    def unpack(value: Tensor) -> Tensor:
        nonlocal begun
        if not begun:
            begun = True
            sizes.update(alive())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        step(0)
    return sum(size for at, size in sizes.items() if at not in before)


def alive() -> dict[int, int]:
    """Bytes by address of the memory of all tensors that Python knows of."""
    gc.collect()
    found = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter) and o.layout == torch.strided]
    return {o.untyped_storage().data_ptr(): o.untyped_storage().nbytes() for o in found}


def steps() -> dict[str, Step]:
    """By name; each on a network of its own."""
    model, x, y = setting()
    parameters = list(model.parameters())

    def standard(_: int) -> None:
        torch.autograd.grad(F.cross_entropy(model(x), y), parameters)

    found: dict[str, Step] = {"standard": standard}
    for name, function in (
        ("IBP", ibp), ("IBP by hand", by_hand), ("IBP by hand, compiled", by_hand), ("CROWN-IBP", crown_ibp),
        ("CROWN-IBP, loss fusion", crown_ibp),
    ):  # fmt: skip
        own = copy.deepcopy(model)
        loss = torch.compile(function) if name.endswith("compiled") else function
        found[name] = objective(loss, own, x, y, name.endswith("fusion"))
    try:
        found["IBP, auto_LiRPA"] = lirpa("IBP", x, y)
        found["CROWN-IBP, auto_LiRPA"] = lirpa("CROWN-IBP", x, y)
        found["CROWN-IBP, loss fusion, auto_LiRPA"] = lirpa_fused(x, y)
    except ImportError as error:
        print(f"auto_LiRPA is left out: {error}", file=sys.stderr)
    return found


def main(arguments: list[str]) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bound_training", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--page", action="store_true", help="replace the table in docs/training/certified.md")
    args = parser.parse_args(arguments)
    runs = steps()
    for step in runs.values():
        step(0)
    memory = {name: kept(step) for name, step in runs.items()}
    times, _found = take_turns(args.rounds, *runs.values())
    base = times[0]
    lines = ["| step | ms | of the standard step | kept, MB |", "|---|---:|---:|---:|"]
    rows = []
    for (name, size), each in zip(memory.items(), times, strict=True):
        rows.append({"step": name, "seconds": each, "kept": size})
        lines.append(f"| {name} | {1e3 * statistics.median(each):.1f} | {faster(base, each):.2f}x | {size / 1e6:.1f} |")
    print("\n".join(lines))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    if args.page:
        put(PAGE, "steps", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
