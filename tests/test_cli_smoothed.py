"""`fastrobust train` for smoothing: what it prints, what it leaves, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastrobust import data, models
from fastrobust.cli import model_file
from fastrobust.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")
NOISE = ["train", "--data", "digits", "--sigma", "0.2", "--epochs", "2", "--optimizer", "adamw", "--lr", "0.01"]
NOISE += ["--weight-decay", "0"]


def test_a_network_is_trained_for_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*NOISE, "--model", "mlp", "--width", "32", "--objective", "consistency", "--weight", "2", "--norm", "L2"]
    command += ["--eps", "0.1", "--val-bounds", "smoothing", "--val-samples", "300", "--out", str(tmp_path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "objective consistency" in out
    assert "under noise, " in out
    assert "% certified" in out
    assert "under attack" not in out
    assert f"next: fastrobust certify {tmp_path / 'model.pt'} --method smoothing --sigma 0.2" in out
    content = model_file.load(tmp_path / "model.pt")[2]
    assert 0.3 < content["noisy"] <= 1
    assert content["robust"] is None


def test_a_denoiser_goes_before_a_trained_network(checkpoint: Path, tmp_path: Path) -> None:
    classifier = model_file.load(checkpoint)[0]
    small = ["--denoiser-width", "4", "--denoiser-depth", "3"]
    command = [*NOISE, "--classifier", str(checkpoint), *small, "--out", str(tmp_path / "run")]
    assert main([*command, "--objective", "stability"]) == 0
    model, architecture, content = model_file.load(tmp_path / "run" / "model.pt")
    assert isinstance(model, models.Denoised)
    assert (architecture.name, architecture.width, architecture.denoiser) == ("mlp", 32, (4, 3))
    for name, value in classifier.state_dict().items():
        assert torch.equal(model.classifier.state_dict()[name], value)
    x = data.digits().val.images
    torch.testing.assert_close(model(x), classifier(model.denoiser(x)))
    assert not torch.equal(model.denoiser(x), x)
    assert content["noisy"] > 0.3


def test_what_does_not_fit_is_one_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tail = ["--out", str(tmp_path / "run")]
    cases = [
        (["--objective", "macer", "--sigma", "0"], "sigma must be > 0 for macer, got 0.0"),
        (["--objective", "smooth_adv"], "norm must be L2 for smooth_adv, got 'Linf'"),
        (["--objective", "gaussian", "--draws", "0"], "argument --draws: must be a whole number >= 1"),
        (["--objective", "denoise"], "the model must be a fastrobust.models.Denoised for denoise, got Sequential"),
        (["--objective", "gaussian", "--norm", "L2", "--eps", "9", "--val-bounds", "smoothing"], "cannot certify the"),
        (["--objective", "stability", "--classifier", str(tmp_path / "none.pt")], "no such checkpoint"),
    ]
    for fields, words in cases:
        assert main([*NOISE, "--model", "mlp", *fields, *tail]) == 2
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1
        assert words in err, err
    other = [
        "train",
        "--data",
        "mnist5k",
        "--sigma",
        "0.2",
        "--objective",
        "stability",
        "--classifier",
        str(checkpoint),
    ]
    assert main([*other, *tail]) == 2
    assert "is for inputs (1, 8, 8) and 10 classes, mnist5k has (1, 28, 28) and 10" in capsys.readouterr().err
    both = tmp_path / "both.pt"
    model, architecture, content = model_file.load(checkpoint)
    content["architecture"]["denoiser"] = (4, 2)
    content["model"] = models.Denoised(models.DnCNN(1, 4, 2), model).state_dict()
    torch.save(content, both)
    assert main([*NOISE, "--objective", "stability", "--classifier", str(both), *tail]) == 2
    assert "holds a denoiser already" in capsys.readouterr().err
    assert architecture.denoiser is None
