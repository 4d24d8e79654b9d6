"""Who takes part and with how much noise: the arms that are compared.

    compliant-only    clinics from tier 3; noise by tier
    uniform           all clinics; every clinic at its floor, the least noise that keeps the promise
    matched           all clinics; one factor for all, with the same noise in the average as `tiers`
    tiers             all clinics; noise by tier, never below the floor
    tiers-weighted    the same; updates weighted by inverse noise variance
    published-2025    all clinics; σ = 1 - score + 1e-10, the first published mapping
    linear-2026       all clinics; σ from 0.4 at full score to 1.0 at none, the authors' later mapping
    no-dp             all clinics; no noise and no clipping
    central           all patients in one place; no noise and no clipping: the upper bound

`uniform` spends the whole promise everywhere, and so has less noise than `tiers` by construction. Whether it matters
*who* has the noise is the question of `matched` against `tiers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedvox_federation.experiment.clinics import AttestedClinic
from fedvox_federation.privacy.federation import Weighting
from fedvox_federation.privacy.noise_policy import (
    NO_PRIVACY,
    Excluded,
    NoisePolicy,
    Promise,
    SiteNoise,
    TierPolicy,
    UniformPolicy,
    Workload,
    build_policy,
    site_noise,
)


@dataclass(frozen=True)
class Arm:
    """One way to run the study.

    Attributes:
        name: see the module.
        policy: of the noise; `matched` is `uniform` with a factor.
        who: takes part; `pooled` patients are in one place.
        weighting: of updates.
        promises: whether its noise follows from a promised ε.
    """

    name: str
    policy: str
    who: Literal["all", "compliant", "pooled"] = "all"
    weighting: Weighting = "size"
    promises: bool = True


_ARMS = (
    Arm("compliant-only", "tiers", who="compliant"),
    Arm("uniform", "uniform"),
    Arm("matched", "matched"),
    Arm("tiers", "tiers"),
    Arm("tiers-weighted", "tiers", weighting="inverse-noise"),
    Arm("published-2025", "published-2025", promises=False),
    Arm("linear-2026", "linear-2026", promises=False),
    Arm("no-dp", "none", promises=False),
    Arm("central", "none", who="pooled", promises=False),
)
ARMS: Mapping[str, Arm] = {arm.name: arm for arm in _ARMS}
"""By name."""


def participants(arm: Arm, clinics: Mapping[str, AttestedClinic]) -> dict[str, AttestedClinic]:
    """Who takes part in an arm: eligible clinics, or the compliant ones among them."""
    return {
        name: clinic
        for name, clinic in clinics.items()
        if clinic.standing.eligible and (arm.who != "compliant" or clinic.compliant)
    }


def noise_of(
    arm: Arm, clinics: Mapping[str, AttestedClinic], promise: Promise, workload: Workload
) -> dict[str, SiteNoise]:
    """The noise of every clinic that takes part.

    Args:
        arm: of the experiment.
        clinics: all that there are.
        promise: whose δ also counts where an arm makes no promise.
        workload: of every clinic.
    """
    taking_part = participants(arm, clinics)
    policy = _policy(arm, taking_part)
    found = {
        name: site_noise(policy, clinic.standing, promise, workload, simulation=True)
        for name, clinic in taking_part.items()
    }
    return {name: noise for name, noise in found.items() if not isinstance(noise, Excluded)}


def _policy(arm: Arm, clinics: Mapping[str, AttestedClinic]) -> NoisePolicy:
    if arm.policy == "none":
        return build_policy("none", acknowledge=NO_PRIVACY)
    if arm.policy == "matched":
        return UniformPolicy(matched_factor(clinics))
    return build_policy(arm.policy)


def matched_factor(clinics: Mapping[str, AttestedClinic]) -> float:
    """The one factor that leaves as much noise in a plain mean of updates as the tiers' factors do."""
    factors = [TierPolicy().factors[clinic.standing.tier] for clinic in clinics.values()]
    return math.sqrt(sum(f**2 for f in factors) / len(factors))
