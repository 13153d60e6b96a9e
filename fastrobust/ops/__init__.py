"""Ops: each with a readable reference, native kernels, and one registry entry that ties them together."""

from fastrobust.ops.activation import ACTIVATIONS
from fastrobust.ops.crown import CROWN_TERMS, crown_lines
from fastrobust.ops.interval import IntervalNorm, interval_act, interval_norm
from fastrobust.ops.interval_linear import interval_linear
from fastrobust.ops.logit_loss import LogitLoss, logit_loss
from fastrobust.ops.margins import interval_margins, robust_cross_entropy
from fastrobust.ops.noise import noisy_copies
from fastrobust.ops.perturb import pgd_step, pgd_step_, project, project_
from fastrobust.ops.start import random_start
from fastrobust.ops.transpose import convolution_transposed
from fastrobust.ops.votes import add_votes

__all__ = [
    "ACTIVATIONS", "CROWN_TERMS", "IntervalNorm", "LogitLoss", "add_votes", "convolution_transposed", "crown_lines",
    "interval_act", "interval_linear", "interval_margins", "interval_norm", "logit_loss", "noisy_copies", "pgd_step",
    "pgd_step_", "project", "project_", "random_start", "robust_cross_entropy",
]  # fmt: skip
