"""Transfer attacks: made on models at hand, judged on another (Liu, Chen, Liu and Song, ICLR 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastrobust.attacks._attack import Attack
from fastrobust.attacks._points import AttackResult, Points
from fastrobust.attacks._victim import Model
from fastrobust.attacks.pgd import PGD
from fastrobust.threat import Box

__all__ = ["Transfer"]


class Runs(Protocol):
    """What an attack on a surrogate must be able to do."""

    def run(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> AttackResult: ...


class Transfer(Attack):
    """An attack on each surrogate in turn, or on the mean of their logits; only the target model says what is fooled.

    A point that one surrogate's example fools is not attacked on the next; of one that stands the example of highest
    margin loss is kept. Attacks that stop at a surrogate's first mistake (`APGD`, `early_stop=True`) transfer badly:
    the default, `PGD`, goes on to its last step.

    `AttackResult.steps` and `bad_gradients` are sums over the surrogates' attacks.

    Args:
        model: the target: maps (batch, ...) to logits (batch, classes); it is asked for its answer alone.
        surrogates: models of the same inputs and classes.
        attack: makes the attack, as ``attack(surrogate, targeted=..., box=..., compile=..., seed=..., **settings)``.
        ensemble: attack the mean of the surrogates' logits instead of one after another.
        targeted: labels are targets to reach.
        box: (lo, hi), numbers or tensors of a sample's shape.
        compile: "auto", True or False, for the surrogates; the target runs as it is.
        seed: key of the random draws; the surrogates use seed, seed + 1, ...
        batch_size: points attacked, and handed to the target, at a time.
        settings: keywords of `attack`, such as eps, norm and steps.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        model: Model,
        surrogates: Sequence[Model],
        attack: Callable[..., Runs] = PGD,
        *,
        ensemble: bool = False,
        targeted: bool = False,
        box: Box = (0.0, 1.0),
        compile: str | bool = "auto",
        seed: int = 0,
        batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        shared: dict[str, Any] = {"targeted": targeted, "box": box, "compile": compile}
        super().__init__(model, loss="margin", seed=seed, batch_size=batch_size, **{**shared, "compile": False})
        if isinstance(surrogates, nn.Module) and not isinstance(surrogates, nn.ModuleList):
            raise TypeError(f"{type(self).__name__}: surrogates must be a sequence of models, got a single one")
        sources = list(surrogates)
        if not sources:
            raise ValueError(f"{type(self).__name__}: surrogates must hold at least one model, got none")
        self.surrogates, self.ensemble, self.settings = sources, ensemble, settings
        sources = [_mean(sources)] if ensemble else sources
        self.attacks = [attack(source, **shared, seed=seed + i, **settings) for i, source in enumerate(sources)]

    def passes(self) -> int:
        return 1

    def runs(self) -> int:
        return len(self.attacks)

    def _serve(self, work: Points, draw: int) -> AttackResult:
        found = AttackResult.empty(work.x)
        for rows in torch.arange(len(work), device=work.y.device).split(self._slots(work.x)):
            part = work.select(rows)
            made = self.attacks[draw].run(part.x, part.y, part.index)
            value, fooled = self._objective.verdict(made.x_adv, part)
            for into, values in zip(found, (made.x_adv, fooled, value, made.steps, made.bad_gradients), strict=True):
                into[rows] = values.to(into.dtype)
        return found


def _mean(models: list[Model]) -> Model:
    """A model whose logits are the mean of theirs."""
    if all(isinstance(model, nn.Module) for model in models):
        return _Mean(models)
    return lambda x: torch.stack([model(x) for model in models]).mean(0)


class _Mean(nn.Module):
    def __init__(self, models: list[Any]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.models[0](x)
        for model in self.models[1:]:
            total = total + model(x)
        return total / len(self.models)
