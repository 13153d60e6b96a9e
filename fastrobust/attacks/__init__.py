"""Attacks: a file each, on the ops of `fastrobust.ops`."""

from fastrobust.attacks._points import AttackResult
from fastrobust.attacks.apgd import APGD, APGDT
from fastrobust.attacks.bpda import BPDA
from fastrobust.attacks.eot import EOT
from fastrobust.attacks.mifgsm import MIFGSM
from fastrobust.attacks.patch import AdversarialPatch
from fastrobust.attacks.pgd import FGSM, PGD, PGDL2

__all__ = ["APGD", "APGDT", "BPDA", "EOT", "FGSM", "MIFGSM", "PGD", "PGDL2", "AdversarialPatch", "AttackResult"]
