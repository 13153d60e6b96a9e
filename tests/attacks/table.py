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
        several: whether it does so with several classes too, because it tries them all.
        targeted: whether it takes `targeted=True`.
        draws: whether it draws random numbers.
    """

    make: Callable[..., Any]
    norm: str
    ratio: float = 1.01
    several: bool = False
    targeted: bool = True
    draws: bool = True


def _apgd(norm: str, loss: str) -> Callable[..., Any]:
    return lambda model, eps, **keywords: attacks.APGD(model, norm, eps, loss=loss, **keywords)


def _apgdt(norm: str) -> Callable[..., Any]:
    return lambda model, eps, **keywords: attacks.APGDT(model, norm, eps, **keywords)


def _mifgsm(norm: str) -> Callable[..., Any]:
    return lambda model, eps, **keywords: attacks.MIFGSM(
        model, eps, eps / 4, 20, norm=norm, loss="margin", early_stop=True, **keywords
    )


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
    **{f"APGDT {norm}": Within(_apgdt(norm), norm, several=True, targeted=False) for norm in ("Linf", "L2", "L1")},
    **{f"MIFGSM {norm}": Within(_mifgsm(norm), norm, draws=False) for norm in ("Linf", "L2")},
    "Square Linf": Within(_square("Linf", 250), "Linf", 1.05),
    "Square L2": Within(_square("L2", 150), "L2", 1.7),
    "Square L1": Within(_square("L1", 150), "L1", 2.0),
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
        first: whether it stops at the first point that fools, so that `eps` spares it no step.
        wide: whether these hold in a box much wider than the norm (the steps of some are shares of the box).
    """

    make: Callable[..., Any]
    norm: str
    quick: dict[str, Any]
    ratio: float = 1.01
    extra: float = 0.0
    several: float = 1.01
    targeted: bool = True
    draws: bool = False
    first: bool = False
    wide: bool = True


def _of(attack: Any, norm: str, **budget: Any) -> Callable[..., Any]:
    return lambda model, **keywords: attack(model, norm, **{**budget, **keywords})


def _hop(norm: str) -> Callable[..., Any]:
    def make(model: Any, n_queries: int = 600, **keywords: Any) -> Any:
        return attacks.HopSkipJump(model, norm, n_queries, first_estimate=20, **keywords)

    return make


def _fmn(norm: str) -> Callable[..., Any]:
    return lambda model, **keywords: attacks.FMN(model, norm, **keywords)


def _cw(model: Any, **keywords: Any) -> attacks.CW:
    return attacks.CW(model, **{"steps": 100, "learning_rate": 0.02, "initial_const": 1.0, **keywords})


def _sigma_zero(model: Any, **keywords: Any) -> attacks.SigmaZero:
    return attacks.SigmaZero(model, **{"steps": 200, **keywords})


MINIMUM = {
    "HopSkipJump L2": Minimum(_hop("L2"), "L2", {"n_queries": 100}, 1.1, several=1.1, draws=True),
    "HopSkipJump Linf": Minimum(_hop("Linf"), "Linf", {"n_queries": 100}, 1.2, several=1.2, draws=True),
    "DDN": Minimum(attacks.DDN, "L2", {"steps": 20}, several=1.05),
    **{
        f"DeepFool {norm}": Minimum(_of(attacks.DeepFool, norm), norm, {}, 1.02, 3e-4, 1.02, first=True)
        for norm in ("Linf", "L2")
    },
    **{f"FAB {norm}": Minimum(_of(attacks.FAB, norm, steps=20), norm, {"steps": 5}) for norm in ("Linf", "L2", "L1")},
    **{
        f"FABT {norm}": Minimum(_of(attacks.FABT, norm, steps=20, targets=3), norm, {"steps": 5}, targeted=False)
        for norm in ("Linf", "L2", "L1")
    },
    "CW": Minimum(_cw, "L2", {"steps": 20, "searches": 3, "learning_rate": 0.1}, ratio=1.03, several=1.03, wide=False),
    **{f"FMN {norm}": Minimum(_fmn(norm), norm, {"steps": 20}) for norm in ("Linf", "L2", "L1")},
    "FMN L0": Minimum(_fmn("L0"), "L0", {"steps": 20}, ratio=1.0, several=1.0, extra=1),
    "SigmaZero": Minimum(_sigma_zero, "L0", {"steps": 30}, ratio=1.0, several=1.0, extra=1),
}
