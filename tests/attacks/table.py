"""One line an attack: what every test of the suite runs over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fastrobust import attacks

__all__ = ["WITHIN", "Within"]


class Within(NamedTuple):
    """An attack within a ball.

    Attributes:
        make: (model, eps, **keywords) -> the attack, with a budget that a small model needs.
        norm: of the ball.
        ratio: it must succeed at this many times the least radius that suffices on a linear model.
        targeted: whether it takes `targeted=True`.
        draws: whether it draws random numbers.
    """

    make: Callable[..., Any]
    norm: str
    ratio: float = 1.01
    targeted: bool = True
    draws: bool = True


def _apgd(norm: str, loss: str) -> Callable[..., Any]:
    return lambda model, eps, **keywords: attacks.APGD(model, norm, eps, loss=loss, **keywords)


def _apgdt(norm: str) -> Callable[..., Any]:
    return lambda model, eps, **keywords: attacks.APGDT(model, norm, eps, **keywords)


def _square(norm: str, n_queries: int, **settings: Any) -> Callable[..., Any]:
    return lambda model, eps, **keywords: attacks.Square(model, norm, eps, n_queries, **settings, **keywords)


WITHIN = {
    **{
        f"APGD {loss} {norm}": Within(_apgd(norm, loss), norm)
        for loss in ("ce", "dlr")
        for norm in ("Linf", "L2", "L1")
    },
    **{f"APGDT {norm}": Within(_apgdt(norm), norm, targeted=False) for norm in ("Linf", "L2", "L1")},
    "Square Linf": Within(_square("Linf", 400), "Linf"),
    "Square L2": Within(_square("L2", 400), "L2", 1.5),
    "Square L1": Within(_square("L1", 400), "L1", 1.5),
}
