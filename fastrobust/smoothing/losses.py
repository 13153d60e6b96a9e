"""Losses of networks that are to be smoothed with Gaussian noise, as functions of their logits on noisy copies.

`logits` are (batch, draws, classes): entry [i, k] is f(x_i + noise_k). p_k is its softmax, pbar the mean of p_k over
the draws, the soft counterpart of g's vote. Each loss is (batch,), in at least float32, differentiable in every set of
logits it is given; what a training step minimises is its mean. No value and no gradient is infinite or NaN while the
logits are finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastrobust.ops.noise import check_range

__all__ = [
    "augmented_loss",
    "consistency_loss",
    "denoising_loss",
    "macer_loss",
    "mean_log_probability",
    "smooth_adv_loss",
    "smoothmix_loss",
    "stability_loss",
]

FLOOR = 1e-10  # what MACER's code adds to the probability of the label before its logarithm


def augmented_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Gaussian augmentation (Cohen et al., ICML 2019): the cross-entropy of each copy, averaged over the draws.

    Args:
        logits: (batch, draws, classes).
        y: (batch,) int64 labels.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; so do all functions here.
    """
    logits = _checked("augmented_loss", logits, y)
    return -_of(logits.log_softmax(2), y).mean(1)


def mean_log_probability(logits: Tensor) -> Tensor:
    """log pbar, (batch, classes): the logarithm of the mean over the draws of the probabilities."""
    logits = _checked("mean_log_probability", logits)
    return logits.log_softmax(2).logsumexp(1) - math.log(logits.shape[1])


def smooth_adv_loss(logits: Tensor, y: Tensor) -> Tensor:
    """-log pbar_y: what SmoothAdv's attack raises (Salman et al., NeurIPS 2019).

    Their code clamps pbar at 1e-20, where the gradient ends; this is the logarithm itself.
    """
    _checked("smooth_adv_loss", logits, y)
    return -mean_log_probability(logits).gather(1, y[:, None])[:, 0]


def macer_loss(
    logits: Tensor,
    y: Tensor,
    sigma: float,
    weight: float = 12.0,
    margin: float = 8.0,
    inverse_temperature: float = 16.0,
) -> Tensor:
    """MACER (Zhai et al., ICLR 2020): -log(pbar_y + 1e-10) + weight sigma / 2 max(0, margin - xi) where right.

    xi = PhiInv(p_1) - PhiInv(p_2) is the soft radius in units of sigma / 2: p_1 and p_2 are the two largest entries of
    the mean over the draws of softmax(inverse_temperature logits). The second term is there where p_1 is the label's.

    PhiInv(p_1) is found as -PhiInv of what the other classes have together: in float32 the published form meets
    infinity once 1 - p_1 < 6e-8, this one below 1e-38.

    Args:
        sigma: standard deviation of the noise, in the input's units.
        weight: lambda.
        margin: gamma, the xi beyond which nothing is gained.
        inverse_temperature: beta.
    """
    logits = _checked("macer_loss", logits, y)
    for name, value in (("sigma", sigma), ("margin", margin), ("inverse_temperature", inverse_temperature)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"macer_loss: {name} must be finite and > 0, got {value}")
    _check_weight("macer_loss", "weight", weight)
    label = _of(logits.softmax(2), y).mean(1)
    sharp = (inverse_temperature * logits).softmax(2).mean(1)
    others = sharp.scatter(1, y[:, None], 0)
    rest, second = others.sum(1), others.amax(1)
    with torch.no_grad():
        # A rest below the least normal number has no finite slope.
        pays = (sharp.argmax(1) == y) & (rest >= torch.finfo(rest.dtype).tiny) & (_gap(rest, second) <= margin)
    # Where nothing is gained the gap may be infinite: its place is taken before PhiInv, so that no 0 * inf comes back.
    gap = _gap(torch.where(pays, rest, 0.5), torch.where(pays, second, 0.5))
    return -(label + FLOOR).log() + weight * sigma / 2 * torch.where(pays, margin - gap, 0)


def _gap(rest: Tensor, second: Tensor) -> Tensor:
    """PhiInv(1 - rest) - PhiInv(second)."""
    gap: Tensor = -torch.special.ndtri(rest) - torch.special.ndtri(second)
    return gap


def consistency_loss(logits: Tensor, y: Tensor, weight: float = 10.0, entropy: float = 0.5) -> Tensor:
    """Consistency (Jeong and Shin, NeurIPS 2020): CE + weight mean_k KL(pbar || p_k) + entropy H(pbar).

    CE is `augmented_loss`. At least 2 draws.

    Args:
        weight: lambda.
        entropy: eta.
    """
    _checked("consistency_loss", logits, y)
    if logits.shape[1] < 2:
        raise ValueError(f"consistency_loss: logits must hold at least 2 draws, got {logits.shape[1]}")
    _check_weight("consistency_loss", "weight", weight)
    _check_weight("consistency_loss", "entropy", entropy)
    each, mean = _wide(logits).log_softmax(2), mean_log_probability(logits)
    share = mean.exp()
    divergence = (share * (mean - each.mean(1))).sum(1)
    return augmented_loss(logits, y) + weight * divergence - entropy * (share * mean).sum(1)


def smoothmix_loss(logits: Tensor, mixed: Tensor, y: Tensor, share: Tensor, weight: float = 5.0) -> Tensor:
    """SmoothMix (Jeong et al., NeurIPS 2021): CE + weight mean_k KL(target || p_k of mixed points) where right.

    Mixed points are (1 - share) x + share x_adv with the same noise; their target is (1 - share) pbar + share /
    classes, pbar being that of x, and gradients flow through it, as in the authors' code. The second term is there
    where pbar's largest entry is the label's. CE is `augmented_loss`.

    Args:
        logits: of x, (batch, draws, classes).
        mixed: of the mixed points, the same shape.
        share: (batch,), in 0 .. 1/2.
        weight: eta.
    """
    logits, mixed = _checked("smoothmix_loss", logits, y), _checked("smoothmix_loss", mixed, y)
    if mixed.shape != logits.shape:
        raise ValueError(
            f"smoothmix_loss: mixed must have the shape of logits, {tuple(logits.shape)}, got {tuple(mixed.shape)}"
        )
    if share.shape != y.shape:
        raise ValueError(f"smoothmix_loss: share must have shape {tuple(y.shape)}, got {tuple(share.shape)}")
    if share.device.type == "cpu" and not bool(((share >= 0) & (share <= 0.5)).all()):
        raise ValueError(f"smoothmix_loss: share must be in 0 .. 1/2, got {share.min():g} .. {share.max():g}")
    _check_weight("smoothmix_loss", "weight", weight)
    mean, part = mean_log_probability(logits), share.to(logits.dtype)[:, None]
    # The target by its logarithm, which is finite where the target is 0: no gradient is 0 * inf.
    target = torch.logaddexp(mean + torch.log1p(-part), (part / mean.shape[1]).log())
    divergence = (target.exp() * (target - mixed.log_softmax(2).mean(1))).sum(1)
    return augmented_loss(logits, y) + weight * divergence * (mean.argmax(1) == y)


def denoising_loss(denoised: Tensor, x: Tensor) -> Tensor:
    """The mean squared error per element of denoised points, (batch, draws, ...) against x (batch, ...).

    Denoised smoothing's MSE objective (Salman et al., NeurIPS 2020).
    """
    if denoised.dim() != x.dim() + 1 or denoised.shape[:1] + denoised.shape[2:] != x.shape:
        raise ValueError(
            f"denoising_loss: denoised must be (batch, draws, ...) for x {tuple(x.shape)}, got {tuple(denoised.shape)}"
        )
    return (_wide(denoised) - _wide(x)[:, None]).square().flatten(1).mean(1)


def stability_loss(logits: Tensor, clean: Tensor) -> Tensor:
    """Denoised smoothing's stability objective (Salman et al., NeurIPS 2020).

    The cross-entropy of the classifier's logits on denoised copies, averaged over the draws, against its own answer on
    the clean points, whose logits are `clean`, (batch, classes).
    """
    if logits.dim() != 3 or clean.shape != (logits.shape[0], logits.shape[2]):
        raise ValueError(
            f"stability_loss: clean must be (batch, classes) for logits {tuple(logits.shape)}, got {tuple(clean.shape)}"
        )
    return augmented_loss(logits, clean.argmax(1))


def _wide(values: Tensor) -> Tensor:
    """At least float32: sums of 16-bit probabilities lose what the losses are about."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _of(values: Tensor, y: Tensor) -> Tensor:
    """The label's entries, (batch, draws), of values (batch, draws, classes)."""
    return values.gather(2, y[:, None, None].expand(-1, values.shape[1], 1))[:, :, 0]


def _checked(where: str, logits: Tensor, y: Tensor | None = None) -> Tensor:
    if not logits.is_floating_point():
        raise TypeError(f"{where}: logits must be floating-point, got {logits.dtype}")
    if logits.dim() != 3 or logits.shape[1] < 1 or logits.shape[2] < 2:
        raise ValueError(f"{where}: logits must be (batch, draws >= 1, classes >= 2), got {tuple(logits.shape)}")
    if y is not None and (y.dtype != torch.int64 or y.shape != logits.shape[:1]):
        raise ValueError(
            f"{where}: y must be int64 of shape ({logits.shape[0]},), got {y.dtype} of shape {tuple(y.shape)}"
        )
    if y is not None:
        check_range(where, "y", y, logits.shape[2])
    return _wide(logits)


def _check_weight(where: str, name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where}: {name} must be finite and >= 0, got {value}")
