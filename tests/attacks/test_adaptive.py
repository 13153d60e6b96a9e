"""Defences that look strong against plain PGD fall to BPDA and EOT; and what BPDA, EOT and the KL loss compute."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attacks.closed_form import linear
from attacks.defences import Depth, Middle, ResizePad, digits_cnn, jpeg
from attacks.nets import cnn, images, predictions
from attacks.test_promises import same, snapshot
from torch import Tensor, nn

from fastrobust import data
from fastrobust.attacks import APGD, BPDA, EOT, MIFGSM, PGD
from fastrobust.attacks._points import Points

EPS = 0.2


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return digits_cnn()


@pytest.fixture(scope="module")
def points() -> tuple[Tensor, Tensor]:
    test = data.digits().test
    return test.images[:100], test.labels[:100]


def accuracy(model: nn.Module, x: Tensor, y: Tensor, draws: int = 1) -> float:
    """Over draws that no attack has seen."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(123)
        return sum(float((model(x).argmax(1) == y).double().mean()) for _ in range(draws)) / draws


# --- defences ---


@pytest.mark.parametrize("name", ["depth", "jpeg"])
def test_hidden_gradients_are_found_again(name: str, net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    if name == "jpeg":
        pytest.importorskip("PIL", reason="pillow is an optional dependency ([demo] extra)")
    (x, y), transform = points, Depth() if name == "depth" else jpeg
    defended = nn.Sequential(BPDA(transform), Middle(), net).eval()
    hidden = nn.Sequential(BPDA(transform, product=lambda x, g: torch.zeros_like(g)), Middle(), net).eval()
    assert accuracy(defended, x, y) >= 0.9
    plain = PGD(hidden, EPS, EPS / 4, 5).run(x, y)
    assert (plain.bad_gradients == 5).all()  # and the user is told so
    assert accuracy(defended, plain.x_adv, y) >= 0.85
    assert accuracy(defended, PGD(defended, EPS, EPS / 8, 30)(x, y), y) <= 0.05
    assert APGD(defended, eps=EPS, steps=20).run(x, y).success.double().mean() >= 0.95


def test_chance_is_averaged_out(net: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    """An attack that stops at the first draw that fools has fooled little else."""
    (x, y), defended = points, nn.Sequential(ResizePad(), net).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = PGD(defended, EPS, EPS / 20, 25, early_stop=True, random_start=False, compile=False).run(x, y)
        mean = PGD(EOT(defended, n=16), EPS, EPS / 8, 20, compile=False)(x, y)
        gradients = APGD(defended, eps=EPS, steps=20, eot=16, compile=False).run(x, y)
    assert accuracy(defended, x, y, 20) >= 0.9
    assert plain.success.double().mean() >= 0.9
    assert accuracy(defended, plain.x_adv, y, 20) >= 0.5
    assert accuracy(defended, mean, y, 20) <= 0.05
    assert accuracy(defended, gradients.x_adv, y, 20) <= 0.05
    assert gradients.success.double().mean() >= 0.95


def test_a_model_without_gradients_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    blind = lambda x: model(x.detach()).detach()  # noqa: E731
    for attack in (PGD(blind), APGD(blind)):
        with pytest.raises(ValueError, match=r"PGD: model must be differentiable.*BPDA"):
            attack(images(2), predictions(model, images(2)))


# --- BPDA ---


def slope(model: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad((model(x) ** 2).sum(), x)[0]


def test_the_gradient_is_the_one_asked_for() -> None:
    x = torch.rand(3, 4, 5, dtype=torch.float64)
    at = torch.round(x * 3) / 3
    assert torch.equal(BPDA(Depth())(x), at)
    assert torch.equal(slope(BPDA(Depth()), x), 2 * at)
    assert torch.allclose(slope(BPDA(Depth(), torch.sin), x), 2 * at * x.cos())
    assert torch.equal(slope(BPDA(Depth(), product=lambda x, g: x * g), x), 2 * at * x)
    # Other shapes, and the gradient of parameters before it.
    assert torch.allclose(slope(BPDA(lambda x: x.flatten(1).sum(1).round(), lambda x: x.flatten(1).sum(1)), x)[:, 0, 0],
                          2 * x.flatten(1).sum(1).round())  # fmt: skip
    before = nn.Linear(5, 5).double()
    BPDA(Depth())(before(x)).sum().backward()
    assert before.bias.grad is not None
    assert (before.bias.grad == 12).all()


def test_a_transform_may_write_to_what_it_gets_and_leave_torch() -> None:
    @BPDA
    def halved(x: Tensor) -> Tensor:
        return torch.from_numpy(x.mul_(0.5).numpy())

    x = torch.rand(2, 3)
    before = x.clone()
    assert torch.equal(halved(x), before / 2)
    assert torch.equal(slope(halved, x), before)
    assert torch.equal(x, before)
    assert "straight through" in repr(halved)


BAD = [
    (lambda x: BPDA(3), TypeError, "transform must be callable, got int"),
    (lambda x: BPDA(Depth(), 3), TypeError, "backward must be callable or None, got int"),
    (lambda x: BPDA(Depth(), Depth(), product=lambda x, g: g), ValueError, "product must be None"),
    (lambda x: BPDA(Depth())([1]), TypeError, "x must be a tensor, got list"),
    (lambda x: BPDA(lambda x: 3)(x), TypeError, r"transform\(x\) must be a tensor, got int"),
    (lambda x: BPDA(torch.Tensor.byte)(x), TypeError, r"transform\(x\) must have dtype .*, got uint8"),
    (lambda x: BPDA(lambda x: x[:, 1:])(x), ValueError, r"shape of x \(2, 3\), got \(2, 2\)"),
    (lambda x: slope(BPDA(Depth(), lambda x: x[:, 1:]), x), ValueError, r"backward\(x\) must have the shape"),
    (lambda x: slope(BPDA(Depth(), lambda x: x.detach()), x), ValueError, "backward must be differentiable"),
    (lambda x: slope(BPDA(Depth(), product=lambda x, g: g[1:]), x), ValueError, r"product\(x, gradient\) must have"),
    (lambda x: BPDA(lambda x: x[1:], lambda x: x)(x), ValueError, "must have 2 rows"),
    (lambda x: EOT(3), TypeError, "model must be callable, got int"),
    (lambda x: EOT(Depth(), 3), TypeError, "transforms must be None, a callable or some"),
    (lambda x: EOT(Depth(), []), TypeError, "transforms must be"),
    (lambda x: EOT(Depth(), n=0), ValueError, "n must be an integer >= 1, got 0"),
    (lambda x: EOT(Depth(), average="median"), ValueError, "average must be one of logits, probabilities"),
    (lambda x: EOT(Depth(), seed=-1), ValueError, "seed must be None or an integer in"),
    (lambda x: APGD(Depth(), targeted=True, loss="kl"), ValueError, "loss must not be 'kl' when targeted"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), BAD, ids=[words for _, _, words in BAD])
def test_errors_name_the_argument(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(torch.rand(2, 3))


@pytest.mark.parametrize("compile", ["auto", True])
def test_the_given_gradient_is_not_compiled_away(compile: str | bool) -> None:
    model, x = nn.Sequential(BPDA(Depth(3)), cnn()).eval(), images(8)
    y = predictions(model, x)
    attack = APGD(model, eps=0.1, steps=10, compile=compile)
    found = attack.run(x, y)
    assert "BPDA" in attack.explain() if compile is True else "engine" not in attack.explain()
    assert found.success.any()
    assert (found.bad_gradients == 0).all()
    assert torch.equal(found.x_adv, APGD(model, eps=0.1, steps=10, compile=False)(x, y))


# --- EOT ---


def test_the_gradient_of_the_mean_under_gaussian_noise() -> None:
    """E of Phi(w (x + s n)) over normal n is Phi(w x / sqrt(1 + s^2 |w|^2)), known with its gradient."""
    torch.manual_seed(0)
    w, s, n, copies = torch.randn(6, dtype=torch.float64), 0.7, 40, 200
    x = torch.rand(5, 6, dtype=torch.float64) / 4

    def probit(x: Tensor) -> Tensor:
        share = torch.special.ndtr(x @ w).clamp(1e-12, 1 - 1e-12)
        return torch.stack([(1 - share).log(), share.log()], 1)

    noisy = EOT(probit, lambda x: x + s * torch.randn_like(x), n, average="probabilities", seed=1)
    scale = math.sqrt(1 + s**2 * float(w @ w))
    free, known = x.clone().requires_grad_(), x.clone().requires_grad_()
    exact = torch.special.ndtr(known @ w / scale)
    shares = noisy(free.repeat(copies, 1)).exp()
    assert torch.allclose(shares.sum(1), torch.ones(5 * copies, dtype=torch.float64))
    mean = shares[:, 1].view(copies, 5).mean(0)
    assert torch.allclose(mean, exact, atol=5 * 0.5 / math.sqrt(n * copies))
    got, want = torch.autograd.grad(mean.sum(), free)[0], torch.autograd.grad(exact.sum(), known)[0]
    assert torch.allclose(got, want, atol=5 * 0.4 * float(w.abs().max()) / math.sqrt(n * copies))


def test_the_mean_gradient_over_places_is_the_mean_of_shifted_weights() -> None:
    weight, x = torch.randn(3, 25, dtype=torch.float64), torch.rand(2, 1, 4, 4, dtype=torch.float64)
    shifts = [(i, j) for i in range(2) for j in range(2)]
    pads = [lambda x, i=i, j=j: F.pad(x, (j, 1 - j, i, 1 - i)) for i, j in shifts]
    free = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(EOT(lambda x: x.flatten(1) @ weight.T, pads)(free)[:, 1].sum(), free)
    want = sum(weight[1].view(5, 5)[i : i + 4, j : j + 4] for i, j in shifts) / 4
    assert torch.allclose(got, want.expand_as(got))


class Turns(nn.Module):
    """Random by turns: any n calls in a row see each of n linear models once."""

    def __init__(self, n: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights, self.calls = torch.randn(n, 3, 6), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1) @ self.weights[self.calls % len(self.weights)].T


@pytest.mark.parametrize("n", [2, 5])
def test_attacks_average_gradients_and_judge_by_the_mean_prediction(n: int) -> None:
    model, x, y = Turns(n), torch.rand(7, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    free = x.clone().requires_grad_()
    each = [x_logits @ model.weights[k].T for k, x_logits in enumerate([free] * n)]
    loss = sum(F.cross_entropy(logits, y, reduction="sum") for logits in each) / n
    mean = torch.autograd.grad(loss, free)[0]
    box = (-9.0, 9.0)
    found = MIFGSM(model, 1e-3, 1e-3, 1, norm="L2", eot=n, compile=False, box=box).run(x, y)
    moved = found.x_adv - x
    assert torch.allclose(F.cosine_similarity(moved, mean), torch.ones(7), atol=1e-3)
    shares = torch.stack([(found.x_adv @ w.T).softmax(1) for w in model.weights]).mean(0)
    assert torch.equal(found.success, shares.argmax(1) != y)
    assert torch.allclose(EOT(model, n=n)(x), torch.stack(each).mean(0), atol=1e-6)


def test_seeded_draws_repeat_and_leave_the_generators_alone() -> None:
    noise = nn.Dropout(0.5)
    model, x = EOT(cnn(), noise, 3, seed=5), images(4)
    noise.train()
    assert model.training
    assert not model.eval().transforms[0].training  # attacks' modes reach the transforms
    noise.train()
    before = snapshot(model)
    first = model(x)
    assert torch.equal(first, model(x))
    assert not torch.equal(first, EOT(cnn(), noise, 3, seed=6)(x))
    assert same(before, snapshot(model))
    free = EOT(cnn(), noise, 3)
    assert not torch.equal(free(x), free(x))


# --- the KL loss ---


def divergence(model: nn.Module, x_adv: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        q, p = model(x).log_softmax(1), model(x_adv).log_softmax(1)
    return (q.exp() * (q - p)).sum(1)


@pytest.mark.parametrize("compile", [False, True])
def test_kl_is_from_the_clean_prediction_in_any_batch(compile: bool) -> None:
    model, x, eps = cnn(), images(12), 0.004
    with torch.no_grad():
        model[8].weight.mul_(20)  # sure of itself, as trained networks are
    y = predictions(model, x)
    found = APGD(model, eps=eps, steps=20, loss="kl", compile=compile).run(x, y)
    assert torch.allclose(found.loss, divergence(model, found.x_adv, x), rtol=1e-3, atol=1e-5)
    assert found.loss.mean() > 1e-3
    plain = PGD(model, eps, eps / 4, 20, loss="kl", best=True, compile=compile).run(x, y)
    stands = ~found.success & ~plain.success
    assert stands.sum() >= 6
    assert found.loss[stands].mean() >= plain.loss[stands].mean() * 0.999
    if compile:
        for size in (1, 4):
            again = APGD(model, eps=eps, steps=20, loss="kl", compile=True, batch_size=size).run(x, y)
            assert torch.equal(again.x_adv, found.x_adv)


def test_rows_of_the_reference_are_picked_and_replaced() -> None:
    whole = Points(torch.rand(5, 2), torch.arange(5), torch.arange(5), 0.0, 0.0)
    whole.reference = torch.rand(5, 3)
    part = whole.select(torch.tensor([3, 1]))
    assert torch.equal(part.reference, whole.reference[[3, 1]])
    part.put(torch.tensor([0]), whole.select(torch.tensor([4])))
    assert torch.equal(part.reference, whole.reference[[4, 1]])


def test_linear_models_know_no_chance() -> None:
    """On a model without randomness averaging changes nothing."""
    model, x, y = linear(4)
    one = APGD(model, eps=0.02, steps=10, compile=False).run(x, y)
    several = APGD(EOT(model, n=3), eps=0.02, steps=10, compile=False).run(x, y)
    assert torch.equal(one.success, several.success)
    assert torch.allclose(one.x_adv, several.x_adv, atol=1e-5)
