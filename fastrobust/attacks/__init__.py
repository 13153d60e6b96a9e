"""Attacks: a file each, on the ops of `fastrobust.ops`."""

from fastrobust.attacks._points import AttackResult
from fastrobust.attacks.apgd import APGD, APGDT
from fastrobust.attacks.autoattack import AutoAttack, Evaluation
from fastrobust.attacks.doors import benchmark, foolbox_call
from fastrobust.attacks.pgd import FGSM, PGD, PGDL2

__all__ = ["APGD", "APGDT", "FGSM", "PGD", "PGDL2", "AttackResult", "AutoAttack", "Evaluation", "benchmark", "foolbox_call"]
