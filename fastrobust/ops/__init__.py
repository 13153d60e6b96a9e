"""Ops: each with a readable reference, native kernels, and one registry entry that ties them together."""

from fastrobust.ops.logit_loss import LogitLoss, logit_loss
from fastrobust.ops.perturb import pgd_step, pgd_step_, project, project_
from fastrobust.ops.start import random_start

__all__ = ["LogitLoss", "logit_loss", "pgd_step", "pgd_step_", "project", "project_", "random_start"]
