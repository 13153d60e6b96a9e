"""Certified <= robust <= standing, at every radius, and neither curve rises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastrobust as fr


def test_a_linear_model_leaves_nothing_unknown() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 2).eval(), 0.4 + 0.2 * torch.rand(40, 6)
    z = model(x).detach().double()
    y = z.argmax(1)
    y[:5] = 1 - y[:5]
    difference = (model.weight[0] - model.weight[1]).detach().double()
    distance = torch.where(z.argmax(1) == y, (z[:, 0] - z[:, 1]).abs() / difference.abs().sum(), -1.0)
    radii, box = [float(r) for r in torch.linspace(0, float(distance.max()) * 1.1, 6)], (-10.0, 10.0)

    def attack_at(eps: float) -> fr.attacks.PGD:
        return fr.attacks.PGD(model, eps=eps, alpha=eps, steps=3, box=box)

    seen = []
    found = fr.evaluation.sandwich(model, x, y, radii, box=box, attack_at=attack_at, progress=lambda *a: seen.append(a))
    truth = torch.stack([distance > eps for eps in radii])
    near = torch.stack([(distance - eps).abs() < 1e-5 for eps in radii])
    assert bool(((found.certified == truth) | near).all())
    assert bool(((found.standing == truth) | near).all())
    assert found.guarantee == "float32"
    assert found.shares("certified") == sorted(found.shares("certified"), reverse=True)
    assert all(1 <= done <= 40 for _, done, *_ in seen)


def test_bounds_never_pass_attacks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x = torch.rand(30, 5)
    y = model(x).argmax(1)

    def attack_at(eps: float) -> fr.attacks.PGD:
        return fr.attacks.PGD(model, eps=eps, alpha=eps / 4, steps=10)

    found = fr.evaluation.sandwich(model, x, y, [0.0, 0.05, 0.1, 0.2], cascade=("ibp", "crown"), attack_at=attack_at)
    assert not bool((found.certified & ~found.standing).any())
    for which in (found.certified, found.standing):
        assert not bool((which[1:] & ~which[:-1]).any())
    with pytest.raises(ValueError, match="radii must be finite numbers >= 0"):
        fr.evaluation.sandwich(model, x, y, [-1.0])
