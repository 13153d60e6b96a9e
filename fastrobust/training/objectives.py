"""What a training step minimises. Add an entry to `OBJECTIVES` and its name works in a `TrainConfig`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from .adversary import Adversary
from .certified import crown_ibp, ibp, mtl_ibp, sabr
from .smoothed import consistency, denoise, gaussian, macer, smooth_adv, smoothmix, stability

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


OBJECTIVES: dict[str, Objective] = {
    "standard": standard, "pgd": pgd, "trades": trades, "ibp": ibp, "crown_ibp": crown_ibp, "sabr": sabr,
    "mtl_ibp": mtl_ibp, "gaussian": gaussian, "smooth_adv": smooth_adv, "macer": macer, "consistency": consistency,
    "smoothmix": smoothmix, "denoise": denoise, "stability": stability,
}  # fmt: skip
