"""Runs that train for smoothing, from start to end: validation under noise, the choice of the best, resuming."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from small import net, splits
from torch import nn

from fastrobust import models, training
from fastrobust.data.keys import key
from fastrobust.smoothing import Gaussian, Smooth
from fastrobust.training import TrainConfig, fit
from fastrobust.training.config import SMOOTHED
from fastrobust.training.validation import certifiable

QUICK: dict[str, Any] = {
    "epochs": 4, "batch_size": 32, "optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.0, "schedule": "constant",
    "sigma": 0.2, "norm": "L2", "eps": 0.1, "steps": 2, "draws": 2, "val_samples": 300, "compile": False,
}  # fmt: skip


def model_for(objective: str) -> nn.Module:
    if objective not in ("denoise", "stability"):
        return net()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return models.Denoised(models.DnCNN(1, 8, 3), net())


@pytest.mark.parametrize("objective", SMOOTHED)
def test_a_run_chooses_by_what_it_certifies(objective: str, tmp_path: Path) -> None:
    config = TrainConfig(objective=objective, **QUICK, val_bounds="smoothing", val_every=2)
    model = model_for(objective)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = fit(model, splits(), config, tmp_path / "run", progress=False)
    rows = result.history
    assert [row["robust"] for row in rows] == [None] * 4
    assert [row["certified"] is None for row in rows] == [row["noisy"] is None for row in rows] == [True, False] * 2
    assert result.best.certified == max(row["certified"] for row in rows[1::2])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith("classifier") for name in changed)
    # What the kept weights say of the validation samples under the noise of every validation.
    part, seed = splits().val, key(3, config.seed)
    smooth = Smooth(model, 10, Gaussian(0.2), seed=seed, compile=False)
    found = smooth.certify_at(part.images, 0.1, n_max=300)
    held = (found.prediction == part.labels) & found.certified[:, 0]
    assert float(held.double().mean()) == pytest.approx(result.best.certified)
    votes = smooth.sampler.votes(part.images, 16, seed).gather(1, part.labels[:, None])
    assert float(votes.double().mean()) / 16 == pytest.approx(result.best.noisy)
    with open(tmp_path / "run" / "log.csv") as file:
        written = list(csv.DictReader(file))
    assert float(written[-1]["noisy"]) == pytest.approx(rows[-1]["noisy"])
    assert torch.load(tmp_path / "run" / "best.pt", weights_only=True)["noisy"] == result.best.noisy


@pytest.mark.parametrize("objective", ["gaussian", "smooth_adv", "macer", "consistency", "smoothmix"])
def test_training_makes_networks_that_can_be_smoothed(objective: str, tmp_path: Path) -> None:
    """Against standard training: more right answers under noise."""
    plain = fit(
        net(), splits(), TrainConfig(**QUICK, objective="standard", val_steps=0), tmp_path / "a", progress=False
    )
    config = TrainConfig(**{**QUICK, "epochs": 8, "weight": 1.0}, objective=objective)
    found = fit(net(), splits(), config, tmp_path / "b", progress=False)
    assert plain.best.noisy is not None
    assert found.best.noisy is not None
    assert found.best.noisy == max(row["noisy"] for row in found.history)
    assert found.best.noisy > plain.best.noisy
    assert found.best.certified is None


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(**QUICK, objective="smoothmix", checkpoint_every=1, val_bounds="smoothing", eps_warmup=2)
    whole = fit(net(), splits(), config, tmp_path / "whole", progress=False)
    real, steps = training.run.Run.step, [0]

    class Killed(BaseException):
        pass

    def step(run: Any, batch: Any) -> float:
        steps[0] += 1
        if steps[0] == 8:
            raise Killed
        return real(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.run.Run, "step", step)
        with pytest.raises(Killed):
            fit(net(), splits(), config, tmp_path / "cut", progress=False)
    again = fit(net(seed=5), splits(), config, tmp_path / "cut", progress=False)
    assert all(torch.equal(again.last.weights[name], value) for name, value in whole.last.weights.items())
    assert [row["noisy"] for row in again.history] == [row["noisy"] for row in whole.history]


def test_what_cannot_be_is_said_before_training(tmp_path: Path) -> None:
    for objective in ("denoise", "stability"):
        with pytest.raises(
            ValueError, match=f"the model must be a fastrobust.models.Denoised for {objective}, got Seq"
        ):
            fit(net(), splits(), TrainConfig(**QUICK, objective=objective), tmp_path / "a", progress=False)
    far = TrainConfig(**{**QUICK, "eps": 1.0}, objective="gaussian", val_bounds="smoothing")
    with pytest.raises(ValueError, match=r"fit: val_bounds must be possible for this model: .* cannot certify"):
        fit(net(), splits(), far, tmp_path / "b", progress=False)
    assert not (tmp_path / "b").exists()
    with pytest.raises(ValueError, match="num_classes must be the model's, 7, got 10"):
        certifiable(models.mlp((1, 8, 8), (4,), 7), splits().val, TrainConfig(**QUICK), torch.device("cpu"))
