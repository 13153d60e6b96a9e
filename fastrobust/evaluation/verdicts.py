"""From the numbers of `probes` to findings: what each check saw, whether it is suspicious, what to try."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastrobust.attacks._doubts import ADVICE, DRAWS, SAME

from .probes import Numbers
from .shares import percent

__all__ = ["Finding", "judge"]

ONE, SHARE = 1, 0.02  # points, and share of the points, up to which a difference may be chance
WRONG_SLOPE = 0.2  # mean error of the gradient against finite differences
SURVIVORS = 0.05  # share of the points that an attack without bounds may leave


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: of the check.
        suspicious: whether the robust accuracy should not be believed before this is looked into.
        saw: the numbers, in words.
        advice: what to try; empty where nothing is wrong.
    """

    name: str
    suspicious: bool
    saw: str
    advice: str = ""


def judge(numbers: Numbers) -> list[Finding]:
    """The findings that the numbers of `diagnose` mean, a check each, in a fixed order."""
    return [Finding(name, bool(advice), saw, advice) for name, (saw, advice) in ((n, c(numbers)) for n, c in CHECKS)]


Said = tuple[str, str]  # what was seen; what to try, or ""


def _matters(numbers: Numbers) -> float:
    """The share of the points above which a difference counts; half a point away from any count."""
    points = int(numbers["points"])
    return (max(int(SHARE * points), ONE) + 0.5) / points


def _logits(numbers: Numbers) -> Said:
    model = numbers["model"]
    if not model["finite"]:
        return "NaN or infinite logits", "look into the model: attacks cannot follow them"
    saw = f"{model['classes']} logits, from {model['lowest']:.3g} to {model['highest']:.3g}"
    if model["probabilities"]:
        return f"{saw}, that sum to 1: probabilities", ADVICE["probabilities"]
    return saw, ""


def _randomness(numbers: Numbers) -> Said:
    apart = numbers["model"]["difference"]
    if apart > SAME:
        return f"logits of {DRAWS} passes differ by up to {apart:.2g} of their length", ADVICE["random"]
    return f"{DRAWS} passes agree to {SAME:g} of the logits' length", ""


def _gradients(numbers: Numbers) -> Said:
    found, along = numbers["gradients"], numbers["against_steps"]["bad_gradients"]
    saw = (
        f"zero throughout at {percent(found['zero'])} of the points, not finite at {percent(found['not_finite'])}; "
        f"met by PGD on its way from {percent(along)}"
    )
    return saw, ADVICE["zero"] if max(found["zero"], found["not_finite"], along) > _matters(numbers) else ""


def _saturation(numbers: Numbers) -> Said:
    found, by = numbers["gradients"], numbers["attacks"]
    saw = (
        f"cross-entropy exactly 0 at {percent(found['saturated'])} of the points; accuracy under APGD "
        f"{percent(by['apgd-ce'])} by cross-entropy, {percent(by['apgd-dlr'])} by DLR"
    )
    matters = _matters(numbers)
    helps = by["apgd-ce"] - by["apgd-dlr"] > matters or found["zero"] - found["margin_zero"] > matters
    if found["saturated"] > matters and helps:
        return saw, 'its gradient is lost in rounding; attack with loss="dlr" or "margin"'
    return saw, ""


def _derivative(numbers: Numbers) -> Said:
    found = numbers["derivative"]
    if found is None:
        return "not run: the model is random", ""
    if found["error"] is None:
        return "no point's margin changes enough to compare", ""
    saw = (
        f"mean error of the gradient against finite differences {found['error']:.2f} of 1, "
        f"at {percent(found['compared'])} of the points"
    )
    if found["error"] > WRONG_SLOPE and found["compared"] > _matters(numbers):
        return (
            saw,
            "the backward pass is not the derivative (rounding, detach, a function of one's own?): try BPDA, Square",
        )
    return saw, ""


def _against_steps(numbers: Numbers) -> Said:
    found = numbers["against_steps"]
    saw = _row(found["steps"], found["accuracy"], "steps")
    rise, matters = _rise(found["accuracy"]), _matters(numbers)
    if rise > matters:
        return (
            saw,
            f"more steps lost {percent(rise)}: gradients mislead; try smaller steps, another loss, restarts, Square",
        )
    if _last_fall(found["accuracy"]) > matters:
        return saw, f"still falling: {found['steps'][-1]} steps are too few; attack with more"
    return saw, ""


def _against_restarts(numbers: Numbers) -> Said:
    found = numbers["against_restarts"]
    saw = _row(found["restarts"], found["accuracy"], f"starts of {found['steps']} steps")
    rise, matters = _rise(found["accuracy"]), _matters(numbers)
    if rise > matters:
        return saw, f"{percent(rise)} of the points were fooled once and not again; {ADVICE['random']}"
    if _last_fall(found["accuracy"]) > matters:
        return saw, "still falling: attack with more restarts, and more steps each"
    return saw, ""


def _black_box(numbers: Numbers) -> Said:
    by = numbers["attacks"]
    saw = (
        f"accuracy {percent(by['square'])} under Square ({by['queries']} queries), {percent(by['white'])} under APGD; "
        f"only Square fools {percent(by['only_square'])}"
    )
    return saw, f"gradients had failed: {ADVICE['masked']}" if by["only_square"] > _matters(numbers) else ""


def _noise(numbers: Numbers) -> Said:
    by = numbers["attacks"]
    saw = (
        f"accuracy {percent(by['noise'])} under {by['draws']} random draws; only they fool {percent(by['only_noise'])}"
    )
    return saw, f"chance beats the gradients: {ADVICE['masked']}" if by["only_noise"] > _matters(numbers) else ""


def _radii(numbers: Numbers) -> Said:
    found = numbers["radii"]
    rise = _rise(found["accuracy"])
    saw = _row([f"{eps:.3g}" for eps in found["eps"]], found["accuracy"], "radius")
    if rise > _matters(numbers):
        return saw, f"a larger ball lost {percent(rise)}: the attack fails; try other step sizes, restarts, losses"
    return saw, ""


def _unbounded(numbers: Numbers) -> Said:
    found = numbers["unbounded"]
    saw = f"accuracy {percent(found['accuracy'])} under PGD with {found['steps']} steps through the whole box"
    if found["accuracy"] > max(SURVIVORS, _matters(numbers)):
        return saw, "the attack fails, the model is not robust: mend the attack (gradients, loss, step size) first"
    return saw, ""


CHECKS: tuple[tuple[str, Callable[[Numbers], Said]], ...] = (
    ("logits", _logits),
    ("randomness", _randomness),
    ("gradients", _gradients),
    ("saturation", _saturation),
    ("derivative", _derivative),
    ("steps", _against_steps),
    ("restarts", _against_restarts),
    ("black box", _black_box),
    ("noise", _noise),
    ("radii", _radii),
    ("unbounded", _unbounded),
)


def _row(at: Sequence[object], accuracy: Sequence[float], what: str) -> str:
    return f"accuracy {', '.join(map(percent, accuracy))} at {', '.join(map(str, at))} {what}"


def _rise(accuracy: Sequence[float]) -> float:
    """The largest gain of a later entry over an earlier one."""
    return max((later - a for k, a in enumerate(accuracy) for later in accuracy[k + 1 :]), default=0.0)


def _last_fall(accuracy: Sequence[float]) -> float:
    return accuracy[-2] - accuracy[-1] if len(accuracy) > 1 else 0.0
