"""The trainer: it keeps the best, stops on nonsense, and continues to the same weights from any step."""

from __future__ import annotations

import csv
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import net, splits
from torch import Tensor, nn

from fastrobust import data, training
from fastrobust.training import CheckpointError, TrainConfig, fit
from fastrobust.training import run as run_module
from fastrobust.training.validation import Accuracies

QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 40, "eps": 0.1, "steps": 2, "val_steps": 2, "lr": 0.05}


class Stop(BaseException):
    """The process ends here."""


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training reach `step` (counted from 0 in this process) and end there."""
    real, count = run_module.Run.step, -1

    def limited(run: run_module.Run, batch: data.Batch) -> float:
        nonlocal count
        count += 1
        if count == step:
            raise Stop
        return real(run, batch)

    monkeypatch.setattr(run_module.Run, "step", limited)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "objective": "pgd",
            "schedule": "cyclic",
            "eps_warmup": 1.5,
            "checkpoint_every": 1,
            "nesterov": True,
        },
        {"objective": "trades", "optimizer": "adamw", "lr": 0.003, "ema_decay": 0.9, "checkpoint_every": 3},
        {"objective": "pgd", "augment": "crop_flip", "last_batch": "drop", "norm": "L2", "eps": 0.5},
        {"objective": "standard", "val_every": 2, "val_steps": 0, "checkpoint_every": 2},
    ],
)
def test_a_run_stopped_at_every_step_ends_with_the_same_weights(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(**{**QUICK, **fields})
    whole = fit(net("all"), splits(), config, tmp_path / "whole", progress=False)
    stops = 0
    while True:
        with monkeypatch.context() as patch:
            stop_at(config.checkpoint_every + 1 if config.checkpoint_every else 5, patch)
            try:
                # Other initial weights: the checkpoint's count, also before the first step.
                result = fit(net("all", seed=stops), splits(), config, tmp_path / "cut", progress=False)
            except Stop:
                stops += 1
            else:
                break
    assert stops >= 2
    assert same(result.last.weights, whole.last.weights)
    assert same(result.best.weights, whole.best.weights)
    for row, expected in zip(result.history, whole.history, strict=True):
        assert {**row, "seconds": 0} == {**expected, "seconds": 0}
    with open(tmp_path / "cut" / "log.csv") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3]


def test_training_learns_and_a_finished_run_is_read_back(tmp_path: Path) -> None:
    config = TrainConfig(epochs=12, batch_size=25, eps=0.1, steps=3, lr=0.1, val_steps=5)
    model = net()
    result = fit(model, splits(), config, tmp_path, progress=False)
    assert result.best.robust is not None
    assert result.best.clean > 0.7
    assert result.best.robust > 0.4
    assert result.history[-1]["loss"] < 0.6 * result.history[0]["loss"]
    assert same(model.state_dict(), result.best.weights)
    other = net(seed=9)
    again = fit(other, splits(), config, tmp_path, progress=False)
    assert same(other.state_dict(), result.best.weights)
    assert again.history == result.history


def test_every_file_loads_with_weights_only(tmp_path: Path) -> None:
    result = fit(net(), splits(), TrainConfig(**QUICK, ema_decay=0.5), tmp_path, progress=False)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 12
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert same(best["model"], result.best.weights)
    assert (best["epoch"], best["robust"]) == (result.best.epoch, result.best.robust)
    assert TrainConfig.from_json(best["config"]) == TrainConfig(**QUICK, ema_decay=0.5)


def found(*pairs: tuple[float, float]) -> Iterator[Accuracies]:
    """Clean and robust accuracies of one validation after another."""
    return (Accuracies(clean, robust, None) for clean, robust in pairs)


def test_ties_go_to_clean_accuracy_then_to_the_earlier_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = found((0.9, 0.4), (0.6, 0.6), (0.7, 0.6), (1.0, 0.5), (0.7, 0.6))
    monkeypatch.setattr(run_module, "validate", lambda *_: next(accuracies))
    config = TrainConfig(**{**QUICK, "epochs": 10, "val_every": 2})
    result = fit(net(), splits(), config, tmp_path, progress=False)
    assert (result.best.epoch, result.best.clean, result.best.robust) == (6, 0.7, 0.6)
    assert [row["robust"] for row in result.history[1::2]] == [0.4, 0.6, 0.6, 0.5, 0.6]
    assert [row["robust"] for row in result.history[::2]] == [None] * 5


def test_early_stopping_stops_and_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = found((0.5, 0.1), (0.6, 0.6), (0.9, 0.5), (0.5, 0.6), (1.0, 1.0))
    seen: list[dict[str, Tensor]] = []

    def scripted(model: nn.Module, *_: object) -> Accuracies:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(accuracies)

    monkeypatch.setattr(run_module, "validate", scripted)
    model = net()
    result = fit(model, splits(), TrainConfig(**{**QUICK, "epochs": 50, "patience": 2}), tmp_path, progress=False)
    assert (len(result.history), result.best.epoch, result.best.robust) == (4, 2, 0.6)
    assert same(model.state_dict(), seen[1])
    assert same(result.last.weights, seen[3])


def test_the_standard_objective_selects_by_clean_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = found((0.5, 0.9), (0.8, 0.1), (0.7, 0.8))
    monkeypatch.setattr(run_module, "validate", lambda *_: next(accuracies))
    result = fit(net(), splits(), TrainConfig(**QUICK, objective="standard"), tmp_path, progress=False)
    assert result.best.epoch == 2


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_training_stops_before_a_bad_step_touches_the_weights(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[dict[str, Tensor]] = []

    def objective(model: nn.Module, x: Tensor, y: Tensor, adversary: training.Adversary) -> tuple[Tensor, Tensor]:
        before.append({name: value.clone() for name, value in model.state_dict().items()})
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, y)
        if len(before) == 6:
            # sqrt has an infinite slope at 0: the loss is finite, its gradient is inf * 0.
            loss = loss * float("nan") if kind == "loss" else loss + (logits * 0).square().sum().sqrt()
        return loss, logits

    monkeypatch.setitem(training.OBJECTIVES, "mine", objective)
    model = net()
    with pytest.raises(FloatingPointError, match="epoch 2, step 6; stopped before it touched the weights"):
        fit(model, splits(), TrainConfig(**QUICK, objective="mine"), tmp_path, progress=False)
    assert len(before) == 6
    assert same(model.state_dict(), before[-1])
    assert all(value.isfinite().all() for value in model.state_dict().values())
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"lr": 0.07, "beta": 1.0}}, "beta is 6.0 there, 1.0 here; lr is 0.05 there, 0.07 here"),
        ({"splits": (120, 40)}, r"training data is \(150, 1, 8, 8\) crc32"),
        ({"kind": "norm"}, "model 0.weight"),
    ],
)
def test_another_run_is_not_continued(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    fit(net(), splits(), TrainConfig(**QUICK), tmp_path, progress=False)
    config = TrainConfig(**{**QUICK, **change.get("config", {})})
    arguments = (net(change.get("kind", "plain")), splits(*change.get("splits", ())), config, tmp_path)
    with pytest.raises(ValueError, match=message):
        fit(*arguments, progress=False)
    fit(*arguments, resume=False, progress=False)


def test_how_often_checkpoints_are_written_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(net(), splits(), TrainConfig(**QUICK), tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        stop_at(6, patch)
        with pytest.raises(Stop):
            fit(net(), splits(), TrainConfig(**QUICK, checkpoint_every=1), tmp_path / "cut", progress=False)
    result = fit(net(), splits(), TrainConfig(**QUICK, checkpoint_every=3), tmp_path / "cut", progress=False)
    assert same(result.last.weights, whole.last.weights)


def test_a_damaged_checkpoint_costs_time_not_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(**QUICK, checkpoint_every=2)
    whole = fit(net(), splits(), config, tmp_path / "whole", progress=False)
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        stop_at(9, patch)
        with pytest.raises(Stop):
            fit(net(), splits(), config, cut, progress=False)
    (cut / "checkpoint.pt").write_bytes((cut / "checkpoint.pt").read_bytes()[:-200])
    with pytest.warns(UserWarning, match=r"continuing from .*checkpoint.prev.pt"):
        result = fit(net(), splits(), config, cut, progress=False)
    assert same(result.last.weights, whole.last.weights)


def test_a_run_whose_checkpoints_are_gone_is_not_silently_started_again(tmp_path: Path) -> None:
    fit(net(), splits(), TrainConfig(**QUICK), tmp_path, progress=False)
    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=r"holds best.pt and log.csv .* no checkpoint"):
        fit(net(), splits(), TrainConfig(**QUICK), tmp_path, progress=False)
    fit(net(), splits(), TrainConfig(**QUICK), tmp_path, resume=False, progress=False)


def test_frozen_layers_and_the_callers_random_state_stay(tmp_path: Path) -> None:
    model = net("all").train()
    model.get_submodule("1").eval()
    model.get_parameter("0.weight").requires_grad_(False)
    frozen = {
        name: value.clone() for name, value in model.state_dict().items() if "running" in name or name == "0.weight"
    }
    random_state = torch.get_rng_state()
    fit(model, splits(), TrainConfig(**QUICK), tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same({name: model.state_dict()[name] for name in frozen}, frozen)


def test_momentum_and_weight_decay_reach_the_optimizer(tmp_path: Path) -> None:
    """One step of SGD by hand: w - lr (gradient + weight_decay w)."""
    config = TrainConfig(objective="standard", epochs=1, batch_size=150, schedule="constant", lr=0.2, weight_decay=0.1)
    model, reference = net(), net()
    part = splits().train
    nn.functional.cross_entropy(reference(part.images), part.labels).backward()
    result = fit(model, splits(), config, tmp_path, progress=False)
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        expected = parameter - 0.2 * (parameter.grad + 0.1 * parameter)
        torch.testing.assert_close(result.last.weights[name], expected.detach())


def test_clip_norm_bounds_the_step(tmp_path: Path) -> None:
    config = TrainConfig(
        objective="standard",
        epochs=1,
        batch_size=150,
        schedule="constant",
        lr=1.0,
        weight_decay=0,
        clip_norm=0.01,
    )
    before = net().state_dict()
    result = fit(net(), splits(), config, tmp_path, progress=False)
    moved = torch.cat([(result.last.weights[name] - before[name]).flatten() for name in before])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_ema_weights_are_what_is_validated_and_kept(tmp_path: Path) -> None:
    config = TrainConfig(**{**QUICK, "ema_decay": 0.999})
    result = fit(net(), splits(), config, tmp_path, progress=False)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert same(result.last.weights, kept["ema"])
    start = net().state_dict()
    for name, value in result.last.weights.items():  # hardly moved in 12 steps, unlike the model itself
        assert (value - start[name]).norm() < 0.05 * (kept["model"][name] - start[name]).norm()


def test_tensorboard_gets_the_history_when_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (Path(folder), purge_step) == (tmp_path / "tensorboard", 1)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None: ...

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", module)
    result = fit(net(), splits(), TrainConfig(**QUICK), tmp_path, progress=False)
    assert [value for name, value, _ in written if name == "robust"] == [row["robust"] for row in result.history]


def test_progress_is_shown_when_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit(net(), splits(), TrainConfig(**QUICK), tmp_path / "a", progress=True)
    assert "12/12" in capfd.readouterr().err
    fit(net(), splits(), TrainConfig(**QUICK), tmp_path / "b", progress=False)
    assert capfd.readouterr() == ("", "")


def test_unusable_arguments_are_named(tmp_path: Path) -> None:
    empty = splits().train.subset(slice(0, 0))
    with pytest.raises(ValueError, match=r"objective must be one of standard, pgd, .*stability, got 'free'"):
        fit(net(), splits(), TrainConfig(objective="free"), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"splits\.val must not be empty"):
        fit(net(), type(splits())(splits().train, empty, empty), TrainConfig(), tmp_path, progress=False)
    with pytest.raises(ValueError, match="150 samples in batches of 151"):
        fit(net(), splits(), TrainConfig(batch_size=151, last_batch="drop"), tmp_path, progress=False)
