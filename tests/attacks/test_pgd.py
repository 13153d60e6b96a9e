"""PGD: against torchattacks' rules, against closed forms, and as described."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from attacks.nets import cnn, images, linear, mlp, predictions
from scipy.optimize import linprog
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.attacks import FGSM, PGD, PGDL2

SETTINGS = {"Linf": (0.05, 0.01), "L2": (1.0, 0.25), "L1": (10.0, 3.0)}


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    rows = (a.double() - b.double()).flatten(1).abs()
    return {"Linf": rows.amax(1), "L2": (rows**2).sum(1).sqrt(), "L1": rows.sum(1)}[norm]


# --- the same as the common implementation -----------------------------------------------------------------------


def plain_linf(model: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int, start: Tensor) -> Tensor:
    """Linf PGD as every tutorial writes it (the arithmetic of torchattacks 3.5.1's PGD)."""
    x_adv = start.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(x_adv), y), x_adv)
        x_adv = x_adv.detach() + alpha * grad.sign()
        x_adv = torch.clamp(x + torch.clamp(x_adv - x, -eps, eps), 0, 1)
    return x_adv


def plain_l2(model: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int, start: Tensor) -> Tensor:
    """L2 PGD that rescales to the ball, then clips (torchattacks 3.5.1's PGDL2)."""
    x_adv = start.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(x_adv), y), x_adv)
        x_adv = x_adv.detach() + alpha * grad / (grad.flatten(1).norm(dim=1) + 1e-10).view(-1, 1, 1, 1)
        delta = x_adv - x
        delta = delta * (eps / delta.flatten(1).norm(dim=1)).clamp_max(1).view(-1, 1, 1, 1)
        x_adv = torch.clamp(x + delta, 0, 1)
    return x_adv


@pytest.mark.parametrize("net", [mlp, cnn])
def test_linf_is_torchattacks(net: Any) -> None:
    model, x = net(), images(32)
    y = predictions(model, x)
    start = fr.ops.random_start(x, 0.05, "Linf", seed=7)
    expected = plain_linf(model, x, y, 0.05, 0.01, 10, start)
    result = PGD(model, 0.05, 0.01, 10, seed=7).run(x, y)
    assert torch.equal(result.x_adv, PGD(model, 0.05, 0.01, 10, random_start=True, seed=7)(x, y))
    agree_or_flip(model, x, y, result, expected, net is mlp)


@pytest.mark.parametrize("net", [mlp, cnn])
def test_l2_is_torchattacks(net: Any) -> None:
    model, x = net(), images(32)
    y = predictions(model, x)
    start = fr.ops.random_start(x, 1.0, "L2", seed=7)
    expected = plain_l2(model, x, y, 1.0, 0.2, 10, start)
    agree_or_flip(model, x, y, PGDL2(model, seed=7).run(x, y), expected, net is mlp)


def agree_or_flip(model: nn.Module, x: Tensor, y: Tensor, result: Any, expected: Tensor, smooth: bool) -> None:
    if smooth:
        assert (result.x_adv - expected).abs().max() <= 1e-5
    differ = ((result.x_adv - expected).abs() > 1e-5).float().mean()
    assert differ <= 0.02  # on convolutions a gradient sign may flip on rounding
    with torch.no_grad():
        reached = nn.functional.cross_entropy(model(expected), y)
    assert abs(float(result.loss.mean()) / float(reached) - 1) <= 0.01


def test_against_torchattacks_itself() -> None:
    """Where torchattacks is installed, from the same start (its own random start switched off)."""
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is an optional peer ([bench] extra)",
                                       exc_type=ImportError)  # fmt: skip
    model, x = mlp(), images(16)
    y = predictions(model, x)
    theirs = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=False)(x, y)
    ours = PGD(model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=False)(x, y)
    assert (ours - theirs).abs().max() <= 1e-5
    theirs = torchattacks.PGDL2(model, eps=1.0, alpha=0.2, steps=10, random_start=False, eps_for_division=1e-10)(x, y)
    ours = PGDL2(model, eps=1.0, alpha=0.2, steps=10, random_start=False, eps_for_division=1e-10)(x, y)
    assert (ours - theirs).abs().max() <= 1e-5


def test_fgsm_is_one_signed_step() -> None:
    model, x = mlp(), images(8)
    y = predictions(model, x)
    assert torch.equal(FGSM(model, eps=0.03)(x, y), plain_linf(model, x, y, 0.03, 0.03, 1, x)) or (
        (FGSM(model, eps=0.03)(x, y) - plain_linf(model, x, y, 0.03, 0.03, 1, x)).abs().max() < 1e-6
    )
    for norm, (eps, _) in SETTINGS.items():
        x_adv = FGSM(model, threat=getattr(fr, norm)(eps))(x, y)
        assert (distance(x_adv, x, norm) <= eps).all()
        assert not torch.equal(x_adv, x)


# --- the optimum of linear models ------------------------------------------------------------------------------------


def worst_gain(w: np.ndarray, x: np.ndarray, eps: float, norm: str) -> float:
    """max <w, d> over ||d|| <= eps and x + d in [0, 1], by an independent method for each norm."""
    lo, hi = -x, 1 - x
    if norm == "Linf":
        return float(np.maximum(w * np.maximum(lo, -eps), w * np.minimum(hi, eps)).sum())
    if norm == "L1":  # linear programme in d = p - q
        size = len(w)
        solved = linprog(-np.concatenate([w, -w]), A_ub=np.ones((1, 2 * size)), b_ub=[eps],
                         bounds=[(0, b) for b in hi] + [(0, -a) for a in lo])  # fmt: skip
        return float(-solved.fun)
    low, high = 0.0, 1e6  # L2: d = clip(t w), the largest t that fits
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if np.linalg.norm(np.clip(t * w, lo, hi)) <= eps else (low, t)
    return float(w @ np.clip(low * w, lo, hi))


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.3), ("L2", 2.0), ("L1", 4.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_optimum_with_the_box(norm: str, eps: float, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(2, 20, generator=g).to(dtype), torch.zeros(2, dtype=dtype)
    x, y = torch.rand(6, 20, generator=g).to(dtype), torch.randint(2, (6,), generator=g)
    model = linear(weight, bias)
    x_adv = PGD(model, eps, eps / 4, 400, norm=norm, loss="margin", random_start=True)(x, y)
    assert (distance(x_adv, x, norm) <= eps).all()
    for i in range(6):
        w = (weight[1 - y[i]] - weight[y[i]]).double().numpy()
        gain = float(w @ (x_adv[i] - x[i]).double().numpy())
        assert abs(gain - worst_gain(w, x[i].double().numpy(), eps, norm)) <= 1e-5 * max(1.0, abs(gain))


# --- behaviour ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", SETTINGS)
@pytest.mark.parametrize("early_stop", [False, True, 2])
def test_result_is_what_it_says(norm: str, early_stop: bool | int) -> None:
    model, x = cnn(), images(40)
    y = predictions(model, x)
    eps, alpha = SETTINGS[norm]
    result = PGD(model, eps, alpha, 8, norm=norm, early_stop=early_stop, restarts=2).run(x, y)
    assert (distance(result.x_adv, x, norm) <= eps).all()
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    assert torch.equal(result.success, predictions(model, result.x_adv) != y)
    with torch.no_grad():
        reached = nn.functional.cross_entropy(model(result.x_adv), y, reduction="none")
    assert torch.allclose(result.loss, reached, rtol=1e-4, atol=1e-5)
    assert result.bad_gradients.sum() == 0
    if not early_stop:
        assert (result.steps == 16).all()


def test_early_stop_skips_the_work_of_fooled_points() -> None:
    model, x = mlp(), images(64)
    y = predictions(model, x)
    y[:20] = (y[:20] + 1) % 10  # misclassified from the start
    seen: list[int] = []
    model.register_forward_hook(lambda _, inputs, out: seen.append(len(out)))
    plain = PGD(model, 0.05, 0.005, 20).run(x, y)
    full = sum(seen)
    seen.clear()
    result = PGD(model, 0.05, 0.005, 20, early_stop=True, random_start=False).run(x, y)
    assert sum(seen) < full / 2
    assert seen == sorted(seen, reverse=True)
    assert (result.steps[:20] == 0).all()
    assert torch.equal(result.x_adv[:20], x[:20])
    assert result.success.sum() >= plain.success.sum()
    later = PGD(model, 0.05, 0.005, 20, early_stop=3, random_start=False).run(x, y)
    assert (later.steps[:20] == 3).all()


def test_restarts_only_help_and_keep_the_best() -> None:
    model, x = cnn(), images(48)
    y = predictions(model, x)
    one = PGD(model, 0.03, 0.01, 3, restarts=1).run(x, y)
    many = PGD(model, 0.03, 0.01, 3, restarts=4).run(x, y)
    assert (many.success | ~one.success).all()
    same = many.success == one.success
    assert (many.loss[same] >= one.loss[same] - 1e-5).all()


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_targeted_reaches_the_target(loss: str) -> None:
    model, x = mlp(), images(16)
    target = (predictions(model, x) + 1) % 10
    result = PGD(model, 0.3, 0.03, 30, targeted=True, loss=loss).run(x, target)
    assert torch.equal(result.success, predictions(model, result.x_adv) == target)
    # The targeted DLR only asks that the target beat the first prediction; another class may still win.
    assert result.success.float().mean() > (0.2 if loss == "dlr" else 0.9)


def test_kl_moves_away_from_the_clean_prediction() -> None:
    model, x = mlp(), images(16)
    y = predictions(model, x)
    with torch.no_grad():
        clean = model(x)
    result = PGD(model, 0.1, 0.02, 10, loss="kl").run(x, y)
    given = PGD(model, 0.1, 0.02, 10, loss="kl").run(x, y, reference=clean)
    assert torch.equal(result.x_adv, given.x_adv)
    start = fr.ops.random_start(x, 0.1, seed=0)
    with torch.no_grad():
        at_start = fr.ops.logit_loss(model(start), y, "kl", reference=clean).loss
    assert (result.loss > 3 * at_start).all()


def test_own_loss_function() -> None:
    model, x = mlp(), images(16)
    y = predictions(model, x)

    def own(z: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z, label, reduction="none")

    assert torch.allclose(PGD(model, 0.1, 0.02, loss=own)(x, y), PGD(model, 0.1, 0.02, loss="ce")(x, y), atol=1e-6)


@pytest.mark.parametrize("norm", SETTINGS)
def test_draws_follow_the_sample_not_the_batch(norm: str) -> None:
    model, x = mlp().double(), images(12).double()
    y = predictions(model, x)
    eps, alpha = SETTINGS[norm]
    attack = PGD(model, eps, alpha, 5, norm=norm, seed=11)
    whole = attack(x, y)
    assert torch.equal(whole, attack(x, y))
    ids = torch.tensor([7, 2, 9])
    part = attack.run(x[ids], y[ids], index=ids).x_adv
    assert torch.allclose(part, whole[ids], atol=1e-9)
    attack.seed = 12
    assert not torch.equal(attack(x, y), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", SETTINGS)
def test_sixteen_bit_models(dtype: torch.dtype, norm: str) -> None:
    model, x = mlp().to(dtype), images(16).to(dtype)
    y = predictions(model, x)
    eps, alpha = SETTINGS[norm]
    result = PGD(model, 2 * eps, 2 * alpha, 10, norm=norm).run(x, y)
    assert result.x_adv.dtype == dtype
    assert (distance(result.x_adv, x, norm) <= 2 * eps).all()
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    assert torch.equal(result.success, predictions(model, result.x_adv) != y)
    assert result.success.any()


@pytest.mark.parametrize("early_stop", [False, True])
def test_autocast_success_is_verified_in_float32(early_stop: bool) -> None:
    model, x = mlp(), images(64)
    y = predictions(model, x)
    result = PGD(model, 0.02, 0.005, 10, autocast=torch.bfloat16, early_stop=early_stop).run(x, y)
    assert torch.equal(result.success, predictions(model, result.x_adv) != y)


def test_per_sample_eps_and_feature_box() -> None:
    g = torch.Generator().manual_seed(0)
    model = mlp(6, 3)
    x = torch.rand(5, 6, generator=g) * torch.tensor([1.0, 2, 3, 4, 5, 6])
    y = predictions(model, x)
    eps = torch.tensor([0.0, 0.1, 0.2, 0.5, 1.0])
    box = (torch.zeros(6), torch.tensor([1.0, 2, 3, 4, 5, 6]))
    x_adv = PGD(model, eps, 0.1, 20, box=box, early_stop=True)(x, y)
    assert torch.equal(x_adv[0], x[0])
    assert (distance(x_adv, x, "Linf") <= eps.double()).all()
    assert ((x_adv >= box[0]) & (x_adv <= box[1])).all()


def test_masked_gradients_are_counted() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).sum(1) * 0, (x.flatten(1) > 0.5).float().sum(1) * 0 + 1], 1) + 0 * x.sum()

    result = PGD(Masked(), 0.1, 0.02, 4, random_start=False).run(images(3), torch.ones(3, dtype=torch.int64))
    assert result.bad_gradients.tolist() == [4, 4, 4]
    assert not result.success.any()
    assert torch.equal(result.x_adv, images(3))


def test_nan_model_is_never_a_success() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * math.nan

    for early_stop in (False, True):
        result = PGD(Broken(), 0.1, 0.02, 3, early_stop=early_stop).run(images(4), torch.zeros(4, dtype=torch.int64))
        assert not result.success.any()
        assert torch.equal(result.bad_gradients, result.steps)
        assert (result.steps == (2 if early_stop else 3)).all()  # a point that does not move is in a cycle
        assert torch.isfinite(result.x_adv).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes: int) -> None:
    model, x = mlp(784, classes), images(8)
    y = predictions(model, x)
    assert PGD(model, 0.1, 0.02, loss="margin").run(x, y).success.any()


def test_zero_eps_and_empty_batch() -> None:
    model, x = mlp(), images(4)
    y = predictions(model, x)
    for norm in SETTINGS:
        assert torch.equal(PGD(model, 0.0, 0.1, norm=norm)(x, y), x)
    empty = PGD(model).run(x[:0], y[:0])
    assert empty.x_adv.shape == (0, 1, 28, 28)
    assert empty.success.shape == (0,)
