"""Planes through points: the closed form of a linear model, keyed directions, nothing changed; and the figures."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attacks.closed_form import linear
from attacks.nets import cnn, images, predictions
from attacks.test_promises import mixed, same, snapshot
from torch import Tensor, nn

import fastrobust as fr
from fastrobust.evaluation import Landscape, diagnose, landscape
from fastrobust.evaluation.directions import rademacher

NORMS = {"Linf": torch.inf, "L2": 2, "L1": 1}


def margin(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.gather(1, y[:, None])[:, 0]
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own


@pytest.mark.parametrize("norm", NORMS)
def test_the_margin_of_a_linear_model_is_affine_until_the_box(norm: str) -> None:
    model, x, y = linear(2, dim=7)
    model, x = model.double(), x.double() / 2 + 0.25
    found = landscape(model, x, y, 0.12, norm=norm, loss="margin", resolution=9)
    assert found.loss.shape == found.prediction.shape == (24, 9, 9)
    slope = (model.weight[1] - model.weight[0]).detach() * (1 - 2 * y)[:, None]
    a, b = found.axis[:, None], found.axis[None, :]
    rises = [(slope * way).sum(1)[:, None, None] for way in (found.first, found.second)]
    with torch.no_grad():
        flat = margin(model(x), y)
    assert torch.allclose(found.loss, flat[:, None, None] + a * rises[0] + b * rises[1], atol=1e-12)
    assert torch.equal(found.prediction != y[:, None, None], found.loss > 0)
    best = {"Linf": slope.abs().sum(1), "L2": slope.norm(dim=1), "L1": (slope**2).sum(1) / slope.abs().sum(1)}[norm]
    assert torch.allclose(rises[0].flatten(), best)  # Linf, L2: no direction of norm 1 is steeper
    for way in (found.first, found.second):
        assert torch.allclose(torch.linalg.vector_norm(way, NORMS[norm], dim=1), torch.ones(24, dtype=x.dtype))
    assert ((found.first * found.second).sum(1).abs() < 1e-12).all()
    clipped = landscape(model, x, y, 2.0, norm=norm, loss="margin", resolution=5, directions=(slope, slope))
    corner = torch.where(slope > 0, 1.0, 0.0).double()
    with torch.no_grad():
        most = margin(model((x + 4 * slope).clamp(0, 1)), y)
        assert torch.allclose(clipped.loss[:, -1, -1], most)
        assert (clipped.loss <= margin(model(corner), y)[:, None, None] + 1e-12).all()


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_the_middle_is_the_point_itself(loss: str) -> None:
    model, x = cnn(), images(3)
    y = predictions(model, x)
    y[0] = (y[0] + 1) % 10
    seen: list[Tensor] = []
    hook = model.register_forward_hook(lambda module, args, out: seen.append(args[0].detach().clone()))
    found = landscape(model, x, y, 0.3, loss=loss, resolution=5, batch_size=25)
    hook.remove()
    assert all(any(torch.equal(point[None], x[i : i + 1]) for point in seen[2 * i + 1]) for i in range(3))
    with torch.no_grad():
        logits = model(x)
    exact = F.cross_entropy(logits, y, reduction="none") if loss == "ce" else margin(logits, y)
    assert torch.allclose(found.loss[:, 2, 2], exact, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.prediction[:, 2, 2], logits.argmax(1))
    assert found.axis[2] == 0
    assert found.loss.dtype == torch.float32
    assert all(float(part.min()) >= 0 and float(part.max()) <= 1 for part in seen)
    assert found.kind == loss


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


@pytest.mark.parametrize("random", [False, True])
def test_a_sample_gets_the_same_plane_in_any_batch(random: bool) -> None:
    model, x = cnn(), images(5)
    y = predictions(model, x)
    model = nn.Sequential(Noise(), model) if random else model
    whole = landscape(model, x, y, 0.1, resolution=5, seed=7)
    parts = [landscape(model, x[r], y[r], 0.1, resolution=5, seed=7, index=r) for r in torch.tensor([[3, 1], [4, 0]])]
    for part, rows in zip(parts, ([3, 1], [4, 0]), strict=True):
        for key in ("loss", "prediction", "first", "second"):
            assert torch.equal(getattr(part, key), getattr(whole, key)[rows])
    other = landscape(model, x, y, 0.1, resolution=5, seed=8)
    assert not torch.equal(other.second, whole.second)


def test_signs_are_fair_and_keyed() -> None:
    x, index = torch.zeros(50, 3, 100), torch.arange(50)
    signs = rademacher(x, 1, index)
    assert torch.equal(signs.abs(), torch.ones_like(x))
    assert abs(float(signs.mean())) < 5 / 15_000**0.5
    rows = signs.flatten(1)
    apart = (rows @ rows.T / 300)[~torch.eye(50, dtype=torch.bool)]
    assert float(apart.abs().max()) < 6 / 300**0.5
    for seed, draw in ((2, 0), (1, 1)):
        assert float((rademacher(x, seed, index, draw) * signs).mean().abs()) < 5 / 15_000**0.5


def test_no_gradient_no_first_direction() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    flat = lambda x: model((x * 2).round() / 2)  # noqa: E731

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return flat(x)

    x, y = torch.rand(2, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    found = landscape(Flat(), x, y, 0.5, resolution=7)
    assert (found.first == 0).all()
    assert torch.equal(found.loss, found.loss[:, :1].expand_as(found.loss))
    assert (found.second.abs().amax(1) == 1).all()


def test_nothing_is_changed() -> None:
    model, x = mixed(), images(2)
    y = predictions(mixed(), x)
    before, x_before = snapshot(model), x.clone()
    found = landscape(model, x, y, 0.1, resolution=3)
    with torch.inference_mode():
        again = landscape(model, x, y, 0.1, resolution=3)
    assert torch.equal(found.loss, again.loss)
    assert same(before, snapshot(model))
    assert torch.equal(x, x_before)
    assert len(landscape(model, x[:0], y[:0], 0.1, resolution=3).loss) == 0


def test_tabular_boxes_clip_each_feature() -> None:
    model, x, y = linear(3, dim=4)
    low, high = torch.tensor([0.0, 0.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 2.0])
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, args, out: seen.append(args[0].detach()))
    landscape(model, x, y, 5.0, resolution=5, box=(low, high))
    every = torch.cat(seen)
    assert torch.equal(every.amin(0), low)
    assert torch.equal(every.amax(0), high)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": lambda x: x}, TypeError, "model must be a torch.nn.Module, got function"),
    ({"radius": 0.0}, ValueError, "radius must be finite and > 0, got 0.0"),
    ({"resolution": 4}, ValueError, "resolution must be an odd integer >= 3, got 4"),
    ({"loss": "dlr"}, ValueError, "loss must be 'ce' or 'margin', got 'dlr'"),
    ({"norm": "L3"}, ValueError, "norm must be one of Linf, L2, L1, got 'L3'"),
    ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1, got 0"),
    ({"directions": "random"}, ValueError, "directions must be 'gradient' or a pair of tensors, got 'random'"),
    ({"directions": (torch.ones(12),)}, TypeError, "directions must be 'gradient' or a pair of tensors"),
    ({"directions": (torch.ones(12), torch.ones(11))}, ValueError, r"shape \(24, 12\) or \(12,\), got \(11,\)"),
    ({"directions": (torch.ones(12), torch.full((12,), torch.nan))}, ValueError, "directions must be finite"),
    ({"x": torch.rand(24, 12).half()}, TypeError, "x must have dtype float32 or float64, got float16"),
    ({"x": torch.rand(24, 12) + 1}, ValueError, "x must lie in the box"),
]


@pytest.mark.parametrize(("changes", "error", "words"), BAD, ids=[words for _, _, words in BAD])
def test_errors_name_the_argument(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    model, x, y = linear(4)
    given = {"model": model, "x": x, "y": y, "radius": 0.1, **changes}
    with pytest.raises(error, match=f"landscape: .*{words}"):
        landscape(**given)


# --- figures ---


def test_figures_show_what_was_found() -> None:
    charts = pytest.importorskip("fastrobust.evaluation.charts", reason="matplotlib is an optional dependency ([demo])")
    model, x, y = linear(4)
    found = landscape(model, x, y, 0.3, resolution=9)
    figure = charts.landscape_figure(found, 6)
    images = [axes for axes in figure.axes if axes.images]
    assert len(images) == 6
    assert (torch.from_numpy(images[2].images[0].get_array().data) == found.loss[2].T).all()
    figure.savefig(io.BytesIO())
    with pytest.raises(ValueError, match="landscape_figure: n and the number of samples must be at least 1, got 0"):
        charts.landscape_figure(Landscape(found.axis, *(getattr(found, k)[:0] for k in ("loss", "prediction", "first",
                                          "second")), "ce", "Linf"))  # fmt: skip
    diagnosis = diagnose(model, x, y, fr.Linf(0.2), steps=(1, 5), restarts=(1, 2), queries=50)
    figure = charts.diagnosis_figure(diagnosis)
    assert [axes.get_title() for axes in figure.axes] == [
        "against steps", "against restarts", "against radii", "by attack"
    ]  # fmt: skip
    drawn = figure.axes[0].lines[1]
    assert list(drawn.get_ydata()) == diagnosis.numbers["against_steps"]["accuracy"]
    figure.savefig(io.BytesIO())
