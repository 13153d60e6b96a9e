"""What is particular to attacks that only ask the model: Square, HopSkipJump, transfer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks.closed_form import distance, linear
from attacks.nets import cnn, images, mlp, predictions
from torch import Tensor, nn

from fastrobust.attacks import APGD, PGD, HopSkipJump, Square, Transfer
from fastrobust.attacks.square import _bump, _window


class Counting(nn.Module):
    """How often each sample was shown, by its place in a batch that stays; and that no gradient was asked for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.points = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() or not x.requires_grad
        self.points += len(x)
        out: Tensor = self.inner(x)
        return out


# --- Square ---


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_square_counts_every_query(norm: str) -> None:
    """One point in a batch: the model sees it once before, `steps` times, and no more."""
    x = images(1)
    model = Counting(mlp())
    y = predictions(model, x)
    model.points = 0
    found = Square(model, norm, 1e-4, 37, compile=False).run(x, y)
    assert not found.success
    assert found.steps.tolist() == [37]
    assert model.points == 38


def test_square_leaves_once_fooled() -> None:
    model, x = mlp(), images(8)
    y = predictions(model, x)
    few = Square(model, "Linf", 0.2, 60, resc_schedule=False, compile=False).run(x, y)
    assert few.success.all()
    assert (few.steps < 60).all()
    many = Square(model, "Linf", 0.2, 5000, resc_schedule=False, compile=False).run(x, y)
    assert torch.equal(few.x_adv, many.x_adv)  # a budget that is not used changes nothing


def test_square_loss_never_falls() -> None:
    model, x = cnn(), images(6)
    y = predictions(model, x)
    last = torch.full((6,), -torch.inf)
    for n_queries in (1, 2, 5, 20, 60, 61):
        found = Square(model, "Linf", 0.003, n_queries, resc_schedule=False, compile=False).run(x, y)
        assert (found.loss >= last).all()
        last = found.loss


def test_square_perturbs_windows_by_eps() -> None:
    """Linf: every pixel at an end of the ball; the start is striped, and a second query changes one window of it."""
    model, x, eps = cnn(), images(12) * 0.5 + 0.25, 1e-3
    y = predictions(model, x)
    one, two = (Square(model, "Linf", eps, n, resc_schedule=False, compile=False).run(x, y) for n in (1, 2))
    first, second = one.x_adv - x, two.x_adv - x
    rows = first.flatten(1).any(1)  # a start that lowers the loss is not handed back
    for delta in (first[rows], second[rows]):
        assert torch.allclose(delta.abs(), torch.tensor(eps), atol=1e-6)
    signs = first[rows].sign()
    assert (signs == signs[:, :, :1]).all()
    changed = (one.x_adv != two.x_adv)[rows].flatten(1).sum(1)
    assert changed.any()
    assert (changed <= 25 * 25).all()  # sqrt(0.8) * 28 = 25


@pytest.mark.parametrize("shape", [(), (1,), (2,), (12,), (3, 5), (2, 3, 40), (2, 2, 6, 6), (3, 7, 2)])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_square_takes_any_shape(shape: tuple[int, ...], norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, *shape, generator=generator)
    weight = torch.randn(x[0].numel(), 3, generator=generator)
    y = (x.reshape(4, -1) @ weight).argmax(1)
    found = Square(lambda x: x.reshape(len(x), -1) @ weight, norm, 0.4, 60).run(x, y)
    assert found.x_adv.shape == x.shape
    assert (distance(found.x_adv.view(4, -1), x.view(4, -1), norm) <= 0.4).all()
    assert ((found.x_adv >= 0) & (found.x_adv <= 1)).all()


def test_square_windows() -> None:
    assert _window(0.8, 28, 28, "Linf") == (25, 25)  # as in the official code
    assert _window(0.8 / 512, 28, 28, "Linf") == (1, 1)
    assert _window(0.8 / 512, 28, 28, "L2") == (3, 3)
    assert _window(0.8, 32, 32, "L2") == (29, 29)
    assert _window(0.8, 1, 100, "Linf") == (1, 80)  # what fits, with the same share
    assert _window(0.5, 10, 40, "Linf") == (10, 20)
    assert _window(1.0, 1, 2, "L2") == (1, 2)
    for norm, order in (("L2", 2), ("L1", 1)):
        for sides in ((5, 5), (3, 3), (1, 4), (4, 1), (2, 7)):
            for turned in (False, True):
                bump = _bump(*sides, turned, norm)
                assert bump.shape == sides
                assert torch.allclose(torch.linalg.vector_norm(bump, order), torch.tensor(1.0))
                assert (bump > 0).any()
                assert (bump < 0).any()
    assert torch.equal(_bump(5, 5, True, "L2"), _bump(5, 5, False, "L2").T)
    # The official code's eta(3) for L2, by hand: rings of 1 + 1/4 around 1/4, the halves 1 and 2 rows high.
    top = torch.tensor([[0.25, 1.25, 0.25]])
    low = torch.tensor([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]])
    expected = torch.cat([top / top.norm(), -low / low.norm()])
    assert torch.allclose(_bump(3, 3, False, "L2"), expected / expected.norm())


def test_square_16_bit_and_float64() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model, x = mlp().to(dtype), images(6).to(dtype)
        y = predictions(model, x)
        for norm, eps in (("Linf", 0.1), ("L2", 1.5)):
            found = Square(model, norm, eps, 60).run(x, y)
            assert found.x_adv.dtype == dtype
            assert (distance(found.x_adv, x, norm) <= eps).all()
            assert torch.equal(found.success, predictions(model, found.x_adv) != y)
            assert found.success.any()


def test_square_draws_go_on_beyond_what_is_drawn_at_a_time() -> None:
    """Points that come late share no draws with others: a batch of two finds what one of many finds."""
    model, x = cnn(), images(9)
    y = predictions(model, x)
    whole = Square(model, "Linf", 0.012, 70, compile=True, batch_size=9, restarts=2).run(x, y)
    pairs = Square(model, "Linf", 0.012, 70, compile=True, batch_size=2, restarts=2).run(x, y)
    assert 0 < int(whole.success.sum()) < 9
    for a, b in zip(whole, pairs, strict=True):
        assert torch.equal(a, b)


BAD_SQUARE = [
    ({"norm": "L0"}, "norm must be one of"),
    ({"eps": -1.0}, "eps must be finite and >= 0"),
    ({"n_queries": 0}, "n_queries must be an integer >= 1"),
    ({"p_init": 0.0}, r"p_init must be in \(0, 1\]"),
    ({"eot": 2}, "eot must be 1"),
]


@pytest.mark.parametrize(("keywords", "message"), BAD_SQUARE)
def test_square_errors(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Square(mlp(), **keywords)


# --- HopSkipJump ---


def test_hopskipjump_uses_labels_alone() -> None:
    """Whatever the logits are that say the same, the queries and the result are the same."""
    model, x, y = linear(3)
    least = HopSkipJump(model, n_queries=300, box=(-10.0, 11.0), compile=False).run(x, y)

    def labels(x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(model(x).argmax(1), 3).float()

    again = HopSkipJump(labels, n_queries=300, box=(-10.0, 11.0)).run(x, y)
    assert torch.equal(least.x_adv, again.x_adv)
    assert least.success.all()


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_hopskipjump_spends_its_queries(norm: str) -> None:
    x, model = images(1), Counting(mlp())
    y = predictions(model, x)
    model.points = 0
    found = HopSkipJump(model, norm, 123, compile=False).run(x, y)
    assert found.steps.tolist() == [123]
    assert model.points == 124
    more = HopSkipJump(model, norm, 600, compile=False).run(x, y)
    assert more.loss < found.loss  # the same queries, and further ones


def test_hopskipjump_starts_where_told() -> None:
    """A class that noise is never of is reached from a given point, and not without."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    with torch.no_grad():  # class 1: a bright image
        model[1].weight.copy_(torch.stack([torch.zeros(784), torch.ones(784)]))
        model[1].bias.copy_(torch.tensor([0.0, -600.0]))
    x = images(5) * 0.5
    target = torch.ones(5, dtype=torch.int64)
    lost = HopSkipJump(model, n_queries=200, targeted=True).run(x, target)
    assert not lost.success.any()
    assert torch.equal(lost.x_adv, x)
    starts = torch.stack([torch.zeros(1, 28, 28), torch.ones(1, 28, 28)])
    found = HopSkipJump(model, n_queries=200, targeted=True, starts=starts).run(x, target)
    assert found.success.all()
    assert torch.equal(found.success, predictions(model, found.x_adv) == target)


BAD_HOP = [
    ({"norm": "L1"}, "norm must be 'L2' or 'Linf'"),
    ({"n_queries": 0}, "n_queries must be an integer >= 1"),
    ({"first_estimate": 0}, "first_estimate must be an integer >= 1"),
    ({"gamma": 0.0}, "gamma must be finite and > 0"),
    ({"box": (0.0, float("inf"))}, "box must be finite"),
    ({"starts": torch.full((1, 1, 28, 28), 2.0)}, "starts: x must lie in the box"),
]


@pytest.mark.parametrize(("keywords", "message"), BAD_HOP)
def test_hopskipjump_errors(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HopSkipJump(mlp(), **keywords)
    with pytest.raises(ValueError, match="starts must have shape"):
        HopSkipJump(mlp(), starts=torch.zeros(2, 5)).run(images(2), torch.zeros(2, dtype=torch.int64))


# --- transfer ---


def _pair() -> tuple[nn.Module, nn.Module]:
    """A network, and one with other weights that says much the same."""
    model, other = mlp(), mlp()
    with torch.no_grad():
        other[1].weight.add_(0.005 * torch.randn(other[1].weight.shape, generator=torch.Generator().manual_seed(3)))
    return model, other


def test_transfer_judges_on_the_target() -> None:
    model, other = _pair()
    x = images(16)
    y = predictions(model, x)
    settings = {"eps": 0.05, "alpha": 0.02, "steps": 5}
    found = Transfer(model, [other], **settings).run(x, y)
    assert torch.equal(found.success, predictions(model, found.x_adv) != y)
    assert torch.equal(found.x_adv, PGD(other, **settings)(x, y))  # all are right on x, and none is left out
    assert found.success.any()


def test_transfer_asks_the_target_only_for_its_answer() -> None:
    model, other = _pair()
    counting, x = Counting(model), images(4)
    y = predictions(model, x)
    found = Transfer(counting, [other, other], eps=1e-6, alpha=1e-6, steps=2).run(x, y)
    assert not found.success.any()
    assert counting.points == 3 * 4  # before, and after each surrogate


def test_transfer_from_several_is_no_worse_than_from_one() -> None:
    model, other = _pair()
    third = cnn()
    x = images(12)
    y = predictions(model, x)
    settings = {"eps": 0.01, "alpha": 0.004, "steps": 5}
    first = Transfer(model, [third], **settings).run(x, y)
    both = Transfer(model, [third, other], **settings).run(x, y)
    assert (both.success >= first.success).all()
    assert both.success.sum() > first.success.sum()
    assert (both.steps[first.success] == first.steps[first.success]).all()


def test_transfer_from_an_ensemble() -> None:
    model, other = _pair()
    x = images(8)
    y = predictions(model, x)

    def mean(x: Tensor) -> Tensor:
        out: Tensor = (model(x) + other(x)) / 2
        return out

    settings = {"eps": 0.02, "alpha": 0.01, "steps": 4}
    expected = PGD(mean, **settings)(x, y)
    for surrogates in ([model, other], [model, lambda x: other(x)]):
        found = Transfer(model, surrogates, ensemble=True, **settings).run(x, y)
        assert torch.allclose(found.x_adv, expected, atol=1e-6)


def test_transfer_takes_any_attack() -> None:
    model, other = _pair()
    x = images(6)
    y = predictions(model, x)
    found = Transfer(model, [other], APGD, norm="L2", eps=3.0, steps=10).run(x, y)
    assert (distance(found.x_adv, x, "L2") <= 3.0).all()
    assert found.success.any()


def test_transfer_errors() -> None:
    with pytest.raises(ValueError, match="surrogates must hold at least one"):
        Transfer(mlp(), [])
    with pytest.raises(TypeError, match="surrogates must be a sequence"):
        Transfer(mlp(), mlp())
    with pytest.raises(ValueError, match="eps must be finite"):
        Transfer(mlp(), [mlp()], eps=-1.0)
