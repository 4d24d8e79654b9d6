"""Privacy mathematics, noise policies and the ledger: no torch here, and Opacus only inside the accountant."""

from fedvox_federation.privacy.accountant import Accountant, Phase, compose, epsilon, noise_multiplier
from fedvox_federation.privacy.units import check_delta, recommended_delta, sample_rate

__all__ = [
    "Accountant",
    "Phase",
    "check_delta",
    "compose",
    "epsilon",
    "noise_multiplier",
    "recommended_delta",
    "sample_rate",
]
