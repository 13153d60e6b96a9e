"""What a training step minimises. Add an entry to `OBJECTIVES` and its name works in a `TrainConfig`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrobust.attacks import PGD
from fastrobust.data.keys import hash64

from .config import TrainConfig


@dataclass(frozen=True)
class Adversary:
    """The config's attack at one step: its radius, its seed and the samples it meets.

    index: (b,) int64 on the CPU, positions in the data set. Every draw depends on (seed, index) only, so it
    is the same however the batch is spread over ranks.
    """

    config: TrainConfig
    eps: float
    seed: int
    index: Tensor

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


Objective = Callable[[nn.Module, Tensor, Tensor, Adversary], tuple[Tensor, Tensor]]
"""(model in train mode, x, y, adversary) -> (mean loss, the logits that training accuracy counts)."""


def standard(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the samples as they are."""
    logits = model(x)
    return F.cross_entropy(logits, y), logits


def pgd(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """PGD adversarial training (Madry et al., ICLR 2018): cross-entropy at the worst points found."""
    logits = model(adversary.attack(model, x, y))
    return F.cross_entropy(logits, y), logits


def trades(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """TRADES (Zhang et al., ICML 2019, eq. 5): CE(f(x), y) + beta KL(softmax f(x) || softmax f(x')).

    x' maximises that KL from x + 0.001 N(0, I); the clean distribution is computed once for the whole attack.
    The gradient flows through both distributions. Clean and adversarial samples are two forward passes, so
    batch norm normalises each with its own statistics, as in the authors' code (which runs the clean pass
    twice and so updates the running statistics once more).
    """
    adversarial = adversary.attack(model, x, y, loss="kl", start=x + 0.001 * adversary.normal_like(x))
    logits, adversarial_logits = model(x), model(adversarial)
    divergence = F.kl_div(
        adversarial_logits.log_softmax(1), logits.log_softmax(1), reduction="batchmean", log_target=True
    )
    return F.cross_entropy(logits, y) + adversary.config.beta * divergence, adversarial_logits


OBJECTIVES: dict[str, Objective] = {"standard": standard, "pgd": pgd, "trades": trades}
