"""FAB: its projections against independent solvers, its restarts and targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attacks.closed_form import distance, least_norm, linear
from attacks.nets import cnn, images, mlp, predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from fastrobust import _backend
from fastrobust.attacks import FAB, FABT
from fastrobust.attacks._boundary import least_step
from fastrobust.attacks._points import Points

NORMS = ("Linf", "L2", "L1")


def oracle(x: np.ndarray, w: np.ndarray, missing: float, norm: str, low: np.ndarray, high: np.ndarray) -> float:
    """The least norm, by a linear program (Linf, L1) or a bisection (L2); -1 where there is no such point."""
    n, (down, up) = len(x), (low - x, high - x)
    ways = np.where(w * missing > 0, up, down)
    if np.abs(np.where(w != 0, w * np.where(w == 0, 0, ways), 0)).sum() < abs(missing):
        return -1.0
    if norm == "L2":
        left, right = 0.0, 1.0
        move = lambda level: np.clip(level * np.sign(missing) * w, down, up)  # noqa: E731
        while w @ move(right) * np.sign(missing) < abs(missing) and right < 1e30:
            right *= 2
        for _ in range(200):
            middle = (left + right) / 2
            enough = w @ move(middle) * np.sign(missing) >= abs(missing)
            left, right = (left, middle) if enough else (middle, right)
        return float(np.linalg.norm(move(right)))
    bounds = [*zip(down, up, strict=True)]
    one = np.eye(n)
    if norm == "Linf":  # of (d, t): t, with |d_i| <= t
        cost, weights = np.r_[np.zeros(n), 1], np.r_[w, 0]
        below = np.block([[one, -np.ones((n, 1))], [-one, -np.ones((n, 1))]])
        bounds.append((0, np.inf))
    else:  # of (d, s): the sum of s, with |d_i| <= s_i
        cost, weights = np.r_[np.zeros(n), np.ones(n)], np.r_[w, np.zeros(n)]
        below = np.block([[one, -one], [-one, -one]])
        bounds += [(0, np.inf)] * n
    found = linprog(cost, below, np.zeros(2 * n), weights[None], [missing], bounds, method="highs")
    assert found.status == 0, found.message
    return float(found.fun)


def norm_of(d: Tensor, norm: str) -> float:
    return float(distance(d, torch.zeros_like(d), norm))


number = st.floats(-2, 2, allow_subnormal=False).map(lambda v: 0.0 if abs(v) < 1e-3 else v)


@st.composite
def problems(draw: Any) -> tuple[np.ndarray, ...]:
    n = draw(st.integers(1, 7))
    pick = lambda values: np.array(draw(st.lists(values, min_size=n, max_size=n)))  # noqa: E731
    low, width, at = pick(number), pick(st.sampled_from([0.0, 0.3, 1.0, 2.5, np.inf])), pick(st.floats(0, 1))
    x = low + np.where(np.isinf(width), 1.0, width) * pick(st.sampled_from([0.0, 0.25, 1.0])) * (at > 0.2)
    high, low = np.maximum(x, low + width), np.where(pick(st.booleans()), low, -np.inf)
    weight = pick(number) * draw(st.sampled_from([1.0, 1e-4, 1e3]))
    missing = draw(number) * draw(st.sampled_from([1.0, 0.1, 0.0]))
    return x, weight, np.array(missing * np.abs(weight).max()), low, high


@settings(max_examples=150, deadline=None)
@given(problem=problems(), norm=st.sampled_from(NORMS))
def test_least_steps_are_least(problem: tuple[np.ndarray, ...], norm: str) -> None:
    x, w, missing, low, high = (torch.from_numpy(np.asarray(v, dtype=np.float64)) for v in problem)
    d = least_step(x[None], w[None], missing[None], norm, (low, high))[0]
    assert torch.isfinite(d).all()
    assert (x + d >= low - 1e-12).all()
    assert (x + d <= high + 1e-12).all()
    assert (d[w == 0] == 0).all()
    gained, scale = float(w @ d), float(w.abs().max())
    least = oracle(*(v.numpy() for v in (x, w)), float(missing), norm, low.numpy(), high.numpy())
    if least < 0:  # all that can go has gone to its end
        ends = torch.where(w * missing > 0, high, low).where(w != 0, x)
        gone = torch.allclose(x + d, ends, rtol=0, atol=1e-12)  # but for the rounding of x + (end - x)
        assert gone or abs(gained) >= abs(float(missing)) * (1 - 1e-12)
        return
    assert gained == pytest.approx(float(missing), abs=1e-9 * max(scale, 1e-12), rel=1e-9)
    assert norm_of(d[None], norm) <= least * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_least_steps_in_many_dimensions(norm: str, dtype: torch.dtype) -> None:
    """Rows of a batch, each as alone; against the bisection of L2 and the greedy and level solutions."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.rand(16, 3, 10, 10, generator=generator).to(dtype), torch.randn(16, 3, 10, 10, generator=generator)
    w = (w * (w.abs() > 0.3)).to(dtype)
    missing = (torch.randn(16, generator=generator) * torch.logspace(-4, 2.5, 16)).to(dtype)
    d = least_step(x, w, missing, norm, (0.0, 1.0))
    for row in range(16):
        assert torch.equal(
            d[row], least_step(x[row : row + 1], w[row : row + 1], missing[row : row + 1], norm, (0, 1))[0]
        )
        problem = (v[row].double().flatten().numpy() for v in (x, w))
        low, high = np.zeros(300), np.ones(300)
        least = oracle(*problem, float(missing[row]), norm, low, high)
        if least >= 0:
            assert norm_of(d[row][None], norm) == pytest.approx(least, rel=1e-4)
            assert float((w[row].double() * d[row].double()).sum()) == pytest.approx(float(missing[row]), rel=1e-4)


@pytest.mark.skipif(_backend.plain is None, reason="this build or FASTROBUST_BACKEND has no native kernel")
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("dim", [1, 7, 784])
@pytest.mark.parametrize("wide", [False, True])
def test_the_native_step_is_the_step(norm: str, dim: int, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no step reaches the boundary, where nothing has a slope, and in boxes of each feature's own."""
    generator = torch.Generator().manual_seed(dim)
    low, high = torch.zeros(dim), torch.ones(dim) * torch.linspace(0.5, 1, dim)
    if wide:
        low, high = low - torch.inf, high + torch.inf
    attack = FAB(nn.Linear(dim, 2), norm, box=(low, high), compile=False)
    x, centre = (torch.rand(40, dim, generator=generator) * 0.5 for _ in range(2))
    slope = torch.randn(40, dim, generator=generator) * (torch.rand(40, dim, generator=generator) > 0.2)
    slope[3] = 0
    lead = torch.randn(40, generator=generator) * torch.logspace(-5, 3, 40)
    lead[7] = 0
    attack.prepare(Points(centre, torch.zeros(40, dtype=torch.int64), None, 0.0, 0.0))
    native = attack._moved(x, centre, slope, lead)
    monkeypatch.setattr(_backend, "plain", None)
    expected = attack._moved(x, centre, slope, lead)
    assert torch.allclose(native, expected, rtol=1e-5, atol=1e-6)
    assert (native >= low).all()
    assert (native <= high).all()


@pytest.mark.parametrize("norm", NORMS)
def test_least_steps_at_the_edges(norm: str) -> None:
    x, w = torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([[1.0, -1.0, 0.0]])
    none, far = torch.tensor([0.0]), torch.tensor([9.0])
    free = (-torch.inf, torch.inf)
    assert torch.equal(least_step(x, w, none, norm, (0.0, 1.0)), torch.zeros(1, 3))
    assert torch.equal(least_step(x, w * 0, far, norm, (0.0, 1.0)), torch.zeros(1, 3))
    assert torch.equal(least_step(x, w * 0, far, norm, free), torch.zeros(1, 3))
    assert torch.equal(least_step(x, w, far, norm, (0.0, 1.0)), torch.tensor([[1.0, -1.0, 0.0]]))  # cannot
    assert torch.equal(least_step(x, w, -far, norm, (0.0, 1.0)), torch.zeros(1, 3))  # nowhere to go
    moved = least_step(x, w, far, norm, free)
    assert float((moved * w).sum()) == pytest.approx(9)
    assert norm_of(moved, norm) == pytest.approx({"Linf": 4.5, "L2": 4.5 * 2**0.5, "L1": 9}[norm])
    at_the_edge = least_step(x, w, torch.tensor([2.0]), norm, (0.0, 1.0))  # just possible
    assert torch.allclose(at_the_edge, torch.tensor([[1.0, -1.0, 0.0]]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", [FAB, FABT])
def test_linear_models_with_boxes_a_feature(norm: str, make: Any) -> None:
    """An affine change of units changes nothing: the box [0, 1] as [lo, hi] of a feature each."""
    model, x, y = linear(4)
    least = least_norm(model, x, y, norm)
    low, high = torch.linspace(-1, 0, 12), torch.linspace(0, 1, 12)
    shifted = nn.Linear(12, 4)
    with torch.no_grad():
        shifted.weight.copy_(model.weight)
        shifted.bias.copy_(model.bias - model.weight @ low)
    found = make(shifted, norm, 30, box=(low, low + 1), compile=False).run(x + low, y)
    assert torch.equal(found.success, torch.isfinite(least))
    assert (found.loss[found.success] <= 1.01 * least[found.success] + 1e-6).all()
    assert (found.loss[found.success] >= least[found.success] - 1e-5).all()
    assert (high > low).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", [FAB, FABT])
def test_restarts(make: Any, norm: str) -> None:
    """The first run of a class starts at the point itself, others at half the default radius; they never hurt."""
    model, x = cnn(), images(4) * 0.1 + 0.45
    y = predictions(model, x)
    one, seen = make(model, norm, 2, compile=False).run(x, y), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    more = make(model, norm, 2, 3, compile=False).run(x, y)
    assert (more.loss <= one.loss).all()
    assert (more.steps == 3 * one.steps).all()
    starts = [distance(at, x, norm) for at in seen[len(seen) % 2 :: 2] if at.shape == x.shape]
    for wanted in (0.0, {"Linf": 0.15, "L2": 0.5, "L1": 2.5}[norm]):
        assert any(torch.allclose(start, torch.full_like(start, wanted), rtol=1e-4) for start in starts)


def test_more_targets_never_hurt_and_few_classes_do() -> None:
    model, x = cnn(), images(12)
    y = predictions(model, x)
    few, all_ = (FABT(model, "Linf", 5, targets=targets).run(x, y) for targets in (2, 20))
    assert (all_.loss <= few.loss).all()
    assert (all_.steps == 9 * 5).all()
    binary = mlp(784, 2)
    y = predictions(binary, x)
    assert torch.equal(FABT(binary, "L2", 5).run(x, y).x_adv, FAB(binary, "L2", 5).run(x, y).x_adv)


def test_compiled_and_not_find_alike() -> None:
    model, x = cnn(), images(12)
    y = predictions(model, x)
    for make in (FAB, FABT):
        native, eager = (make(model, "L2", 5, compile=how).run(x, y) for how in (True, False))
        assert torch.allclose(native.loss, eager.loss, rtol=1e-2)


@pytest.mark.parametrize("compile", [True, False])
def test_gradients_of_combinations(compile: bool) -> None:
    """What the boundaries are made of: the gradients of any sums of logits, by autograd."""
    model, x = cnn(), images(3)
    y, c = predictions(model, x), torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0))
    attack = FAB(model, compile=compile)
    with attack._victim.borrowed(x.device):
        attack._victim.compile(x, compile, 1)
        logits, slopes = attack._objective.combination(x, Points(x, y, None, 0.0, 0.0), c)
    free = x.clone().requires_grad_()
    out = model(free)
    assert torch.allclose(logits, out, atol=1e-5)
    for row in range(3):
        for k in range(4):
            (slope,) = torch.autograd.grad((out[row] * c[row, k]).sum(), free, retain_graph=True)
            assert torch.allclose(slopes[row, k], slope[row], atol=1e-5)


def test_final_search_comes_nearer() -> None:
    model, x = cnn(), images(12)
    y = predictions(model, x)
    plain, searched = (FAB(model, "L2", 3, final_search=passes).run(x, y) for passes in (0, 6))
    assert (searched.loss <= plain.loss).all()
    assert (searched.loss < plain.loss).any()
    assert torch.equal(searched.success, predictions(model, searched.x_adv) != y)


def test_half_precision() -> None:
    model, x = cnn().bfloat16(), images(6).bfloat16()
    y = predictions(model, x)
    found = FABT(model, "Linf", 5, targets=2, final_search=2).run(x, y)
    assert found.x_adv.dtype == torch.bfloat16
    assert torch.equal(found.success, predictions(model, found.x_adv) != y)
    assert found.success.any()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"norm": "L0"}, "norm"), ({"steps": 0}, "steps"), ({"eta": 0.9}, "eta"), ({"beta": 1.0}, "beta"),
        ({"alpha_max": 2.0}, "alpha_max"), ({"eps": -1.0}, "eps"), ({"final_search": -1}, "final_search"),
        ({"restarts": 0}, "restarts"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(keywords: dict[str, Any], message: str) -> None:
    for make in (FAB, FABT):
        with pytest.raises(ValueError, match=f"{make.__name__}: {message} must be"):
            make(cnn(), **keywords)
    with pytest.raises(ValueError, match="targets must be"):
        FABT(cnn(), targets=0)
    with pytest.raises(ValueError, match="targeted must be False"):
        FABT(cnn(), targeted=True)
