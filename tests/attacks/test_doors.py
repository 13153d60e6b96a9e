"""The calls of foolbox and RobustBench."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attacks.nets import cnn, images, predictions

import fastrobust as fr
from fastrobust.attacks import FABT, PGD, benchmark, foolbox_call


def test_several_radii_one_and_none() -> None:
    model, x = cnn(), images(6)
    y = predictions(model, x)
    raw, clipped, success = foolbox_call(PGD, model, x, y, [0.0, 0.02, 0.3], steps=5, alpha=0.1)
    assert [len(raw), len(clipped), tuple(success.shape)] == [3, 3, (3, 6)]
    assert torch.equal(raw[0], x)
    for x_adv, flags in zip(clipped, success, strict=True):
        assert torch.equal(predictions(model, x_adv) != y, flags)
    x_adv, _, flags = foolbox_call(PGD, model, x, y, 0.02, steps=5, alpha=0.1)
    assert torch.equal(x_adv, raw[1])
    assert flags.shape == (6,)
    for radii in (np.array([0.0, 0.02, 0.3]), torch.tensor([0.0, 0.02, 0.3], dtype=torch.float64)):
        assert all(map(torch.equal, raw, foolbox_call(PGD, model, x, y, radii, steps=5, alpha=0.1)[0]))
    with pytest.raises(ValueError, match="epsilons must be given for PGD"):
        foolbox_call(PGD, model, x, y, None)


def test_minimum_norm_attacks_run_once_for_all_radii() -> None:
    model, x = cnn(), images(6)
    y = predictions(model, x)
    settings = {"steps": 20, "targets": 2}
    raw, clipped, success = foolbox_call(FABT, model, x, y, [1e-4, 0.02, 0.3], **settings)
    assert torch.equal(raw[0], raw[2])
    assert (success[1:] >= success[:-1]).all()
    for x_adv, flags, eps in zip(clipped, success, (1e-4, 0.02, 0.3), strict=True):
        assert torch.equal(predictions(model, x_adv) != y, flags)
        assert ((x_adv - x).abs().flatten(1).amax(1) <= eps).all()
    best, _, found = foolbox_call(FABT, model, x, y, None, **settings)
    assert torch.equal(best, raw[0])
    assert found.all()


def test_benchmark_gives_clean_and_robust_accuracy() -> None:
    model, x = cnn(), images(6)
    y = predictions(model, x)
    y[0] = (y[0] + 1) % 10
    clean, robust = benchmark(model, x, y, fr.Linf(0.3), n_queries=5)
    assert clean == 5 / 6
    assert robust == 0.0
