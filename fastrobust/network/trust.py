"""Whether a compiled network gives the user's gradients, and which one an attack may use."""

from __future__ import annotations

import operator
from collections import deque
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastrobust.network.capture import CaptureError, capture
from fastrobust.network.compile import Compiled
from fastrobust.network.state import contents, holds, kept

__all__ = ["compiled_for", "hooks", "looks", "pays", "work_of"]

SAMPLES = 4  # that the first use compares
LOGITS, GRADIENTS = 1e-4, 1e-2  # relative differences allowed there; a ReLU at a kink may flip on rounding
# What pays for a capture: passes of samples forwards and backwards, and floating-point operations in them all (one to
# three seconds of the eager path).
LEAST_PASSES, LEAST_WORK = 1000, 1e11
MOST_CAPTURES = 4  # of a model that keeps changing
MOST_WATCHED = 10_000  # plain values in a model's attributes, which are compared at every use
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

Key = tuple[tuple[int, ...], torch.dtype, torch.device]


class _Entry:
    """A compiled network, or why there is none, and what the model looked like then."""

    def __init__(self, model: nn.Module, compiled: Compiled | None, reason: str) -> None:
        self.compiled, self.reason, self.captures = compiled, reason, 1
        self.looks = looks(model)
        self.watched = watched(model) if compiled is not None else []
        self.contents = _contents(self.watched)


# Entries hold no strong reference to their model, and go when it goes.
_entries: WeakKeyDictionary[nn.Module, dict[Key, _Entry]] = WeakKeyDictionary()
_work: WeakKeyDictionary[nn.Module, dict[Key, float]] = WeakKeyDictionary()


def compiled_for(model: nn.Module, x: Tensor) -> tuple[Compiled | None, str]:
    """The network that attacks on `model` (in eval mode) may use for x, refreshed; or None and the reason.

    The first use for a model and a kind of input captures, and compares logits and input gradients with the model's.
    """
    key = (tuple(x.shape[1:]), x.dtype, x.device)
    known = _entries.setdefault(model, {})
    entry = known.get(key)
    if entry is None:
        entry = known[key] = _first_use(model, x)
    elif entry.captures <= MOST_CAPTURES and not _still_fits(model, entry):
        captures = entry.captures + 1
        entry = known[key] = _first_use(model, x)
        entry.captures = captures
        if captures > MOST_CAPTURES:
            entry.compiled, entry.reason = None, "the model's attributes change from call to call"
    return entry.compiled, entry.reason


def _still_fits(model: nn.Module, entry: _Entry) -> bool:
    """Whether the model still looks as it did; if so its parameters are read again."""
    now = looks(model)
    if len(now) != len(entry.looks) or not all(map(operator.is_, now, entry.looks)):
        return False
    if entry.watched and _contents(entry.watched) != entry.contents:
        return False
    try:
        if entry.compiled is not None:
            entry.compiled.refresh()
    except ValueError:  # a parameter of another shape, dtype or device
        return False
    return True


def pays(model: nn.Module, x: Tensor, passes: int) -> bool:
    """Whether so many passes of samples like those of x are worth a capture. Counted, not timed: results repeat."""
    return passes >= LEAST_PASSES and 3 * work_of(model, x) * passes >= LEAST_WORK


def work_of(model: nn.Module, x: Tensor) -> float:
    """Floating-point operations of a forward pass on one sample; counted once for a model and a kind of input."""
    key = (tuple(x.shape[1:]), x.dtype, x.device)
    known = _work.setdefault(model, {})
    if key not in known:
        try:
            with _same_randomness(x), torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(x[:1])
            known[key] = float(counter.get_total_flops())
        except Exception:  # the attack itself will show what is wrong
            known[key] = 0.0
    return known[key]


def _same_randomness(x: Tensor) -> AbstractContextManager[None]:
    return torch.random.fork_rng([x.device] if x.is_cuda else [])


def _first_use(model: nn.Module, x: Tensor) -> _Entry:
    reason = hooks(model)
    if not reason and not _watchable(model):
        reason = f"the model's attributes hold more than {MOST_WATCHED:,} plain values, which may change unseen"
    if reason:
        return _Entry(model, None, reason)
    try:
        compiled = Compiled(capture(model, x), frozen=False)
    except CaptureError as error:
        return _Entry(model, None, str(error))
    with _same_randomness(x):
        reason = _difference(model, compiled, x[:SAMPLES])
    return _Entry(model, None if reason else compiled, reason)


def _watchable(model: nn.Module) -> bool:
    def size(found: Any) -> int:
        if isinstance(found, tuple):
            return 1 + sum(map(size, found))
        return 1 + len(found) // 8 if isinstance(found, bytes) else 1

    try:
        return size(contents(watched(model), id)) <= MOST_WATCHED
    except RecursionError:
        return False


class _Same:
    """Equal to what stands for the same object, and printed alike."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"object {id(self.value)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


def _contents(values: list[Any]) -> list[Any]:
    return [contents(value, _Same) for value in values]


def watched(model: nn.Module) -> list[Any]:
    """Attributes that can change without being replaced: lists, dictionaries, arrays, settings in objects.

    Those of PyTorch's own modules are left alone, and so are tensors, whose values are read anew at every use.
    """
    theirs = [module for module in model.modules() if not type(module).__module__.startswith("torch.nn.")]
    return [value for module in theirs for value in kept(module).values() if holds(value)]


def hooks(model: nn.Module) -> str:
    """Hooks see, or change, what a compiled network does not do."""
    for kind in HOOKS:
        if getattr(nn.modules.module, f"_global{kind}"):
            return f"there are global{kind.replace('_', ' ')}"
        for name, module in model.named_modules():
            if getattr(module, kind):
                return f"module {name!r} has {kind[1:].replace('_', ' ')}"
    return ""


def _difference(model: nn.Module, compiled: Compiled, x: Tensor) -> str:
    """Why the compiled network must not stand in for the model; "" if it may. Both of its ways are compared."""
    with torch.enable_grad():
        ours, theirs = (x.detach().clone().requires_grad_() for _ in range(2))
        expected, logits = model(theirs), compiled.run(ours)
        custom = _custom_function(expected)
        if custom:
            return f"the model uses the autograd function {custom}, whose backward a capture does not see"
        if not isinstance(expected, Tensor) or expected.shape != logits.shape or expected.dtype != logits.dtype:
            return "the model returns something else than its capture"
        if expected.dim() != 2 or not expected.requires_grad or not logits.requires_grad:
            return "the result is not a batch of logits with a gradient"
        y = expected.argmin(1)  # a label that leaves a gradient
        want, have = (
            torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), points, allow_unused=True)[0]
            for z, points in ((expected, theirs), (logits, ours))
        )
    found = [(logits, have)]
    if compiled.attackable(x):
        logits, _, _, have = compiled.gradient(x, y)
        found.append((logits, have))
    for logits, have in found:
        if not _close(logits, expected, LOGITS):
            return "the captured network's logits differ from the model's"
        if want is None or have is None or not _close(have, want, GRADIENTS):
            return "the captured network's gradients differ from the model's"
    return ""


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    a, b = a.detach(), b.detach()
    both = torch.isfinite(a) & torch.isfinite(b)
    return bool(both.all()) and float((a - b).norm()) <= tolerance * (float(b.norm()) + 1e-6)


def _custom_function(output: Any) -> str:
    """The name of a `torch.autograd.Function` between input and output, or ""."""
    start = getattr(output, "grad_fn", None)
    seen, queue = {start}, deque([start] if start is not None else [])
    while queue:
        node = queue.popleft()
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return type(node).__name__.removesuffix("Backward")
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
    return ""


def looks(model: nn.Module) -> list[Any]:
    """What a captured model consists of besides the values of its tensors: modules, hooks, plain attributes."""
    found: list[Any] = [len(getattr(nn.modules.module, f"_global{kind}")) for kind in HOOKS]
    for module in model.modules():
        held = module.__dict__  # a module's dictionaries stand for the module
        found += held.values()
        found += [len(held[kind]) for kind in HOOKS]
    return found
