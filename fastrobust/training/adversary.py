"""The attack of a training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fastrobust.attacks import PGD
from fastrobust.data.keys import hash64

from .config import TrainConfig


@dataclass(frozen=True)
class Adversary:
    """The config's attack at one step: its radius, its seed, the samples it meets, and what inputs are valid.

    index: (b,) int64 on the CPU, positions in the data set. Every draw depends on (seed, index) only, so it
    is the same however the batch is spread over ranks.
    """

    config: TrainConfig
    eps: float
    seed: int
    index: Tensor
    box: tuple[float, float] = (0.0, 1.0)

    @property
    def share(self) -> float:
        """How far eps has grown, from 0 to 1."""
        return self.eps / self.config.largest_eps if self.config.largest_eps else 1.0

    def attack(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        loss: Literal["ce", "kl"] = "ce",
        start: Tensor | None = None,
    ) -> Tensor:
        """Adversarial points of x, (b, ...): PGD's last iterate on `loss`, from `start` or the config's own."""
        config = self.config
        alpha = 2.5 * config.eps / config.steps if config.alpha is None else config.alpha
        pgd = PGD(
            model,
            eps=self.eps,
            alpha=alpha * self.eps / config.eps if config.eps else 0.0,
            steps=config.steps,
            random_start=config.random_start,
            norm=config.norm,
            loss=loss,
            seed=self.seed,
            mode=config.attack_mode,
            compile=config.compile,
        )
        return pgd(x, y, index=self.index.to(x.device), start=start)

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal noise of x's shape, one generator per sample."""
        generator = torch.Generator(device=x.device)
        noise = torch.empty_like(x)
        for row, key in zip(noise, hash64(self.seed, self.index.numpy()).tolist(), strict=True):
            row.normal_(generator=generator.manual_seed(key >> 1))
        return noise
