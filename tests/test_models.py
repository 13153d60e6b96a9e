"""Models: the shapes and sizes their papers state, and one name for each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastrobust import models
from fastrobust.models.resnet import PreActBlock


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", list(models.MODELS))
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 9)])
def test_every_model_maps_a_batch_to_logits_and_trains(name: str, shape: tuple[int, ...]) -> None:
    model = models.create(name, shape, classes=7, width=4)
    logits = model(torch.rand(3, *shape))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", list(models.MODELS))
def test_in_eval_mode_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    model = models.create(name, (1, 8, 8), classes=5, width=4).double().eval()
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


def test_sizes_are_the_published_ones() -> None:
    # The known counts for CIFAR-10: biases in the last layer only, and a final batch norm in the
    # pre-activation net.
    assert parameters(models.resnet18()) == 11_173_962
    assert parameters(models.preact_resnet18()) == 11_172_170
    assert parameters(models.cnn7()) == pytest.approx(17.2e6, rel=0.01)
    # small_cnn: 16*9+16 + 32 | 32*16*9+32 + 64 | 32*32*9+32 + 64 | 32*49*128+128 | 128*10+10
    assert parameters(models.small_cnn()) == 192 + 4704 + 9312 + 200_832 + 1290
    assert parameters(models.mlp((1, 2, 3), (5, 4), 3)) == 6 * 5 + 5 + 5 * 4 + 4 + 4 * 3 + 3


def test_width_scales_every_stage() -> None:
    for net in (models.resnet18(width=8), models.preact_resnet18(width=8)):
        convolutions = [module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)]
        assert {8, 16, 32, 64} == set(convolutions)


def test_preact_shortcut_sees_the_activated_input() -> None:
    # He et al. (2016b): a projection shortcut branches off after the first batch norm and ReLU, an identity
    # before.
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    same, changed = PreActBlock(4, 4, 1), PreActBlock(4, 8, 2)
    for block in (same, changed):
        for parameter in block.body[-1:].parameters():
            nn.init.zeros_(parameter)  # leaves the shortcut alone
    torch.testing.assert_close(same(x), x)
    assert changed.shortcut is not None
    torch.testing.assert_close(changed(x), changed.shortcut(torch.relu(changed.activate[0](x))))


def test_create_names_what_it_cannot_build() -> None:
    with pytest.raises(ValueError, match="one of mlp, small_cnn, cnn7, resnet18, preact_resnet18, got 'vgg'"):
        models.create("vgg", (3, 32, 32), 10)
    with pytest.raises(ValueError, match="square images"):
        models.create("small_cnn", (3, 32, 16), 10)
    assert models.create("mlp", (13,), 2)(torch.rand(4, 13)).shape == (4, 2)


def test_normalize_is_part_of_the_model() -> None:
    layer = models.Normalize((0.5, 0.25), (0.5, 2.0))
    x = torch.rand(3, 2, 4, 5)
    out = layer(x)
    torch.testing.assert_close(out[:, 0], (x[:, 0] - 0.5) / 0.5)
    torch.testing.assert_close(out[:, 1], (x[:, 1] - 0.25) / 2)
    assert set(layer.state_dict()) == {"mean", "std"}
    assert not list(layer.parameters())
    with pytest.raises(ValueError, match="std must be > 0"):
        models.Normalize((0.5,), (0.0,))


def test_an_untrained_denoiser_is_the_identity_and_sizes_are_those_of_the_paper() -> None:
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(models.DnCNN().eval()(x), x)
    # Denoised smoothing's DnCNN on CIFAR-10: 17 convolutions of width 64, batch norm in 15 of them.
    assert parameters(models.DnCNN()) == 3 * 64 * 9 + 64 + 15 * (64 * 64 * 9 + 128) + 64 * 3 * 9
    with pytest.raises(ValueError, match="channels and width must be >= 1 and depth >= 2, got 3, 64 and 1"):
        models.DnCNN(depth=1)


def test_the_classifier_behind_a_denoiser_is_frozen() -> None:
    classifier = models.small_cnn(1, 4, 8, 10).train()
    model = models.Denoised(models.DnCNN(1, 4, 3), classifier).train()
    assert model.denoiser.training
    assert not any(module.training for module in model.classifier.modules())
    before = [buffer.clone() for buffer in classifier.buffers()]
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert all(torch.equal(a, b) for a, b in zip(classifier.buffers(), before, strict=True))
    assert not model.eval().denoiser.training
