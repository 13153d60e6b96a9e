"""The train-verify loop: what a round counts, who gets weight, when it ends, and that it never sees the test data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small import net, splits

import fastrobust as fr
from fastrobust import data
from fastrobust.training import Round, TrainConfig, train_verify, verified

CONFIG = TrainConfig(
    objective="ibp", epochs=8, batch_size=32, optimizer="adamw", lr=5e-3, weight_decay=0.0, schedule="constant",
    eps=0.02, eps_warmup=3, val_steps=3, val_bounds="ibp", compile=False,
)  # fmt: skip


def test_rounds_are_what_bounds_and_attacks_say(tmp_path: Path) -> None:
    parts, seen = splits(), list[Round]()
    closed = data.Splits(parts.train, parts.val, parts.train.subset(slice(0, 0)))  # an empty test split will do
    model = net("norm")
    found = train_verify(model, closed, CONFIG, tmp_path, rounds=3, epochs=2, sample=40, progress=seen.append)
    assert seen == found.rounds
    assert 1 <= len(found.rounds) <= 3
    for r in found.rounds:
        assert r.certified + r.real + r.unproven == pytest.approx(1)
    best = found.rounds[found.best - 1]
    assert best.certified == max(r.certified for r in found.rounds)
    # The model holds the best round's weights.
    x, y = parts.val.images, parts.val.labels
    margins = fr.bounds.margins(model.eval(), x, y, fr.Linf(0.02), "crown_ibp")
    proven = (margins > 0).scatter(1, y[:, None], True).all(1)
    assert float(proven.double().mean()) == pytest.approx(best.certified, abs=1e-9)
    assert all(torch.equal(value, found.training.best.weights[name]) for name, value in model.state_dict().items())
    written = json.loads((tmp_path / "rounds.json").read_text())
    assert [r["certified"] for r in written["rounds"]] == [r.certified for r in found.rounds]
    assert written["why"] == found.why
    assert [a["gain"] for a in written["advice"]] == sorted((a.gain for a in found.advice), reverse=True)
    assert all(0 <= a.gain <= best.unproven + 1e-9 for a in found.advice)
    # The same command again only reads.
    again = train_verify(net("norm"), closed, CONFIG, tmp_path, rounds=3, epochs=2, sample=40)
    assert again.rounds == found.rounds


def test_only_real_failures_are_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def trained(model: Any, parts: data.Splits, config: TrainConfig, *_: Any) -> Any:
        sizes.append(len(parts.train))
        assert (config.eps_warmup, config.epochs) == ((3, 8) if len(sizes) == 1 else (0, 2))
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        return type("Result", (), {"best": type("Best", (), {"weights": weights})})

    shares = iter([0.5, 0.6, 0.6, 0.6])

    def judged(model: Any, part: data.Dataset, *_: Any) -> list[str]:
        if len(part) == 40:  # the validation sample
            sure = round(40 * next(shares))
            return ["robust"] * sure + ["unknown"] * (40 - sure)
        return ["falsified"] * 7 + ["unknown"] * 5 + ["robust"] * (len(part) - 12)

    monkeypatch.setattr(verified, "fit", trained)
    monkeypatch.setattr(verified, "_verify", judged)
    monkeypatch.setattr(verified, "_advice", lambda *_: [])
    found = train_verify(net(), splits(), CONFIG, tmp_path, rounds=9, epochs=2, sample=60, repeats=4, patience=2)
    assert sizes == [150, 150 + 3 * 7, 150 + 3 * 7, 150 + 3 * 7]
    assert found.best == 2
    assert found.why == "the certified share did not rise for 2 rounds"
    assert [r.repeated for r in found.rounds] == [7] * 4


def test_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_verify: sample must be at least 1, got 0"):
        train_verify(net(), splits(), CONFIG, tmp_path, sample=0)
