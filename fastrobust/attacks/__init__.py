"""Attacks: a file each, on the ops of `fastrobust.ops`."""

from fastrobust.attacks._points import AttackResult
from fastrobust.attacks.apgd import APGD, APGDT
from fastrobust.attacks.ddn import DDN
from fastrobust.attacks.hopskipjump import HopSkipJump
from fastrobust.attacks.pgd import FGSM, PGD, PGDL2
from fastrobust.attacks.square import Square
from fastrobust.attacks.transfer import Transfer

__all__ = ["APGD", "APGDT", "DDN", "FGSM", "PGD", "PGDL2", "AttackResult", "HopSkipJump", "Square", "Transfer"]
