"""The adversarial patch: where it lies, that its gradient is right, and that it fools at places not seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks.defences import Middle, digits_cnn
from attacks.nets import cnn, images, linear, predictions
from attacks.test_promises import mixed, same, snapshot
from torch import Tensor, nn

from fastrobust import data
from fastrobust.attacks import AdversarialPatch


def placed(x: Tensor, patch: Tensor, **keywords: Any) -> Tensor:
    attack = AdversarialPatch(nn.Flatten(), tuple(patch.shape[1:]), **keywords)
    attack.patch = patch
    return attack.apply(x)


def test_a_patch_as_large_as_the_image_is_the_image() -> None:
    x, patch = torch.rand(3, 2, 5, 7, dtype=torch.float64), torch.rand(2, 5, 7, dtype=torch.float64)
    shown = placed(x, patch, scale=(1.0, 1.0), rotation=0.0)
    assert torch.allclose(shown, patch.expand_as(shown), atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_lies_in_the_image_as_a_whole_and_anywhere(channels: int) -> None:
    """Covered pixels: all of one value; their number is that of the patch's area, whatever the turn and scale."""
    x = torch.zeros(400, channels, 20, 24, dtype=torch.float64)
    shown = placed(x, torch.ones(channels, 6, 4, dtype=torch.float64), scale=(0.5, 1.5), rotation=180.0)
    covered = shown > 0
    assert (shown[covered] > 1 - 1e-9).all()  # no dark seam
    area = covered[:, 0].sum((1, 2)).double()
    assert 24 * 0.25 * 0.5 <= area.min() <= area.max() <= 24 * 2.25 * 1.2
    assert abs(float(area.mean()) - 24 * (1 + 1 / 12)) <= 24 * 0.1  # the mean of a square of U(0.5, 1.5)
    assert covered.any(0)[0, 2:-2, 2:-2].all()
    assert torch.equal(covered[:, 0], covered[:, -1])


def test_the_turn_is_a_turn() -> None:
    """A quarter turn of scale 1 takes rows to columns: found among many turns as the nearest to 90 degrees."""
    patch = torch.zeros(1, 9, 9, dtype=torch.float64)
    patch[:, :, 4] = 1  # an upright bar
    shown = placed(torch.zeros(500, 1, 9, 9, dtype=torch.float64), patch, scale=(1.0, 1.0), rotation=90.0)
    upright, lying = shown[:, 0, :, 4].sum(1), shown[:, 0, 4].sum(1)
    assert upright.max() > 8.7
    assert lying.max() > 8.7
    assert torch.allclose(shown[upright.argmax(), 0], patch[0], atol=0.15)
    assert torch.allclose(shown[lying.argmax(), 0], patch[0].T, atol=0.15)


def test_gradients_flow_to_patch_and_image() -> None:
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    patch = (torch.rand(1, 3, 3, dtype=torch.float64) / 2 + 0.25).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: placed(x, p), (x, patch), eps=1e-7, atol=1e-5)


def test_an_image_gets_the_same_place_in_any_batch() -> None:
    x, patch = images(9), torch.rand(1, 8, 8)
    attack = AdversarialPatch(cnn(), 8)
    attack.patch = patch
    whole, index = attack.apply(x, seed=3), torch.arange(9)
    order = torch.tensor([4, 8, 0])
    assert torch.equal(attack.apply(x[order], 3, index[order]), whole[order])
    assert not torch.equal(attack.apply(x, seed=4), whole)
    assert not torch.equal(attack.apply(x, seed=3, draw=1), whole)
    y = predictions(cnn(), x)
    assert torch.equal(attack.success(x[order], y[order], 3, index[order]), attack.success(x, y, 3)[order])
    assert torch.equal(attack.success(x, y, 3), predictions(cnn(), whole) != y)


def test_on_a_linear_model_it_is_the_sign_of_the_weights() -> None:
    """One weight for each channel, everywhere: the best patch for class 1 fills each channel with 0 or 1."""
    sign = torch.tensor([1.0, -1.0, 1.0])
    weight = torch.stack([torch.zeros(3 * 64), sign.repeat_interleave(64) / 64])
    model, x = linear(weight, torch.tensor([0.5, 0.0])), torch.rand(6, 3, 8, 8)
    patch = AdversarialPatch(model, 4, target=1, steps=40, batch_size=4).fit(x, torch.zeros(6, dtype=torch.int64))
    assert torch.allclose(patch, (sign.view(3, 1, 1) > 0).float().expand(3, 4, 4), atol=1e-6)


@pytest.mark.parametrize(("target", "size"), [(None, 4), (3, 5)])
def test_it_fools_images_and_places_not_seen(target: int | None, size: int) -> None:
    model, splits = nn.Sequential(Middle(), digits_cnn(6)).eval(), data.digits()
    train, test = splits.train.subset(slice(0, 400)), splits.test
    attack = AdversarialPatch(model, size, target, steps=150, rotation=10.0, compile=True)
    patch = attack.fit(train.images, train.labels)
    assert "engine" in attack._victim.explain() or "lowered" in attack._victim.explain()
    fooled = attack.success(test.images, test.labels)
    attack.patch = torch.rand(1, size, size, generator=torch.Generator().manual_seed(0))
    chance = attack.success(test.images, test.labels)
    assert patch.min() >= 0
    assert patch.max() <= 1
    assert fooled.double().mean() >= chance.double().mean() + 0.2
    if target is not None:
        assert not fooled[test.labels == target].any()


def test_it_repeats_and_changes_nothing() -> None:
    model, x = mixed(), images(5)
    y, before = predictions(cnn(), x), None
    before = snapshot(model)
    keywords: dict[str, Any] = {"steps": 3, "batch_size": 8, "compile": False}
    first = AdversarialPatch(model, (6, 9), **keywords)
    patch = first.fit(x, y)
    assert patch.shape == (1, 6, 9)
    assert not patch.requires_grad
    first.success(x, y)
    assert same(before, snapshot(model))
    assert torch.equal(patch, AdversarialPatch(model, (6, 9), **keywords).fit(x, y))
    assert not torch.equal(patch, AdversarialPatch(model, (6, 9), seed=1, **keywords).fit(x, y))
    model[8].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        first.fit(x, y)
    assert same(before, snapshot(model))


def test_a_box_by_pixels_holds() -> None:
    low, high = torch.rand(1, 28, 28) / 4, 0.75 + torch.rand(1, 28, 28) / 4
    x = low + (high - low) * images(6)
    attack = AdversarialPatch(cnn(), 10, steps=3, box=(low, high))
    attack.fit(x, torch.zeros(6, dtype=torch.int64))
    shown = attack.apply(x)
    assert (shown >= low).all()
    assert (shown <= high).all()
    assert attack.apply(x[:0]).shape == x[:0].shape
    assert attack.success(x[:0], torch.zeros(0, dtype=torch.int64)).shape == (0,)


X, Y = images(2), torch.tensor([0, 1])
BAD = [
    (lambda m: AdversarialPatch(m, 0), "size must be one or two integers"),
    (lambda m: AdversarialPatch(m, 3, -1), "target must be None or an integer"),
    (lambda m: AdversarialPatch(m, 3, steps=0), "steps must be"),
    (lambda m: AdversarialPatch(m, 3, lr=-1.0), "lr must be"),
    (lambda m: AdversarialPatch(m, 3, scale=(0.0, 1.0)), "scale must be"),
    (lambda m: AdversarialPatch(m, 3, loss="kl"), "loss must be"),
    (lambda m: AdversarialPatch(m, 3, compile="yes"), "compile must be"),
    (lambda m: AdversarialPatch(m, 3, seed=-1), "seed must be"),
    (lambda m: AdversarialPatch(m, 3, 10, steps=1).fit(X, Y), r"y must be in 0 \.\. 9"),
    (lambda m: AdversarialPatch(m, 3).fit(X[:0], Y[:0]), "at least, got none"),
    (lambda m: AdversarialPatch(m, 3).fit(X[:, 0], Y), r"x must have shape \(batch, channels"),
    (lambda m: AdversarialPatch(m, 3).apply(X), "call fit first"),
    (lambda m: placed(X, torch.rand(3, 2, 2)), "x must have 3 channels, got 1"),
]


@pytest.mark.parametrize(("call", "words"), BAD, ids=[words for _, words in BAD])
def test_errors_name_the_argument(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(cnn())
