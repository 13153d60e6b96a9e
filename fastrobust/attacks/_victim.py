"""The model under attack: called in the wanted mode, checked, and left exactly as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastrobust import _checks
from fastrobust.network import Compiled, trust

__all__ = ["Model", "Victim", "to_model_dtype"]

Model = Callable[[Tensor], Tensor]

MODES = ("eval", "train")


class Victim:
    """A model as an attack sees it.

    Args:
        name: the attack, for error messages.
        model: maps (batch, ...) to logits (batch, classes); a module or any callable. A DistributedDataParallel
            wrapper is looked through, since an attack takes no parameter gradients.
        mode: "eval", or "train" for batch statistics, with the running ones and the global random state (dropout)
            restored afterwards. A model in train mode then keeps its modules' modes: a frozen batch norm stays frozen.
        autocast: a 16-bit dtype in which `torch.autocast` runs the forward pass, or None.
    """

    def __init__(self, name: str, model: Model, mode: str, autocast: torch.dtype | None) -> None:
        if not callable(model):
            raise TypeError(f"{name}: model must be callable, got {type(model).__name__}")
        if mode not in MODES:
            raise ValueError(f"{name}: mode must be 'eval' or 'train', got {mode!r}")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"{name}: autocast must be None, torch.bfloat16 or torch.float16, got {autocast!r}")
        if isinstance(model, Compiled) and mode == "train":
            raise ValueError(f"{name}: mode must be 'eval' for a compiled network, got 'train'")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.name, self.model, self.mode, self.autocast = name, model, mode, autocast
        self.compiled: Compiled | None = None
        self.reason = ""  # why there is no compiled network

    def compile(self, x: Tensor, wish: str | bool, passes: int) -> None:
        """Within `borrowed`: find what runs instead of the model, for an attack of so many passes over x."""
        self.compiled, self.reason = None, ""
        if isinstance(self.model, Compiled):
            self.compiled = self.model
            if not self.model.frozen:
                self.model.refresh()
        elif wish is False:
            self.reason = "compile=False"
        elif (
            not isinstance(self.model, nn.Module) or self.mode != "eval" or self.autocast is not None
            or torch.is_autocast_enabled(x.device.type)
        ):  # fmt: skip
            self.reason = "only modules in eval mode and full precision are compiled"
        elif wish is True or trust.pays(self.model, x, passes * len(x)):
            self.compiled, self.reason = trust.compiled_for(self.model, x)
        else:
            self.reason = "this is little work, done before a capture would be"

    @property
    def stands_in(self) -> bool:
        """Whether the passes are not the model's own, so that their verdicts need its word."""
        return self.autocast is not None or self.compiled not in (None, self.model)

    def explain(self) -> str:
        """What ran the model at the last call, and why."""
        if self.compiled is not None:
            return self.compiled.explain()
        return f"the model itself: {self.reason or 'no call yet'}"

    @contextmanager
    def borrowed(self, device: torch.device) -> Iterator[None]:
        """Gradients on, the model in the wanted mode; modes and buffers restored whatever happens."""
        if isinstance(self.model, Compiled):  # has neither modes nor buffers
            with torch.inference_mode(False), torch.enable_grad():
                yield
            return
        modules = list(self.model.modules()) if isinstance(self.model, nn.Module) else []
        modes = [module.training for module in modules]
        train = self.mode == "train"
        buffers = [b for m in modules for b in m.buffers(recurse=False)] if train else []
        kept = [b.detach().clone() for b in buffers]
        as_it_is = train and bool(modules) and modules[0].training
        devices = [device] if device.type == "cuda" else []
        try:
            for module in modules if not as_it_is else []:
                module.training = train
            with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices, enabled=train):
                yield
        finally:
            for module, mode in zip(modules, modes, strict=False):
                module.training = mode
            with torch.no_grad():
                for buffer, value in zip(buffers, kept, strict=False):
                    buffer.copy_(value)

    def logits(self, x: Tensor, exact: bool = False) -> Tensor:
        """Logits in at least float32; `exact` is the model itself, without autocast."""
        half = self.autocast is not None and not exact
        with torch.autocast(x.device.type, dtype=self.autocast) if half else nullcontext():
            out: Any = self.model(x) if exact or self.compiled is None else self.compiled.run(x)
        if not isinstance(out, Tensor):
            raise TypeError(f"{self.name}: model must return a tensor of logits, got {type(out).__name__}")
        if out.dim() != 2 or out.shape[0] != x.shape[0]:
            raise ValueError(
                f"{self.name}: model must return logits of shape ({x.shape[0]}, classes), got {tuple(out.shape)}"
            )
        if out.dtype not in _checks.FLOATS:
            raise TypeError(f"{self.name}: model must return floating-point logits, got {out.dtype}")
        if x.requires_grad and torch.is_grad_enabled() and not out.requires_grad:
            raise ValueError(
                f"{self.name}: model must be differentiable, its logits have no gradient with respect to x; "
                "fastrobust.attacks.BPDA gives one to transforms that have none"
            )
        return out if out.dtype == torch.float64 else out.float()


def to_model_dtype(x_adv: Tensor, x: Tensor) -> Tensor:
    """Iterates (float32) as the model takes them: in the dtype of x, 16-bit ones rounded towards x.

    Rounding to nearest could leave the ball: near 1 the spacing of bfloat16 is 1/256.
    """
    if x_adv.dtype == x.dtype:
        return x_adv
    near = x_adv.detach().to(x.dtype)
    wide, centre = near.to(x_adv.dtype), x.to(x_adv.dtype)
    far = (wide - centre).abs() > (x_adv - centre).abs()
    # One float towards x: bits are ordered as magnitudes are.
    inwards = torch.where((wide > centre) == (wide > 0), -1, 1).to(torch.int16)
    return torch.where(far, (near.view(torch.int16) + inwards).view(x.dtype), near)
