"""What `diagnose` makes of numbers that are out of line."""

from __future__ import annotations

from typing import Any

import pytest
from attacks.closed_form import linear

import fastrobust as fr
from fastrobust.evaluation import diagnose
from fastrobust.evaluation.verdicts import judge

CHANGES: list[tuple[tuple[str, str], Any, set[str]]] = [
    (("against_steps", "accuracy"), [0.4, 0.6, 0.6], {"steps"}),  # one step beats many
    (("against_steps", "accuracy"), [0.9, 0.6, 0.7], {"steps"}),
    (("against_steps", "accuracy"), [0.9, 0.6, 0.5], {"steps"}),  # not converged
    (("against_steps", "accuracy"), [0.9, 0.61, 0.6], set()),
    (("against_steps", "bad_gradients"), 0.3, {"gradients"}),
    (("against_restarts", "accuracy"), [0.6, 0.6, 0.5], {"restarts"}),
    (("against_restarts", "accuracy"), [0.6, 0.5, 0.55], {"restarts"}),
    (("against_restarts", "accuracy"), [0.6, 0.5, 0.49], set()),
    (("attacks", "only_square"), 0.1, {"black box"}),
    (("attacks", "only_noise"), 0.1, {"noise"}),
    (("attacks", "only_noise"), 0.02, set()),
    (("radii", "accuracy"), [0.8, 0.5, 0.6, 0.1], {"radii"}),
    (("unbounded", "accuracy"), 0.2, {"unbounded"}),
    (("unbounded", "accuracy"), 0.01, set()),
    (("gradients", "not_finite"), 0.1, {"gradients"}),
    (("gradients", "saturated"), 1.0, set()),  # harmless where attacks by cross-entropy do as well
    (("derivative", "error"), 0.5, {"derivative"}),
    (("derivative", "error"), None, set()),
    (("model", "probabilities"), True, {"logits"}),
    (("model", "finite"), False, {"logits"}),
    (("model", "difference"), 0.5, {"randomness"}),
]


@pytest.fixture(scope="module")
def healthy() -> dict[str, Any]:
    model, x, y = linear(4)
    return {
        **diagnose(model, x, y, fr.Linf(0.2), steps=(1, 10, 40), restarts=(1, 3, 6), queries=300).numbers,
        "points": 100,
    }


@pytest.mark.parametrize(("where", "value", "wanted"), CHANGES, ids=[f"{w[0]}-{w[1]}-{v}" for w, v, _ in CHANGES])
def test_a_number_out_of_line_is_judged(
    healthy: dict[str, Any], where: tuple[str, str], value: Any, wanted: set[str]
) -> None:
    changed = {**healthy, where[0]: {**healthy[where[0]], where[1]: value}}
    assert {finding.name for finding in judge(changed) if finding.suspicious} == wanted


def test_one_point_of_a_few_may_be_chance(healthy: dict[str, Any]) -> None:
    for points, wrong, suspicious in ((10, 1, False), (10, 2, True), (1000, 20, False), (1000, 30, True)):
        changed = {**healthy, "points": points, "attacks": {**healthy["attacks"], "only_square": wrong / points}}
        assert any(finding.suspicious for finding in judge(changed)) == suspicious
