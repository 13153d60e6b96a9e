"""A denoiser, and a classifier behind one (denoised smoothing; Salman et al., NeurIPS 2020)."""

from __future__ import annotations

import torch
from torch import nn


class DnCNN(nn.Module):
    """x minus the noise that a stack of convolutions finds in it (Zhang et al., TIP 2017), (B, C, H, W) both.

    `depth` 3x3 convolutions of `width` channels, ReLU after all but the last, batch norm before all ReLUs but the
    first. Weights start orthogonal, those of the last convolution at 0, as in denoised smoothing's code: an untrained
    one is the identity.
    """

    def __init__(self, channels: int = 3, width: int = 64, depth: int = 17) -> None:
        if channels < 1 or width < 1 or depth < 2:
            raise ValueError(
                f"DnCNN: channels and width must be >= 1 and depth >= 2, got {channels}, {width} and {depth}"
            )
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        last = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        self.noise = nn.Sequential(*layers, last)
        for module in self.noise:
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(last.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x - self.noise(x)
        return out


class Denoised(nn.Module):
    """classifier(denoiser(x)), the classifier frozen: its parameters need no gradient and it stays in eval mode.

    The classifier is taken as it is, not copied: freezing it freezes the caller's.
    """

    def __init__(self, denoiser: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.classifier = denoiser, classifier.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Denoised:
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.denoiser(x))
        return out
