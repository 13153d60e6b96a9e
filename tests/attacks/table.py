"""One line an attack: what every test of the suite runs over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fastrobust import attacks

__all__ = ["MINIMUM", "WITHIN", "Minimum", "Within"]


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


def _transfer(model: Any, eps: float, **keywords: Any) -> Any:
    return attacks.Transfer(model, [model, model], eps=eps, alpha=eps / 4, **keywords)


WITHIN = {
    **{
        f"APGD {loss} {norm}": Within(_apgd(norm, loss), norm)
        for loss in ("ce", "dlr")
        for norm in ("Linf", "L2", "L1")
    },
    **{f"APGDT {norm}": Within(_apgdt(norm), norm, targeted=False) for norm in ("Linf", "L2", "L1")},
    "Square Linf": Within(_square("Linf", 200), "Linf", 1.05),
    "Square L2": Within(_square("L2", 100), "L2", 2.0),
    "Square L1": Within(_square("L1", 100), "L1", 2.5),
    "Transfer": Within(_transfer, "Linf"),
}


class Minimum(NamedTuple):
    """An attack that looks for the nearest point that fools the model.

    Attributes:
        make: (model, **keywords) -> the attack, with its default budget.
        norm: what it minimises.
        quick: keywords of a smaller budget, for what needs no optimum.
        ratio, extra: on a linear model it finds a norm of at most ratio * least norm + extra.
        several: the same ratio with several classes, which at least half of the points must reach.
        targeted: whether it takes `targeted=True`.
        draws: whether it draws random numbers.
    """

    make: Callable[..., Any]
    norm: str
    quick: dict[str, Any]
    ratio: float = 1.01
    extra: float = 0.0
    several: float = 1.01
    targeted: bool = True
    draws: bool = False


def _hop(norm: str) -> Callable[..., Any]:
    def make(model: Any, n_queries: int = 600, **keywords: Any) -> Any:
        return attacks.HopSkipJump(model, norm, n_queries, first_estimate=20, **keywords)

    return make


MINIMUM = {
    "HopSkipJump L2": Minimum(_hop("L2"), "L2", {"n_queries": 100}, 1.1, several=1.1, draws=True),
    "HopSkipJump Linf": Minimum(_hop("Linf"), "Linf", {"n_queries": 100}, 1.2, several=1.2, draws=True),
    "DDN": Minimum(attacks.DDN, "L2", {"steps": 20}, several=1.05),
}
