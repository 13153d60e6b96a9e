"""Verdicts: robust only where it is proven, falsified only with a point, else unknown with the reason."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from oracles import least_margin
from torch import nn

import fastrobust as fr


def chain(*sizes: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1]).eval()


def test_verdicts_agree_with_the_mixed_integer_optimum() -> None:
    torch.manual_seed(1)
    model, x = chain(3, 10, 10, 3), torch.rand(12, 3)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    threat = fr.Linf(0.15)
    attack = fr.attacks.PGD(model, threat=threat, alpha=0.02, steps=20, restarts=3)
    found = fr.bounds.certify(model, x, y, threat, attack=attack)
    assert found.guarantee == "float32"
    low, high = (x - 0.15).clamp(0, 1), (x + 0.15).clamp(0, 1)
    seen = set()
    for i, verdict in enumerate(found.verdict):
        least = min(least_margin(layers, low[i], high[i], int(y[i]), j) for j in range(3) if j != int(y[i]))
        seen.add(verdict)
        if verdict == "robust":
            assert least > -1e-5
            assert 0 < float(found.margin[i]) <= least + 1e-5
            assert found.reason[i] == ""
        elif verdict == "falsified":
            assert least <= 1e-5
            assert found.method[i] in ("clean", "attack")
            assert bool(((low[i] <= found.point[i]) & (found.point[i] <= high[i])).all())
            assert int(model(found.point[i][None]).argmax()) != int(y[i])
        else:
            assert "leaves class" in found.reason[i]
            assert found.method[i] == "branch_and_bound"
    assert found.verdict[0] == "falsified"
    assert found.method[0] == "clean"
    assert {"robust", "falsified"} <= seen
    assert found.share("robust") == found.verdict.count("robust") / 12


def test_points_of_an_attack_outside_the_set_falsify_nothing() -> None:
    torch.manual_seed(0)
    model, x = chain(3, 10, 3), torch.rand(6, 3)
    y = model(x).argmax(1)
    liar = fr.bounds.certify(model, x, y, fr.Linf(1e-4), attack=lambda x, y: 1 - x)
    assert "falsified" not in liar.verdict
    nans = fr.bounds.certify(model, x, y, fr.Linf(1e-4), attack=lambda x, y: x * torch.nan)
    assert "falsified" not in nans.verdict


def test_the_cascade_stops_where_a_point_is_proven() -> None:
    torch.manual_seed(0)
    model, x = chain(3, 10, 3), torch.rand(20, 3)
    y = model(x).argmax(1)
    found = fr.bounds.certify(model, x, y, fr.Linf(0.02))
    ways = {m for m, v in zip(found.method, found.verdict, strict=True) if v == "robust"}
    assert "ibp" in ways
    alone = fr.bounds.certify(model, x, y, fr.Linf(0.02), cascade=("alpha_crown",))
    assert set(alone.method) == {"alpha_crown"}
    assert alone.share("robust") >= found.share("robust")
    none = fr.bounds.certify(model, x, y, fr.Linf(0.02), cascade=())
    assert set(none.verdict) == {"unknown"}
    assert set(none.reason) == {"no method was tried"}


def test_more_classes_at_the_top_prove_more() -> None:
    torch.manual_seed(0)
    model, x = chain(4, 20, 6), torch.rand(30, 4)
    y = model(x).argmax(1)
    shares = [fr.bounds.certify(model, x, y, fr.Linf(0.1), top_k=k).share("robust") for k in range(1, 7)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[0] < 1.0


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_radii_of_a_linear_model_are_its_distances(norm: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(5, 2).eval(), 0.5 + 0.01 * torch.randn(8, 5)
    z = model(x).detach().double()
    y = z.argmax(1)
    difference = (model.weight[0] - model.weight[1]).detach().double()
    order = {"Linf": 1, "L2": 2, "L1": torch.inf}[norm]
    distance = (z[:, 0] - z[:, 1]).abs() / torch.linalg.vector_norm(difference, order)
    found = fr.bounds.certified_radius(model, x, y, norm, 4.0, halvings=16, box=(-10.0, 10.0))
    expected = distance.clamp(max=4.0)
    assert bool((found <= expected).all())
    assert float((expected - found).max()) <= 1e-3
    wrong = fr.bounds.certified_radius(model, x, 1 - y, norm, 4.0, box=(-10.0, 10.0))
    assert wrong.tolist() == [-1.0] * 8


def test_certified_points_survive_every_attack() -> None:
    torch.manual_seed(0)
    model, x = chain(6, 24, 24, 4), torch.rand(64, 6)
    y = model(x).argmax(1)
    for eps in (0.01, 0.03, 0.1):
        found = fr.bounds.certify(model, x, y, fr.Linf(eps))
        robust = torch.tensor([v == "robust" for v in found.verdict])
        result = fr.attacks.AutoAttack(model, "Linf", eps, n_queries=200, verbose=False)
        x_adv = result.run_standard_evaluation(x, y)
        assert not bool(((model(x_adv).argmax(1) != y) & robust).any())


def test_arguments_are_checked() -> None:
    model, x, y = chain(3, 4, 2), torch.rand(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="sound must be True, 'exact' or 'float32'"):
        fr.bounds.certify(model, x, y, fr.Linf(0.1), sound=False)
    with pytest.raises(ValueError, match="cascade must consist of"):
        fr.bounds.certify(model, x, y, fr.Linf(0.1), cascade=("magic",))
    with pytest.raises(ValueError, match=r"y must be in 0 \.\. 1"):
        fr.bounds.certify(model, x, y + 5, fr.Linf(0.1))
    with pytest.raises(ValueError, match=r"top_k must be an integer in 1 \.\. 2"):
        fr.bounds.certify(model, x, y, fr.Linf(0.1), top_k=3)
    with pytest.raises(ValueError, match="x must lie between lower and upper"):
        fr.bounds.certify(model, x, y, (x + 1, x + 2))
    with pytest.raises(ValueError, match="method must be one of"):
        fr.bounds.margins(model, x, y, fr.Linf(0.1), "magic")
    empty = fr.bounds.certify(model, x[:0], y[:0], fr.Linf(0.1))
    assert empty.verdict == []
    assert empty.share("robust") == 0.0
