"""The fastest thing that computes exactly a given network in eval mode, and the reasons why something else runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastrobust import _backend, _checks
from fastrobust.network import engine
from fastrobust.network.capture import Network, capture
from fastrobust.network.layout import channels_last
from fastrobust.network.lower import lower
from fastrobust.network.tape import Tape, Unsupported
from fastrobust.ops.logit_loss import KIND_CODE
from fastrobust.ops.noise import KINDS
from fastrobust.ops.perturb import NORM_CODE, pointer
from fastrobust.threat import Box

__all__ = ["Compiled", "compile"]

LANES = 16  # samples in a block
ADDED = ("normal", "uniform", "laplace")  # kinds of noise that the engine draws
# Multiplications a layer and sample: the share of the threads' lanes that must be in use for the engine to be faster
# than PyTorch's layers, whose time on small ones is that of their calls. Measured with 1 and 2 threads.
SHARES = ((100_000, 0.0), (3_000_000, 0.4), (math.inf, 0.6))


class Compiled:
    """A network ready to be attacked; made by `compile`. Calling it gives the logits.

    Attributes:
        network: the capture.
        engine: the native engine, or None where it lacks something; `reason` says what.
    """

    def __init__(self, network: Network, frozen: bool) -> None:
        self.network, self.frozen = network, frozen
        self._lowered = lower(network)
        self._seen: list[Tensor] = []  # copies of the tensors last read, where comparing is cheaper than folding
        self._weights = self._read()
        self.model: nn.Module | None = None  # kept alive for users; the cache of attacks does not
        self.engine: Any = None
        self.tape: Tape | None = None
        self.reason = ""
        self._aliases: list[Tensor] = []
        self._pointers: list[int] = []  # of the engine's tensors, where they are the model's own
        self._types: list[torch.dtype] = []
        self._pinned = False
        self._build()
        if self.engine is None:
            self._lowered = channels_last(network, self._lowered)
            self._weights = self._read()
        self._load()

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of x (batch, ...), with the model's parameters as they are now (unless frozen)."""
        if not self.frozen:
            self.refresh()
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """Logits with the parameters of the last `refresh`: through the engine where no gradient is asked for."""
        if self.engine is None or (torch.is_grad_enabled() and x.requires_grad) or not self._fits(x):
            out: Tensor = self._lowered.forward(x, *self._weights)
            return out
        x = x.contiguous()
        logits = x.new_empty(len(x), self.classes)
        if len(x):
            self._call(self.engine.forward, x.data_ptr(), len(x), logits.data_ptr())
        return logits

    def gradient(
        self, x: Tensor, y: Tensor, loss: str = "ce", target: Tensor | None = None, reference: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """By the engine: logits, the losses of `ops.logit_loss`, predictions, and the gradient of the summed loss."""
        x, y, target = x.contiguous(), y.contiguous(), None if target is None else target.contiguous()
        reference = None if reference is None else reference.float().contiguous()
        logits, gradient, value = x.new_empty(len(x), self.classes), torch.empty_like(x), x.new_empty(len(x))
        prediction, correct = torch.empty_like(y), torch.empty_like(y, dtype=torch.bool)
        self._call(
            self.engine.gradient, x.data_ptr(), len(x), logits.data_ptr(), KIND_CODE[loss], y.data_ptr(),
            pointer(target), pointer(reference), 0.0, value.data_ptr(), prediction.data_ptr(), correct.data_ptr(),
            gradient.data_ptr(),
        )  # fmt: skip
        return logits, value, prediction, gradient

    def attackable(self, x: Tensor) -> bool:
        """Whether the engine serves points like x."""
        return self.engine is not None and self._fits(x) and x.is_contiguous()

    def worthwhile(self, points: int) -> bool:
        """Whether the engine is faster than PyTorch's layers on so many points.

        A rule of the network's shape and the number of threads, so that results repeat. Blocks of 16 may be partly
        idle where the engine cannot serve points one by one.
        """
        assert self.tape is not None
        if self.network.device.type == "cuda" or self.engine.singles:
            return True
        size = self.multiplications / len(self.tape.ops)
        lanes = LANES * _backend.threads()
        return points / (-(-points // lanes) * lanes) >= next(share for most, share in SHARES if size <= most)

    def pgd(
        self, x_adv: Tensor, x: Tensor, y: Tensor, loss: str, target: Tensor | None, reference: Tensor | None,
        steps: int, alpha: float | Tensor, eps: float | Tensor, norm: str, box: Box, projection: str,
        patience: int | None = None, best: bool = False, cycles: bool = True, judged: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """PGD on x_adv, in place, in one native call; arguments as those of `ops.pgd_step` and `ops.logit_loss`.

        With a `patience` a sample stops once it fools the network, after so many times that it did and went on; with
        `best` its best iterate is kept: one that fools the network, then the highest loss. A sample whose iterates
        repeat makes no more steps than change its result, unless `cycles` is False. Returns for each sample
        whether what is kept fools the network, the loss there (both only if `judged` or `best`), the steps it made,
        and how many gradients were zero or not finite: bool, float32, int64, int32, each (batch,).
        """
        where, batch = "pgd", len(x)
        alpha, alpha_each = _checks.per_sample(where, "alpha", alpha, x, None)
        eps, eps_each = _checks.per_sample(where, "eps", eps, x, 0.0)
        lo, hi, lo_each, hi_each = _checks.box_ends(where, box, x)
        bad, taken = torch.zeros_like(y, dtype=torch.int32), torch.zeros_like(y)
        success, value = torch.zeros_like(y, dtype=torch.bool), x.new_full((batch,), torch.nan)
        x, y, target = x.contiguous(), y.contiguous(), None if target is None else target.contiguous()
        reference = None if reference is None else reference.float().contiguous()
        self._call(
            self.engine.pgd, x_adv.data_ptr(), x.data_ptr(), batch, x[:1].numel(), steps, alpha, pointer(alpha_each),
            NORM_CODE[norm], eps, pointer(eps_each), lo, hi, pointer(lo_each), pointer(hi_each),
            projection == "exact", bad.data_ptr(), KIND_CODE[loss], y.data_ptr(), pointer(target), pointer(reference),
            patience is not None, patience or 0, best, cycles, success.data_ptr() if judged else 0,
            value.data_ptr() if judged else 0, taken.data_ptr(),
        )  # fmt: skip
        return success, value, taken, bad

    def interval(self, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Interval bound propagation by the engine: the logits of all points within `radius` of `centre`, elementwise.

        Sums are not rounded outwards, so this is near to a proof but not one: `fastrobust.bounds.ibp` gives proofs.

        Args:
            centre, radius: (batch, ...), float32; radius >= 0.

        Returns:
            centre and radius of the logits, each (batch, classes).

        Raises:
            ValueError: if the engine does not run this network, or has no rule for an op.
        """
        self._need_engine("interval", centre)
        _checks.check_same("interval", "radius", radius, "centre", centre)
        if not self.frozen:
            self.refresh()
        lower, upper = ((centre + sign * radius).detach().contiguous() for sign in (-1, 1))
        low, high = (centre.new_empty(len(centre), self.classes) for _ in range(2))
        ends = [(a.data_ptr(), b.data_ptr()) for a, b in ((lower, upper), (low, high))]
        self._call(self.engine.boxes, *ends[0], len(centre), *ends[1], [])
        return (low + high) / 2, (high - low) / 2

    def votes(
        self, x: Tensor, samples: int, scale: float, seed: int = 0, index: Tensor | None = None, first: int = 0,
        kind: str = "normal",
    ) -> Tensor:  # fmt: skip
        """How often each class wins on x + scale * noise, the draws of `ops.noisy_copies`; no noisy batch is made.

        Args:
            x: (batch, ...) float32.
            samples: noisy copies of each.
            scale: factor of the draws, in x's units: the standard deviation of normal noise.
            seed: key of the draws. The noise of copy i of a sample depends on the seed, its index and i alone.
            index: (batch,) int64 ids of the samples in 0 .. 2^32 - 1; 0 .. batch - 1 if None.
            first: the number of the first copy, so that counts can be continued.
            kind: "normal", "uniform" or "laplace".

        Returns:
            (batch, classes) int64; a copy whose logits hold a NaN has no vote.

        Raises:
            ValueError: if the engine does not run this network, or an argument is out of range.
        """
        self._need_engine("votes", x)
        if samples < 0 or first < 0 or first + samples > 2**32:
            raise ValueError(f"votes: copies must be numbered in 0 .. 2^32 - 1, got {first} .. {first + samples - 1}")
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"votes: scale must be finite and >= 0, got {scale!r}")
        if kind not in ADDED:
            raise ValueError(f"votes: kind must be one of {', '.join(ADDED)}, got {kind!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"votes: seed must be in 0 .. 2^64 - 1, got {seed}")
        index = torch.arange(len(x)) if index is None else index.contiguous()
        _checks.check_labels("votes", "index", index, x)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < 2**32:
            raise ValueError(f"votes: index must be in 0 .. 2^32 - 1, got {int(index.min())} .. {int(index.max())}")
        if not self.frozen:
            self.refresh()
        x, counts = x.detach().contiguous(), torch.zeros(len(x), self.classes, dtype=torch.int64)
        self._call(
            self.engine.votes, x.data_ptr(), index.data_ptr(), len(x), first, samples, KINDS[kind], scale, seed,
            counts.data_ptr(),
        )  # fmt: skip
        return counts

    def _need_engine(self, where: str, x: Tensor) -> None:
        if self.engine is None:
            raise ValueError(f"{where}: the engine does not run this network: {self.reason}")
        if self.network.device.type != "cpu":
            raise ValueError(f"{where}: the engine answers this on the CPU only, the network is on {x.device}")
        if not self._fits(x):
            raise ValueError(
                f"{where}: samples must be {self.network.shape} {self.network.dtype} on {self.network.device}, "
                f"got {tuple(x.shape[1:])} {x.dtype} on {x.device}"
            )

    @property
    def classes(self) -> int:
        """How many logits a sample has."""
        assert self.tape is not None
        return self.tape.values[-1][0]

    @property
    def multiplications(self) -> int:
        """Multiplications of weights with activations in a forward pass of one sample."""
        assert self.tape is not None
        return self.tape.multiplications()

    def refresh(self) -> None:
        """Take over the model's parameters and buffers, in time proportional to their number."""
        if self._aliased():
            self._give(self._pointers)
            return
        if self._unchanged():
            return
        weights = self._read()
        for kept, new in zip(self._weights, weights, strict=True):
            was, now = ((tuple(w.shape), w.dtype, w.device) for w in (kept, new))
            if was != now:
                raise ValueError(f"refresh: a parameter now gives {now}, captured was {was}; compile the model again")
        if self._pinned:
            for kept, new in zip(self._weights, weights, strict=True):
                kept.copy_(new)
        else:
            self._weights = weights
        self._load()

    def pin(self) -> None:
        """From now on `refresh` writes to the same memory, so that a CUDA graph of `run` stays valid."""
        if not self._pinned:
            self._weights, self._pinned = tuple(w.clone() for w in self._weights), True
            self._load()

    def _aliased(self) -> bool:
        """Whether the engine reads the model's own memory, and still would: storages that `_aliases` holds can be
        nobody else's."""
        if not self._pointers:
            return False
        held = self.network.held()
        try:
            return all(map(Tensor.is_set_to, held, self._aliases)) and [t.dtype for t in held] == self._types
        except NotImplementedError:  # one is on another device by now
            return False

    def _unchanged(self) -> bool:
        """Whether the model holds what was last read, which is sooner found out than folded again; on a CPU."""
        pairs = zip(self._seen, self.network.held(), strict=False)
        alike = ((a.dtype, a.device) == (b.dtype, b.device) and a.equal(b) for a, b in pairs)
        return bool(self._seen) and all(alike)

    def _read(self) -> tuple[Tensor, ...]:
        """The lowered weights now: the model's own tensors where nothing is folded into them, copies if frozen."""
        with torch.no_grad():
            held = self.network.tensors()
            weights = self._lowered.weights(*held)
            aliased = {w.data_ptr() for w in weights}.issubset(t.data_ptr() for t in held)
            known = self.frozen or aliased or self.network.device.type != "cpu"
            self._seen = [] if known else [t.clone() for t in held]
            return tuple(w.clone() for w in weights) if self.frozen else tuple(weights)

    def explain(self, verbose: bool = False) -> str:
        """What runs where and why; with `verbose` also the engine's tape and the lowered graph."""
        lines = [f"{type(self.network.model).__name__} on {self.network.device}, samples {self.network.shape}:"]
        if self.engine is not None and self.tape is not None:
            size = self.engine.workspace / 2**20
            whose = "block" if self.network.device.type == "cuda" else "thread"
            lines.append(f"  native engine, {len(self.tape.ops)} layers, {size:.1f} MiB a {whose}")
        else:
            lines.append(f"  lowered graph through PyTorch, since {self.reason}")
        lines += [f"  {note}" for note in self._lowered.notes]
        if verbose:
            lines += ["", str(self.tape) if self.tape is not None else "", "", str(self._lowered.forward.graph)]
        return "\n".join(lines)

    def _build(self) -> None:
        network = self.network
        native = _backend.module_for(network.device)
        if native is None or not hasattr(native, "Engine"):
            self.reason = _backend.missing.get(network.device.type, "") or f"no engine runs on {network.device.type}"
            return
        try:
            tape = engine.build(self._lowered, self._weights, network.shape, network.dtype)
            tape.constants = [c.to(network.device) for c in tape.constants]
            with self._on_device():
                self.engine = native.Engine(tape.values, tape.ops, [count for _, count in tape.tensors])
        except (Unsupported, ValueError) as error:  # ValueError: CUDA's engine has fewer layers
            self.reason = str(error)
            return
        self.tape = tape

    def _load(self) -> None:
        if self.engine is None or self.tape is None:
            return
        weights = [self._weights[i] if i >= 0 else self.tape.constants[-1 - i] for i, _ in self.tape.tensors]
        dense = [w.contiguous() for w in weights]
        pointers = [w.data_ptr() for w in dense]
        self._give(pointers)
        self._aliases = self.network.tensors()
        own = {t.data_ptr() for t in (*self._aliases, *self.tape.constants)}
        self._pointers = pointers if own.issuperset(pointers) and not self.frozen else []
        self._types = [t.dtype for t in self._aliases]

    def _give(self, pointers: list[int]) -> None:
        if self.network.device.type == "cuda":
            self._call(self.engine.load, pointers)
        else:
            self.engine.load(pointers)

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        """A native call; its last argument is where it runs: on how many threads, or on which stream."""
        device = self.network.device
        with self._on_device():
            method(
                *arguments,
                torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else _backend.threads(),
            )

    def _on_device(self) -> AbstractContextManager[Any]:
        device = self.network.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _fits(self, x: Tensor) -> bool:
        network = self.network
        return tuple(x.shape[1:]) == network.shape and x.dtype == network.dtype and x.device == network.device


def compile(model: nn.Module, example: Tensor, *, frozen: bool = False) -> Compiled:
    """A copy of the model in eval mode that runs as fast as this machine allows; the model itself is never touched.

    Batch norm is folded, dropout removed, parameters are copied; on the CPU the native engine runs what it has layers
    for. Parameters are read again at every call and at every attack unless `frozen`.

    Args:
        model: maps (batch, ...) to (batch, classes).
        example: an input (batch, ...); its shape, dtype and device are what the result is for.
        frozen: keep the parameters of this moment; `refresh()` takes over new ones.

    Raises:
        TypeError: if `model` is no module or `example` no tensor.
        CaptureError: if the model cannot be exported, naming the place.
    """
    compiled = Compiled(capture(model, example), frozen)
    compiled.model = model
    return compiled
