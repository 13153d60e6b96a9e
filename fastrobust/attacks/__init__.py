"""Attacks: a file each, on the ops of `fastrobust.ops`."""

from fastrobust.attacks._points import AttackResult
from fastrobust.attacks.apgd import APGD, APGDT
from fastrobust.attacks.pgd import FGSM, PGD, PGDL2
from fastrobust.attacks.square import Square

__all__ = ["APGD", "APGDT", "FGSM", "PGD", "PGDL2", "AttackResult", "Square"]
