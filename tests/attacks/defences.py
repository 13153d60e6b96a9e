"""Defences that hide their gradients, and a network trained to live with them."""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrobust import data

__all__ = ["Depth", "Middle", "ResizePad", "digits_cnn", "jpeg"]

CANVAS = 16


class Depth(nn.Module):
    """Fewer bits a pixel (Xu et al., NDSS 2018): its gradient is 0 almost everywhere."""

    def __init__(self, bits: int = 2) -> None:
        super().__init__()
        self.levels = 2**bits - 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * self.levels) / self.levels


def jpeg(x: Tensor, quality: int = 60) -> Tensor:
    """Grey images through a JPEG file (Guo et al., ICLR 2018): outside of autograd."""
    from PIL import Image

    out = []
    for image in (x[:, 0].clamp(0, 1) * 255).round().byte().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(out)).to(x)[:, None] / 255


class ResizePad(nn.Module):
    """Each image at a random size and a random place of a larger one (Xie et al., ICLR 2018)."""

    def __init__(self, least: int = 10, most: int = 14) -> None:
        super().__init__()
        self.least, self.most = least, most

    def forward(self, x: Tensor) -> Tensor:
        share = torch.rand(3, len(x), 1, dtype=x.dtype)
        side = self.least + (self.most - self.least) * share[0]
        middle = torch.arange(CANVAS, dtype=x.dtype) + 0.5
        down, right = (2 * (middle - (CANVAS - side) * off) / side - 1 for off in share[1:])
        grid = torch.stack(torch.broadcast_tensors(right[:, None, :], down[:, :, None]), -1)
        return F.grid_sample(x, grid, align_corners=False)


class Middle(nn.Module):
    """The same without chance."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(F.interpolate(x, size=(12, 12), mode="bilinear", align_corners=False), (2, 2, 2, 2))


def digits_cnn(epochs: int = 16) -> nn.Module:
    """A small CNN for digits (8x8) behind `ResizePad` or `Middle`, trained in a few seconds."""
    train = data.digits().train
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
        steps = torch.optim.Adam(net.parameters())
        rates = torch.optim.lr_scheduler.OneCycleLR(steps, 6e-3, total_steps=epochs * -(-len(train) // 64))
        chance = ResizePad()
        for _ in range(epochs):
            for rows in torch.randperm(len(train)).split(64):
                steps.zero_grad()
                F.cross_entropy(net(chance(train.images[rows])), train.labels[rows]).backward()
                steps.step()
                rates.step()
    return net.eval()
