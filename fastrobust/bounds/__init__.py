"""Bounds that are proofs: what a network's outputs cannot leave while its input stays in a set."""

from fastrobust.bounds.branching import Limits
from fastrobust.bounds.interval import Bounds
from fastrobust.bounds.methods import alpha_crown, crown, crown_ibp, ibp, margins
from fastrobust.bounds.propagated import Propagated
from fastrobust.bounds.propagation import Propagation, propagation_for
from fastrobust.bounds.verdicts import CASCADE, CertifyResult, certified_radius, certify

__all__ = [
    "CASCADE", "Bounds", "CertifyResult", "Limits", "Propagated", "Propagation", "alpha_crown", "certified_radius",
    "certify", "crown", "crown_ibp", "ibp", "margins", "propagation_for",
]  # fmt: skip
