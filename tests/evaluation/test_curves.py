"""Curves over norms and attacks, and the measures of what an attack did, on a linear model whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.evaluation import ENVELOPE, accuracy, curves, measure, sweep, threats
from fastrobust.threat import Threat

WEIGHT = torch.tensor([1.0, -2.0, 0.5, 3.0])
BOX = (-10.0, 10.0)
EPS = {"Linf": (0.0, 0.05, 0.1, 0.2, 0.4), "L2": (0.1, 0.3, 0.9), "L1": (0.2, 0.5)}
DUAL = {"Linf": WEIGHT.abs().sum().item(), "L2": WEIGHT.norm().item(), "L1": WEIGHT.abs().max().item()}


@pytest.fixture
def problem() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear model, points, labels of which 20 are wrong, and |w.x|, 0 at a wrong label."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2, bias=False)
    model.weight.data.copy_(torch.stack((torch.zeros(4), WEIGHT)))
    x = torch.randn(120, 4)
    score = x @ WEIGHT
    y = (score > 0).long()
    y[:20] = 1 - y[:20]
    margin = score.double().abs()
    margin[:20] = 0
    return model, x, y, margin


def pgd(model: nn.Module):
    return lambda threat: fr.attacks.PGD(model, threat=threat, steps=20, alpha=threat.eps / 4, early_stop=True)


def fmn(model: nn.Module):
    return lambda threat: fr.attacks.FMN(model, threat.norm, steps=60, box=threat.box)


def test_curves_are_the_closed_form_and_the_envelope_is_their_minimum(problem):
    model, x, y, margin = problem
    found = curves(model, x, y, EPS, {"PGD": pgd(model), "FMN": fmn(model)}, BOX, batch_size=50)
    assert list(found) == list(EPS)
    for norm, rows in found.items():
        assert list(rows) == ["PGD", "FMN", ENVELOPE]
        exact = margin / DUAL[norm]
        assert bool((rows[ENVELOPE].distance >= exact * (1 - 1e-5)).all())
        assert bool((rows["FMN"].distance <= exact * 1.01).all())
        assert torch.equal(rows[ENVELOPE].distance, torch.minimum(rows["PGD"].distance, rows["FMN"].distance))
        assert torch.equal(rows["PGD"].distance == 0, margin == 0)
        for e, share in zip(rows["PGD"].eps, rows["PGD"].accuracy, strict=True):
            clear = (exact - e).abs() > 1e-5
            assert torch.equal((rows["PGD"].distance > e)[clear], (exact > e)[clear])
            assert rows[ENVELOPE].at(e) <= share
        assert rows[ENVELOPE].median == pytest.approx(exact.median().item(), rel=0.01)


@pytest.mark.parametrize("method", ["ascend", "bisect"])
def test_a_curve_of_a_radius_attack_is_its_sweep(problem, method):
    model, x, y, _ = problem
    one = curves(model, x, y, {"Linf": EPS["Linf"]}, {"PGD": pgd(model)}, BOX, method=method)["Linf"]["PGD"]
    other = sweep(model, x, y, lambda e: pgd(model)(fr.Linf(e, BOX)), EPS["Linf"], method=method)
    assert one.accuracy == other.accuracy
    assert one.accuracy[0] == accuracy(model, x, y)


def test_a_point_outside_the_ball_counts_where_it_lies(problem):
    model, x, y, _ = problem

    class Overshoot:
        def __init__(self, threat: Threat) -> None:
            self.eps = threat.eps

        def __call__(self, x: Tensor, y: Tensor) -> Tensor:
            return x + 2 * self.eps * WEIGHT.sign() * (1 - 2 * y[:, None])

    found = curves(model, x, y, {"Linf": (0.1, 0.2)}, {"far": Overshoot}, BOX, method="ascend")["Linf"]["far"]
    assert found.at(0.19) == accuracy(model, x, y)
    assert found.at(0.41) < found.at(0.19)


def test_minimum_norm_attacks_run_once_a_norm(problem):
    model, x, y, _ = problem
    made: list[float] = []

    def make(threat: Threat):
        made.append(threat.eps)
        return fmn(model)(threat)

    curves(model, x, y, {"L2": EPS["L2"]}, {"FMN": make}, BOX)
    assert set(made) == {EPS["L2"][-1]}


def test_progress_names_norm_radius_and_attack(problem):
    model, x, y, _ = problem
    seen: list[tuple[str, int, int]] = []
    curves(model, x, y, {"Linf": (0.1,)}, {"PGD": pgd(model)}, BOX, batch_size=60, progress=lambda *s: seen.append(s))
    assert seen == [("Linf 0.1 PGD", 60, 100), ("Linf 0.1 PGD", 100, 100)]


@pytest.mark.parametrize(
    ("eps", "attacks", "message"),
    [
        ({"Linf": ()}, {"a": lambda t: None}, "eps must be ascending"),
        ({"Linf": (0.2, 0.1)}, {"a": lambda t: None}, "eps must be ascending"),
        ({"Linf": (math.nan,)}, {"a": lambda t: None}, "eps must be ascending"),
        ({"L7": (0.1,)}, {"a": lambda t: None}, "norm must be one of Linf, L2, L1"),
        ({"Linf": (0.1,)}, {}, "attacks must hold at least one"),
        ({"Linf": (0.1,)}, {ENVELOPE: lambda t: None}, "none named 'envelope'"),
    ],
)
def test_wrong_arguments_are_named(problem, eps, attacks, message):
    model, x, y, _ = problem
    with pytest.raises(ValueError, match=message):
        curves(model, x, y, eps, attacks, BOX)


def test_measures_by_hand():
    model = nn.Linear(1, 2, bias=False)
    model.weight.data.copy_(torch.tensor([[0.0], [1.0]]))
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    y = torch.tensor([1, 1, 1, 0])  # the last is a clean error
    x_adv = torch.tensor([[-0.5], [-2.0], [2.5], [4.0]])
    found = measure(model, x, y, x_adv, "L2")
    assert (found.points, found.accuracy, found.robust_accuracy) == (4, 0.75, 0.25)
    assert found.success_rate == 0.75
    assert found.success_rate_of_correct == pytest.approx(2 / 3)
    assert found.mean_perturbation == found.median_perturbation == 2.75


def test_measures_of_nothing_broken_are_nan():
    model = nn.Linear(1, 2, bias=False)
    model.weight.data.copy_(torch.tensor([[0.0], [1.0]]))
    x = torch.tensor([[1.0]])
    found = measure(model, x, torch.tensor([1]), x)
    assert (found.success_rate, found.success_rate_of_correct) == (0, 0)
    assert math.isnan(found.mean_perturbation)
    assert math.isnan(measure(model, x, torch.tensor([0]), x).success_rate_of_correct)


def test_threats_have_a_row_each(problem):
    model, x, y, margin = problem
    against = {"trained for": fr.Linf(0.1, BOX), "larger": fr.Linf(0.2, BOX), "L2": fr.L2(0.3, BOX)}
    rows = threats(model, x, y, against, pgd(model), batch_size=50)
    assert list(rows) == list(against)
    for name, threat in against.items():
        stands = (margin / DUAL[threat.norm] > threat.eps).double().mean().item()
        assert rows[name].robust_accuracy == pytest.approx(stands, abs=0.01)
        assert rows[name].mean_perturbation <= threat.eps
