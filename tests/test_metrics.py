"""Accuracy and robust accuracy on models whose answer is known on paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fastrobust.evaluation import accuracy, predict, robust_accuracy, sweep
from fastrobust.evaluation.metrics import Attack

WEIGHT = torch.tensor([1.0, -2.0, 0.5])


class Halves(nn.Module):
    """Logits (0, w.x): class 1 where w.x > 0. The Linf distance of x from the boundary is |w.x| / |w|_1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(WEIGHT.clone())
        self.bias = nn.BatchNorm1d(1)

    def forward(self, x: Tensor) -> Tensor:
        score = x @ self.w
        return torch.stack((torch.zeros_like(score), score), dim=1)


Points = tuple[Halves, Tensor, Tensor, Tensor]


def best_attack(eps: float) -> Attack:
    """The optimal Linf attack on `Halves`: every coordinate moves by eps against the true class."""
    return lambda x, y: x - eps * WEIGHT.sign() * (2 * y[:, None] - 1)


@pytest.fixture
def points() -> Points:
    torch.manual_seed(0)
    x = torch.randn(400, 3)
    score = x @ WEIGHT
    y = (score > 0).long()
    y[:40] = 1 - y[:40]  # forty points the model gets wrong
    distance = score.abs() / WEIGHT.abs().sum()
    distance[:40] = -1
    return Halves(), x, y, distance


def test_sweep_is_the_closed_form_curve_of_a_linear_model(points: Points) -> None:
    model, x, y, distance = points
    eps = [0.0, 0.1, 0.25, 0.5, 1.0]
    result = sweep(model, x, y, best_attack, eps, batch_size=37)
    assert result.eps == tuple(eps)
    assert torch.equal(result.correct, torch.stack([distance > e for e in eps]))
    assert result.accuracy == pytest.approx([(distance > e).double().mean().item() for e in eps])
    assert result.accuracy[0] == accuracy(model, x, y) == pytest.approx(0.9)


@pytest.mark.parametrize(
    "radii", [[0.3], [0.0], [0.0, 0.4], [0.1 * k for k in range(1, 9)], [0.05 * k for k in range(9)]]
)
def test_bisection_finds_the_same_curve_with_few_attacks(points: Points, radii: list[float]) -> None:
    model, x, y, _ = points
    attacked = 0

    def counting(eps: float) -> Attack:
        def attack(x: Tensor, y: Tensor) -> Tensor:
            nonlocal attacked
            attacked += len(x)
            return best_attack(eps)(x, y)

        return attack

    result = sweep(model, x, y, counting, radii, 64, method="bisect")
    assert torch.equal(result.correct, sweep(model, x, y, best_attack, radii).correct)
    assert attacked <= math.ceil(math.log2(len(radii) + 1)) * 360
    with pytest.raises(ValueError, match="method must be"):
        sweep(model, x, y, counting, radii, method="newton")


def test_robust_accuracy_is_the_closed_form_share_for_every_batch_size(points: Points) -> None:
    model, x, y, distance = points
    expected = (distance > 0.3).double().mean().item()
    for batch_size in (1, 64, 1000):
        assert robust_accuracy(model, x, y, best_attack(0.3), batch_size) == pytest.approx(expected)


def test_a_point_broken_at_a_small_eps_stays_broken_where_the_attack_gets_weaker(points: Points) -> None:
    model, x, y, distance = points
    weak_later = {0.5: best_attack(0.5), 1.0: lambda x, y: x}
    result = sweep(model, x, y, weak_later.__getitem__, [0.5, 1.0])
    assert result.accuracy[1] == result.accuracy[0] == pytest.approx((distance > 0.5).double().mean().item())


def test_points_that_are_wrong_already_are_neither_attacked_nor_healed(points: Points) -> None:
    model, x, y, _ = points
    seen = []

    def healer(x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return 10 * WEIGHT * (2 * y[:, None] - 1) + 0 * x

    assert robust_accuracy(model, x, y, healer) == pytest.approx(0.9)
    assert sum(seen) == 360


def test_success_is_measured_on_the_returned_points_not_taken_from_the_attack(points: Points) -> None:
    model, x, y, _ = points

    class Boaster:
        def __call__(self, x: Tensor, y: Tensor) -> Tensor:
            return x

        def run(self, x: Tensor, y: Tensor, index: Tensor) -> SimpleNamespace:
            return SimpleNamespace(x_adv=x, success=torch.ones(len(x), dtype=torch.bool))

    assert robust_accuracy(model, x, y, Boaster()) == accuracy(model, x, y)


def test_an_attack_with_run_is_told_which_samples_it_gets(points: Points) -> None:
    model, x, y, _ = points
    told = []

    class Listener:
        def run(self, part: Tensor, y: Tensor, index: Tensor) -> SimpleNamespace:
            assert torch.equal(part, x[index])
            told.append(index)
            return SimpleNamespace(x_adv=part)

    robust_accuracy(model, x, y, Listener(), batch_size=50)
    assert torch.equal(torch.cat(told), torch.arange(40, 400))


@pytest.mark.parametrize("where", ["clean", "attack"])
def test_module_modes_are_restored_also_after_an_exception(points: Points, where: str) -> None:
    model, x, y, _ = points
    model.train()
    model.bias.eval()  # a frozen batch norm stays frozen

    def fails(x: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("no")

    accuracy(model, x, y)
    with pytest.raises(RuntimeError, match="no" if where == "attack" else "shape|size"):
        robust_accuracy(model, x, y, fails) if where == "attack" else accuracy(model, x[:, :2], y)
    assert model.training
    assert not model.bias.training


def test_a_nan_logit_is_a_wrong_answer() -> None:
    model = nn.Identity()
    logits = torch.tensor([[float("nan"), 0.0], [float("nan"), float("nan")], [1.0, 0.0]])
    assert predict(model, logits).tolist() == [-1, -1, 0]
    assert accuracy(model, logits, torch.tensor([0, 0, 0])) == pytest.approx(1 / 3)


def test_progress_counts_the_points_still_standing(points: Points) -> None:
    model, x, y, distance = points
    calls = []
    sweep(model, x, y, best_attack, [0.1, 0.2], 200, lambda e, done, total: calls.append((e, done, total)))
    alive = int((distance > 0.1).sum())
    assert calls[0] == (0.1, 200, 360)
    assert calls[1] == (0.1, 360, 360)
    assert calls[-1] == (0.2, alive, alive)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: accuracy(m, x, y[:-1]), r"accuracy: y must have shape \(400,\), got \(399,\)"),
        (lambda m, x, y: accuracy(m, x[:0], y[:0]), "x must have at least 1 point"),
        (lambda m, x, y: predict(m, x, 0), "batch_size must be at least 1, got 0"),
        (lambda m, x, y: sweep(m, x, y, best_attack, []), "eps must be ascending"),
        (lambda m, x, y: sweep(m, x, y, best_attack, [0.2, 0.1]), "eps must be ascending"),
        (lambda m, x, y: sweep(m, x, y, best_attack, [-0.1]), "eps must be ascending"),
        (lambda m, x, y: robust_accuracy(m, x, y, lambda x, y: x[:1]), "must have the shape of x"),
        (lambda m, x, y: robust_accuracy(m, x, y, lambda x, y: x * float("nan")), "must be finite"),
    ],
)
def test_misuse_has_a_named_error(points: Points, call: Callable[..., object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*points[:3])
