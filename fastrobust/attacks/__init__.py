"""Attacks: a file each, on the ops of `fastrobust.ops`."""

from fastrobust.attacks._points import AttackResult
from fastrobust.attacks.apgd import APGD, APGDT
from fastrobust.attacks.ddn import DDN
from fastrobust.attacks.deepfool import DeepFool
from fastrobust.attacks.fab import FAB, FABT
from fastrobust.attacks.pgd import FGSM, PGD, PGDL2

__all__ = ["APGD", "APGDT", "DDN", "FAB", "FABT", "FGSM", "PGD", "PGDL2", "AttackResult", "DeepFool"]
