"""PGD-10 on small fully connected networks: the native engine beside torchattacks and the loop people write.

Every contender must reach the same points: at most 2% of the values may differ, by flipped signs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

STEPS = 10
NETS = {"5-50x6-5": (5, (50,) * 6, 5), "64-128-128-10": (64, (128, 128), 10), "784-256-256-10": (784, (256, 256), 10)}


def attacks(device: Any, batch: int, eps: float, alpha: float) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names and calls."""
    import torch

    import fastrobust as fr

    for name, (inputs, hidden, classes) in NETS.items():
        torch.manual_seed(0)
        model = fr.models.mlp((inputs,), hidden, classes).to(device).eval()
        x = torch.rand(batch, inputs, device=device)
        y = model(x).argmax(1)
        compiled = fr.network.compile(model, x)
        who = "fastrobust, engine" if compiled.engine is not None else "fastrobust, no engine"
        settings = {"eps": eps, "alpha": alpha, "steps": STEPS, "random_start": False}
        contenders: dict[str, Callable[[], Any]] = {
            who: partial(fr.attacks.PGD(compiled, **settings), x, y),
            "fastrobust, eager": partial(fr.attacks.PGD(model, compile=False, **settings), x, y),
            "eager loop": partial(loop, model, update, x, y, eps, alpha),
            "torch.compile": partial(
                loop, torch.compile(model, dynamic=False), torch.compile(update, dynamic=False), x, y, eps, alpha
            ),
        }
        peer = torchattacks()
        if peer is not None:
            contenders["torchattacks"] = partial(peer.PGD(model, **settings), x, y)
        expected = contenders[who]()
        for who, run in contenders.items():
            if float(((run() - expected).abs() > 1e-5).float().mean()) > 0.02:
                raise SystemExit(f"PGD-{STEPS} on {name}: {who} reaches other points")
            yield f"PGD-{STEPS} MLP {name}, batch {batch}, {who}", run


def update(x_adv: Any, x: Any, grad: Any, eps: float, alpha: float) -> Any:
    """The step of torchattacks 3.5.1's PGD."""
    x_adv = x_adv + alpha * grad.sign()
    return (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)


def loop(model: Any, step: Any, x: Any, y: Any, eps: float, alpha: float) -> Any:
    """PGD as every tutorial writes it."""
    import torch

    x_adv = x.clone()
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x_adv), y), x_adv)
        x_adv = step(x_adv.detach(), x, grad, eps, alpha)
    return x_adv


def torchattacks() -> ModuleType | None:
    """The peer, where it is installed. It imports torchvision, which its PGD does not use: an empty module will do."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        sys.modules.setdefault("torchvision", ModuleType("torchvision"))
    try:
        return importlib.import_module("torchattacks")
    except ImportError:
        return None
