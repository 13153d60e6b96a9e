"""Schedules, the configuration record and the weight average, against their closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastrobust.training import Ema, TrainConfig, epsilon, learning_rate

times = st.floats(0, 10, allow_nan=False)


@given(t=times)
def test_learning_rates_follow_their_formulas(t: float) -> None:
    base: dict[str, Any] = {"epochs": 10, "lr": 0.3}
    steps = TrainConfig(schedule="piecewise", milestones=(4, 7.5), gamma=0.1, **base)
    assert learning_rate(steps, t) == pytest.approx(0.3 if t < 4 else 0.03 if t < 7.5 else 0.003)
    cosine = TrainConfig(schedule="cosine", **base)
    assert learning_rate(cosine, t) == pytest.approx(0.15 * (1 + math.cos(math.pi * t / 10)), abs=1e-12)
    cyclic = TrainConfig(schedule="cyclic", peak=0.4, **base)
    assert learning_rate(cyclic, t) == pytest.approx(0.3 * t / 4 if t <= 4 else 0.3 * (10 - t) / 6, abs=1e-12)
    assert learning_rate(TrainConfig(schedule="constant", **base), t) == 0.3


@given(t=times, warmup=st.floats(0, 12))
def test_eps_grows_linearly_then_stays(t: float, warmup: float) -> None:
    value = epsilon(TrainConfig(eps=0.2, epochs=10, eps_warmup=warmup), t)
    assert value == pytest.approx(0.2 * min(1.0, t / warmup) if warmup else 0.2)


@given(t=times)
def test_smoothed_eps_has_neither_jump_nor_corner(t: float) -> None:
    config = TrainConfig(eps=0.2, epochs=10, eps_start=1, eps_warmup=8, eps_growth="smoothed", eps_factor=1.5)
    value = epsilon(config, t)
    share = (t - 1) / 8
    # auto_LiRPA's: quartic to a quarter of the way, at 1/13 of the height, then a line.
    if share <= 0:
        assert value == 0
    elif share >= 1:
        assert value == pytest.approx(0.3)
    elif share < 0.25:
        assert value == pytest.approx(0.3 * (share / 0.25) ** 4 / 13)
    else:
        assert value == pytest.approx(0.3 * (1 / 13 + 12 / 13 * (share - 0.25) / 0.75))
    near = epsilon(config, t + 1e-6)
    assert 0 <= near - value <= 1e-6 * 0.3 * (12 / 13 / 0.75) / 8 * 1.001 + 1e-15


@settings(deadline=None)
@given(
    epochs=st.integers(1, 500),
    lr=st.floats(0, 10),
    milestones=st.lists(st.floats(0, 100), max_size=3).map(sorted),
    patience=st.none() | st.integers(1, 9),
    objective=st.sampled_from(["standard", "pgd", "trades", "mine"]),
)
def test_a_config_survives_json(
    epochs: int, lr: float, milestones: list[float], patience: int | None, objective: str
) -> None:
    config = TrainConfig(objective, epochs, lr=lr, milestones=tuple(milestones), patience=patience)
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs must be finite and >= 1, got 0"),
        ({"eps": -0.1}, "eps must be finite and >= 0"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"schedule": "linear"}, "schedule must be one of .*cosine.*, got 'linear'"),
        ({"norm": "linf"}, "norm must be one of"),
        ({"objective": "ibp", "norm": "L2"}, "norm must be Linf for ibp, got 'L2'"),
        ({"subset": 1.5}, r"subset must lie in \[0, 1\], got 1.5"),
        ({"eps_growth": "quick"}, "eps_growth must be one of"),
        ({"val_bounds": "alpha"}, "val_bounds must be one of"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
        ({"peak": 0.0}, "peak must lie in"),
        ({"milestones": (5, 2)}, "milestones must ascend"),
    ],
)
def test_a_bad_config_is_refused_at_once(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"TrainConfig: {message}"):
        TrainConfig(**fields)


def test_an_unknown_field_is_not_ignored() -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        TrainConfig.from_json('{"learning_rate": 0.1}')


def test_ema_is_the_weighted_sum_of_all_past_states() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    decay, states = 0.7, [{name: value.clone() for name, value in model.state_dict().items()}]
    ema = Ema(model, decay)
    for _ in range(6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(8, 3, dtype=torch.float64))  # moves the batch-norm statistics and their counter
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        ema.update(model)
    for name, value in ema.state.items():
        if name.endswith("num_batches_tracked"):
            assert value == 6
            continue
        weights = [decay**6] + [(1 - decay) * decay ** (6 - k) for k in range(1, 7)]
        torch.testing.assert_close(value, sum(w * state[name] for w, state in zip(weights, states, strict=True)))


def test_ema_is_lent_to_the_model_and_taken_back_after_an_error() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1)
    ema.update(model)
    own = model.weight.detach().clone()

    def use_and_fail() -> None:
        with ema.applied(model):
            assert torch.equal(model.weight, ema.state["weight"])
            raise KeyError

    with pytest.raises(KeyError):
        use_and_fail()
    assert torch.equal(model.weight, own)
