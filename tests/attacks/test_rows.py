"""Steps row by row: the native ones say what PyTorch says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks.nets import cnn, images, predictions
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastrobust as fr
from fastrobust import _backend
from fastrobust.attacks import _rows

pytestmark = pytest.mark.skipif(_backend.plain is None, reason="this build has no native kernels")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls something without the native steps."""

    def call(what: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(_backend, "plain", None)
            return what()

    return call


def numbers(seed: int, *shape: int) -> Tensor:
    """Normal numbers with zeros and ties among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    x[torch.rand(*shape, generator=generator) < 0.2] = 0
    return torch.where(torch.rand(*shape, generator=generator) < 0.3, x.sign(), x)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1", "L0"])
@pytest.mark.parametrize("shape", [(0, 7), (1, 1), (5, 3, 9), (40, 2, 16, 16)])
def test_norms(norm: str, shape: tuple[int, ...], without: Any) -> None:
    x, centre = numbers(0, *shape), numbers(1, *shape)
    for args in ((x, None), (x, centre)):
        torch.testing.assert_close(_rows.distance(*args, norm), without(lambda args=args: _rows.distance(*args, norm)))


def test_norms_of_what_is_no_number() -> None:
    x = torch.tensor([[1.0, float("nan"), 3.0], [float("inf"), 1.0, -2.0], [-4.0, 1.0, 2.0]])
    assert _rows.distance(x, None, "Linf")[1:].tolist() == [torch.inf, 4.0]
    for norm in ("Linf", "L2", "L1"):
        assert bool(_rows.distance(x, None, norm)[0].isnan())
    huge = torch.full((1, 4), 3e38)
    assert _rows.distance(huge, -huge, "L2").item() == pytest.approx(2 * 2 * 3e38)


@pytest.mark.parametrize("after", ["", "sphere", "largest"])
@pytest.mark.parametrize("boxed", [False, True])
def test_unit_steps(after: str, boxed: bool, without: Any) -> None:
    x, centre, slope = (numbers(k, 12, 3, 5, 5) for k in range(3))
    slope[3], slope[4] = 0, slope[4] * 1e-30
    x[5], slope[5] = centre[5], 0
    length, reach = torch.rand(12), torch.arange(12.0) * (8 if after == "largest" else 0.5)
    box = (torch.full((3, 1, 1), -1.0), torch.full((3, 5, 5), 1.5)) if boxed else None

    def step() -> Tensor:
        return _rows.unit_step(x, centre, slope, length, after, reach if after else None, box)

    torch.testing.assert_close(step(), without(step), rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), count=st.integers(-1, 45))
def test_the_largest_stay(seed: int, n: int, count: int) -> None:
    delta = numbers(seed, 1, n)
    zero, none = torch.zeros(1, n), torch.zeros(1, n)
    found = _rows.unit_step(delta, zero, none, torch.ones(1), "largest", torch.tensor([float(count)]))
    assert torch.equal(found, _rows.largest(delta, torch.tensor([count])))


def test_rows_are_assigned(without: Any) -> None:
    values, rows = numbers(0, 30, 2, 7), torch.arange(30) % 3 == 0
    found, expected = torch.zeros(30, 2, 7), torch.zeros(30, 2, 7)
    _rows.assign(found, rows, values)
    without(lambda: _rows.assign(expected, rows, values))
    assert torch.equal(found, expected)
    odd = torch.zeros(2, 7, 30).permute(2, 0, 1)
    _rows.assign(odd, rows, values)
    assert torch.equal(odd, expected)


ATTACKS = {
    "APGD Linf": lambda net: fr.attacks.APGD(net, "Linf", 0.1, steps=30, seed=1),
    "APGD L2": lambda net: fr.attacks.APGD(net, "L2", 0.8, steps=30, restarts=2),
    "APGD in a box of features": lambda net: fr.attacks.APGD(
        net, "L2", 0.8, steps=20, box=(torch.zeros(1, 28, 28), torch.ones(1, 28, 28))
    ),
    "APGDT": lambda net: fr.attacks.APGDT(net, "Linf", 0.05, steps=20, targets=2),
    "Square": lambda net: fr.attacks.Square(net, "Linf", 0.1, n_queries=80),
    "FABT": lambda net: fr.attacks.FABT(net, "Linf", steps=10, targets=2),
    "FAB": lambda net: fr.attacks.FAB(net, "L2", steps=10, restarts=2),
    "FMN L2": lambda net: fr.attacks.FMN(net, "L2", steps=20),
    "FMN Linf": lambda net: fr.attacks.FMN(net, "Linf", steps=20),
    "FMN L0": lambda net: fr.attacks.FMN(net, "L0", steps=20),
    "DDN": lambda net: fr.attacks.DDN(net, steps=20),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("compile", [False, True])
def test_attacks_find_the_same(name: str, compile: bool, without: Any) -> None:
    net, x = cnn(), images(18)
    y = predictions(net, x)

    def run() -> Any:
        attack = ATTACKS[name](net)
        attack.compile = compile
        return attack.run(x, y)

    found, expected = run(), without(run)
    assert torch.equal(found.success, expected.success)
    if "Linf" in name or name in ("APGDT", "Square"):
        torch.testing.assert_close(found.x_adv, expected.x_adv, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-3, atol=1e-4)
