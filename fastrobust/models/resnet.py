"""ResNet-18 for small images: a 3x3 stem of stride 1 and no max-pooling, so that 32x32 keeps its resolution.

Four stages of two basic blocks with w, 2w, 4w, 8w channels; global average pooling, so any image size works.
Weights start as torch's own layers draw them, as in the code behind the published robust-training figures.
"""

from __future__ import annotations

import torch
from torch import nn


def resnet18(in_channels: int = 3, classes: int = 10, width: int = 64) -> nn.Sequential:
    """Post-activation ResNet-18 (He et al., CVPR 2016) with the small-image stem; 64 is the usual width."""
    return nn.Sequential(
        _conv3(in_channels, width),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *_stages(BasicBlock, width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


def preact_resnet18(in_channels: int = 3, classes: int = 10, width: int = 64) -> nn.Sequential:
    """Pre-activation ResNet-18 (He et al., ECCV 2016), with the paper's batch norm and ReLU before pooling."""
    return nn.Sequential(
        _conv3(in_channels, width),
        *_stages(PreActBlock, width),
        nn.BatchNorm2d(8 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))).

    The shortcut is the identity, or 1x1 convolution and batch norm where shapes change.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv3(channels_in, channels_out, stride),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            _conv3(channels_out, channels_out),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


class PreActBlock(nn.Module):
    """conv(relu(bn(conv(a)))) + shortcut, with a = relu(bn(x)).

    The shortcut is x itself, or a 1x1 convolution of a where shapes change.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(channels_in), nn.ReLU())
        self.body = nn.Sequential(
            _conv3(channels_in, channels_out, stride),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            _conv3(channels_out, channels_out),
        )
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = self.activate(x)
        out: torch.Tensor = self.body(activated) + (x if self.shortcut is None else self.shortcut(activated))
        return out


def _stages(block: type[BasicBlock | PreActBlock], width: int) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    channels = width
    for stage, stride in enumerate((1, 2, 2, 2)):
        wider = width * 2**stage
        blocks += [block(channels, wider, stride), block(wider, wider, 1)]
        channels = wider
    return blocks


def _conv3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
