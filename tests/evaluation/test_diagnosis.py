"""Each way to hide gradients is found by its check, and an honest model is found fault with by none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attacks.closed_form import least_norm, linear
from attacks.defences import Depth
from attacks.nets import images, predictions
from attacks.test_promises import mixed, same, snapshot
from torch import Tensor, nn

import fastrobust as fr
from fastrobust import data, models
from fastrobust.attacks import BPDA, PGD
from fastrobust.evaluation import Diagnosis, diagnose
from fastrobust.evaluation.probes import Subject, unbounded
from fastrobust.evaluation.verdicts import CHECKS, judge

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 0.1
QUICK: dict[str, Any] = {"steps": (1, 10, 40), "restarts": (1, 3, 6), "queries": 300}


@pytest.fixture(scope="module")
def points() -> tuple[Tensor, Tensor]:
    test = data.digits().test
    return test.images[:70], test.labels[:70]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """An MLP on digits, adversarially trained at `EPS`."""
    train = data.digits().train
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.mlp((1, 8, 8), (64,), 10)
        steps = torch.optim.Adam(net.parameters(), 5e-3)
        for epoch in range(12):
            attack = PGD(net, EPS, EPS / 3, 5, compile=False, seed=epoch)
            for rows in torch.randperm(len(train)).split(256):
                x_adv = attack(train.images[rows], train.labels[rows], rows)
                steps.zero_grad()
                F.cross_entropy(net(x_adv), train.labels[rows]).backward()
                steps.step()
    return net.eval()


class Times(nn.Module):
    """Logits that saturate float32 cross-entropy."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits * 1e6


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * torch.randn_like(x)


class Rolled(torch.autograd.Function):
    """The identity, with each pixel given a neighbour's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream.roll(3, -1)


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Rolled.apply(x)


def names(found: Diagnosis) -> set[str]:
    return {finding.name for finding in found.suspicious}


# --- models ---


@pytest.mark.parametrize("threat", [fr.Linf(EPS), fr.L2(0.5), fr.L1(2.0)], ids=lambda threat: threat.norm)
def test_a_robust_network_is_above_suspicion(net: nn.Module, points: tuple[Tensor, Tensor], threat: fr.Threat) -> None:
    found = diagnose(net, *points, threat, **QUICK)
    assert not found.suspicious, str(found)
    assert len(found.findings) == len(CHECKS)
    numbers = found.numbers
    assert numbers["clean"] >= 0.9
    assert 0 < numbers["robust"] <= min(numbers["attacks"]["white"], *numbers["against_steps"]["accuracy"])
    assert numbers["derivative"]["error"] <= 0.02
    assert numbers["derivative"]["compared"] == 1


@pytest.mark.parametrize(("threat", "eps"), [(fr.Linf, 0.07), (fr.L2, 0.2), (fr.L1, 0.33)])
def test_a_linear_model_has_the_accuracy_of_the_closed_form(threat: Callable[[float], fr.Threat], eps: float) -> None:
    model, x, y = linear(4)
    found = diagnose(model, x, y, threat(eps), **QUICK)
    assert not found.suspicious, str(found)
    stands = least_norm(model, x, y, found.numbers["norm"]) > eps
    exact = float(stands.double().mean())
    assert 0.1 < exact < 0.9
    assert found.numbers["robust"] == pytest.approx(exact)
    assert found.numbers["against_steps"]["accuracy"][-1] == pytest.approx(exact, abs=1.1 / len(x))
    assert found.numbers["derivative"]["error"] <= 1e-3


MASKED = [  # the defence; findings that must be there; findings that must not
    ("scaled", {"gradients", "saturation", "unbounded"}, {"derivative", "randomness", "logits"}),
    ("depth", {"gradients", "derivative", "black box", "unbounded"}, {"randomness", "logits", "saturation"}),
    ("bpda", {"derivative"}, {"gradients", "unbounded", "black box", "randomness"}),
    ("random", {"randomness"}, {"gradients", "derivative", "logits"}),
    ("softmax", {"logits"}, {"derivative", "randomness"}),
    ("wrong", {"derivative", "black box"}, {"gradients", "randomness", "logits"}),
]


@pytest.mark.parametrize(("name", "wanted", "unwanted"), MASKED, ids=[name for name, _, _ in MASKED])
def test_what_hides_gradients_is_found(
    name: str, wanted: set[str], unwanted: set[str], net: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    model = {
        "scaled": nn.Sequential(net, Times()),
        "depth": nn.Sequential(Depth(), net),
        "bpda": nn.Sequential(BPDA(Depth()), net),
        "random": nn.Sequential(Noise(), net),
        "softmax": nn.Sequential(net, nn.Softmax(1)),
        "wrong": nn.Sequential(Wrong(), net),
    }[name].eval()
    found = diagnose(model, *points, fr.Linf(EPS), **QUICK)
    assert wanted <= names(found), str(found)
    assert not unwanted & names(found), str(found)
    assert all(finding.advice for finding in found.suspicious)
    assert (found.numbers["robust"] is None) == (name == "random")
    assert (found.numbers["derivative"] is None) == (name == "random")


def test_nan_logits_are_named() -> None:
    model, x, y = linear(3)
    broken = lambda x: torch.where(x[:, :1] > 0.9, torch.nan, model(x))  # noqa: E731

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return broken(x)

    found = diagnose(Broken(), x, y, fr.Linf(0.01), compile=False, **QUICK)
    assert "logits" in names(found)
    json.dumps(found.numbers, allow_nan=False)


# --- numbers and verdicts ---


def test_findings_follow_from_numbers_that_json_holds() -> None:
    model, x, y = linear(4)
    found = diagnose(model, x, y, fr.Linf(0.2), **QUICK)
    again = json.loads(json.dumps(found.numbers, allow_nan=False))
    assert again == found.numbers
    assert judge(again) == found.findings
    text = str(found)
    assert "24 points: clean accuracy 100.0%" in text
    assert all(f"ok    {finding.name}" in text for finding in found.findings)
    worse = judge({**again, "unbounded": {**again["unbounded"], "accuracy": 0.5}})
    assert "look  unbounded" in str(Diagnosis(worse, again))


def test_a_box_without_ends_is_as_wide_as_the_points() -> None:
    model, x, y = linear(3)
    right = torch.ones_like(y, dtype=torch.bool)
    threat = fr.L2(0.1, box=(-math.inf, math.inf))
    subject = Subject(model, x, y, threat, torch.arange(len(x)), 0, 250, False, right, right.clone())
    found = unbounded(subject)
    assert found["eps"] == pytest.approx(float(x.max() - x.min()) * math.sqrt(12))
    assert found["accuracy"] == 0
    assert subject.standing.all()  # a larger ball says nothing about eps


# --- promises ---


@pytest.mark.parametrize("random", [False, True])
def test_repeats_and_goes_by_sample(random: bool) -> None:
    model, x, y = linear(4)
    model = nn.Sequential(Noise(), model) if random else model
    first = diagnose(model, x, y, fr.Linf(0.2), **QUICK)
    torch.rand(3)
    assert diagnose(model, x, y, fr.Linf(0.2), **QUICK).numbers == first.numbers
    if not random:
        model, x, y = model.double(), x.double(), torch.arange(24) % 4  # a third are right or so
        order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
        whole = diagnose(model, x, y, fr.Linf(0.1), **QUICK).numbers
        other = diagnose(model, x[order], y[order], fr.Linf(0.1), index=order, batch_size=5, **QUICK).numbers
        for key in ("against_steps", "against_restarts", "attacks", "radii", "unbounded", "robust", "clean"):
            assert whole[key] == other[key]


@pytest.mark.parametrize("fails", [None, 30])
def test_nothing_is_changed(fails: int | None) -> None:
    model, x, calls = mixed(), images(6), 0
    y = predictions(mixed(), x)

    def trip(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails:
            raise KeyboardInterrupt

    model[8].register_forward_hook(trip)
    before, x_before, y_before = snapshot(model), x.clone(), y.clone()
    short: dict[str, Any] = {"steps": (1, 2), "restarts": (1, 2), "queries": 5}
    if fails is None:
        with torch.inference_mode():
            diagnose(model, x, y, fr.Linf(0.001), **short)
        assert calls > 100
    else:
        with pytest.raises(KeyboardInterrupt):
            diagnose(model, x, y, fr.Linf(0.001), **short)
    assert same(before, snapshot(model))
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)


def test_progress_is_told() -> None:
    model, x, y = linear(4)
    heard: list[tuple[str, int, int]] = []
    diagnose(model, x, y, fr.Linf(0.2), progress=lambda *said: heard.append(said), **QUICK)
    assert [done for _, done, _ in heard] == list(range(9))
    assert heard[-1] == ("done", 8, 8)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": lambda x: x}, TypeError, "model must be a torch.nn.Module, got function"),
    ({"threat": 0.1}, TypeError, "threat must be a threat model such as .*, got float"),
    ({"threat": fr.Linf(0.0)}, ValueError, "threat must have eps > 0, got 0.0"),
    ({"steps": (10, 1)}, ValueError, r"steps must be ascending integers >= 1, got \[10, 1\]"),
    ({"restarts": ()}, ValueError, r"restarts must be ascending integers >= 1, got \[\]"),
    ({"queries": 0}, ValueError, "queries must be an integer >= 1, got 0"),
    ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1, got 0"),
    ({"x": torch.rand(24, 12).half()}, TypeError, "x must have dtype float32 or float64, got float16"),
    ({"x": torch.rand(0, 12), "y": torch.zeros(0, dtype=torch.int64)}, ValueError, "at least 1 point"),
    ({"x": torch.full((24, 12), 2.0)}, ValueError, "x must lie in the box"),
    ({"y": torch.full((24,), 7)}, ValueError, "model must get at least 1 point right, got 0 of 24"),
]


@pytest.mark.parametrize(("changes", "error", "words"), BAD, ids=[words for _, _, words in BAD])
def test_errors_name_the_argument(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    model, x, y = linear(4)
    given = {"model": model, "x": x, "y": y, "threat": fr.Linf(0.1), **changes}
    with pytest.raises(error, match=f"diagnose: {words}" if "point" not in words else words):
        diagnose(**given)
