"""Attacks: a file each, on the ops of `fastrobust.ops`."""

from fastrobust.attacks._points import AttackResult
from fastrobust.attacks.apgd import APGD, APGDT
from fastrobust.attacks.cw import CW
from fastrobust.attacks.ddn import DDN
from fastrobust.attacks.fmn import FMN
from fastrobust.attacks.pgd import FGSM, PGD, PGDL2
from fastrobust.attacks.sparse import SigmaZero

__all__ = [
    "APGD", "APGDT", "CW", "DDN", "FGSM", "FMN", "PGD", "PGDL2", "AttackResult", "SigmaZero",
]  # fmt: skip
