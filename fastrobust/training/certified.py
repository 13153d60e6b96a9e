"""Certified training: losses that bound the worst logits of a box, and what makes them trainable."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrobust.bounds import Propagated, propagation_for
from fastrobust.bounds.nonlinear import Relu

from .adversary import Adversary

__all__ = ["balance", "crown_ibp", "ibp", "ibp_init", "mtl_ibp", "sabr"]

TOLERANCE = 0.5  # of the regularisers


def ibp(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """IBP (Gowal et al., ICCV 2019): k CE(f(x)) + (1 - k) CE of the box's worst logits.

    k falls from 1 to `kappa` as eps grows. With `regularizer` the terms of Shi et al., see `balance`.
    """
    found = _boxes(model, x, x, adversary.eps, adversary)
    return _mixed(found, found.cross_entropy(y), y, adversary), found.logits


def crown_ibp(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """CROWN-IBP (Zhang et al., ICLR 2020): as `ibp` with b CROWN-IBP + (1 - b) IBP margins, b falling from 1 to 0.

    With `loss_fusion` the loss is bounded as a whole (`Propagated.fused_cross_entropy`); b mixes sums of exponentials.
    """
    found = _boxes(model, x, x, adversary.eps, adversary, keep=adversary.share < 1)
    share = adversary.share
    if share == 1:
        worst = found.cross_entropy(y)
    elif adversary.config.loss_fusion:
        worst = found.fused_cross_entropy(y, share)
    else:
        margins = found.margins(y)
        margins = (1 - share) * found.crown_margins(y).to(margins.dtype) + share * margins
        worst = F.cross_entropy(-margins, y, reduction="none")
    return _mixed(found, worst, y, adversary), found.logits


def sabr(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """SABR (Mueller et al., ICLR 2023): CE of the worst logits of a box of radius `subset` eps around a PGD point.

    The PGD point is drawn in until the box lies within the whole one. Batch norm takes the statistics of such points.
    """
    small = adversary.config.subset * adversary.eps
    points = adversary.attack(model, x, y)
    rest = adversary.eps - small
    centre = torch.minimum(torch.maximum(points, x - rest), x + rest)
    found = _boxes(model, centre, centre, small, adversary)
    return found.cross_entropy(y).mean() + _regularizer(found, adversary), found.logits


def mtl_ibp(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> tuple[Tensor, Tensor]:
    """MTL-IBP (De Palma et al., ICLR 2024): (1 - a) CE at PGD points + a CE of the box's worst logits, a = `mixture`.

    Batch norm takes the statistics of the PGD points.
    """
    mixture = adversary.config.mixture
    found = _boxes(model, adversary.attack(model, x, y), x, adversary.eps, adversary)
    loss = (1 - mixture) * F.cross_entropy(found.logits, y) + mixture * found.cross_entropy(y).mean()
    return loss + _regularizer(found, adversary), found.logits


def balance(found: Propagated) -> Tensor:
    """The regularisers of Shi et al. (NeurIPS 2021), tightness and ReLU balance, averaged over the ReLUs.

    With t the mean radius before a ReLU, t0 that of the input, tau = 0.5: max(0, tau - t0 / t) / tau keeps boxes from
    growing; (max(0, tau - m) + max(0, tau - v)) / tau keeps active and inactive ReLUs in balance, m and v being the
    smaller over the larger of their means, and of their variances. `found` must have kept its values.
    """
    total, count = found.logits.new_zeros(()), 0
    first = found.values[0].radius.mean()
    for step in found.program.steps:
        if not isinstance(step.layer, Relu):
            continue
        value = found.values[step.inputs[0]].settled()
        centre, radius = value.points[value.rows :], value.radius
        total = total + F.relu(TOLERANCE - first / radius.mean().clamp(min=1e-12)) / TOLERANCE
        active, inactive = centre > radius, centre < -radius
        spread = (centre - centre.mean()) ** 2
        for on, off in ((centre * active, -centre * inactive), (spread * active, spread * inactive)):
            one, other = on.sum(), off.sum()
            both = (one > 0) & (other > 0)  # without neurons of both kinds there is nothing to balance
            ratio = torch.where(both, one, 1) / torch.where(both, other, 1)
            total = total + torch.where(both, F.relu(TOLERANCE - torch.minimum(ratio, 1 / ratio)) / TOLERANCE, 0)
        count += 1
    return total / max(1, count)


def ibp_init(model: nn.Module, seed: int = 0) -> None:
    """The initial weights of Shi et al. (NeurIPS 2021): N(0, 2 pi / fan_in^2), but for the last layer.

    With it boxes neither grow nor shrink from layer to layer.
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    generator = torch.Generator().manual_seed(seed)
    for layer in layers[:-1]:
        fan_in = layer.weight[0].numel()
        drawn = torch.randn(layer.weight.shape, generator=generator) * (math.sqrt(2 * math.pi) / fan_in)
        with torch.no_grad():
            layer.weight.copy_(drawn)


def _boxes(
    model: nn.Module, points: Tensor, centre: Tensor, eps: float, adversary: Adversary, keep: bool = False
) -> Propagated:
    keep = keep or _regularized(adversary)
    low, high = adversary.box
    lower, upper = (centre - eps).clamp(low, high), (centre + eps).clamp(low, high)
    return propagation_for(model, points)(points, lower, upper, keep)


def _mixed(found: Propagated, worst: Tensor, y: Tensor, adversary: Adversary) -> Tensor:
    """Clean loss, the losses of the boxes, and the regularisers."""
    share = 1 - adversary.share * (1 - adversary.config.kappa)
    mixed = share * F.cross_entropy(found.logits, y) + (1 - share) * worst.mean()
    return mixed + _regularizer(found, adversary)


def _regularized(adversary: Adversary) -> bool:
    return adversary.config.regularizer > 0 and adversary.share < 1


def _regularizer(found: Propagated, adversary: Adversary) -> Tensor | float:
    """Its weight falls to 0 as eps grows."""
    if not _regularized(adversary):
        return 0.0
    return adversary.config.regularizer * (1 - adversary.share) * balance(found)
