"""Attacks: a file each, on the ops of `fastrobust.ops`."""

from fastrobust.attacks._minimum import MinimumNorm
from fastrobust.attacks._points import AttackResult
from fastrobust.attacks.apgd import APGD, APGDT
from fastrobust.attacks.autoattack import AutoAttack, Evaluation
from fastrobust.attacks.bpda import BPDA
from fastrobust.attacks.cw import CW
from fastrobust.attacks.ddn import DDN
from fastrobust.attacks.deepfool import DeepFool
from fastrobust.attacks.doors import benchmark, foolbox_call
from fastrobust.attacks.eot import EOT
from fastrobust.attacks.fab import FAB, FABT
from fastrobust.attacks.fmn import FMN
from fastrobust.attacks.hopskipjump import HopSkipJump
from fastrobust.attacks.mifgsm import MIFGSM
from fastrobust.attacks.patch import AdversarialPatch
from fastrobust.attacks.pgd import FGSM, PGD, PGDL2
from fastrobust.attacks.sparse import SigmaZero
from fastrobust.attacks.square import Square
from fastrobust.attacks.transfer import Transfer

__all__ = [
    "APGD",
    "APGDT",
    "BPDA",
    "CW",
    "DDN",
    "EOT",
    "FAB",
    "FABT",
    "FGSM",
    "FMN",
    "MIFGSM",
    "PGD",
    "PGDL2",
    "AdversarialPatch",
    "AttackResult",
    "AutoAttack",
    "DeepFool",
    "Evaluation",
    "HopSkipJump",
    "MinimumNorm",
    "SigmaZero",
    "Square",
    "Transfer",
    "benchmark",
    "foolbox_call",
]
