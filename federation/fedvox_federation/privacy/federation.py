"""What the clinics' accounts mean together, and how their updates are weighted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedvox_federation.errors import PrivacyError

Weighting = Literal["equal", "size", "score", "inverse-noise"]


def federation_epsilon(spent: Mapping[str, float], *, patients_overlap: bool = False) -> float:
    """ε of the whole federation for any one patient.

    Each clinic's account holds against everybody outside it. A patient of one clinic alone is protected by
    that clinic's ε, so the federation's is the largest of them. A mean would hide the clinic that is worst
    off; a sum is only right for a patient who may be in several clinics.

    Args:
        spent: clinic -> ε, all at the same δ.
        patients_overlap: one patient's images may be in several clinics (then the δ add up as well).
    """
    if not spent:
        return 0.0
    return math.fsum(spent.values()) if patients_overlap else max(spent.values())


@dataclass(frozen=True)
class Contribution:
    """What is known of an update, none of it from patient data beyond the clinic's size.

    Attributes:
        patients: how many the clinic trains on.
        expected_batch_size: sample rate × patients.
        noise_multiplier: in units of the clipping norm.
        score: of the clinic's attestation.
    """

    patients: int
    expected_batch_size: float
    noise_multiplier: float
    score: float


def aggregation_weights(by: Weighting, contributions: Mapping[str, Contribution]) -> dict[str, float]:
    """The clinics' weights, which sum to 1.

    `inverse-noise` weights by (expected batch / noise)²: the inverse variance of the noise in the clinic's
    mean gradient, for equal clipping norms and learning rates. `size` ignores the noise, `score` ignores the size.

    Raises:
        PrivacyError: no clinic, no such weighting, or all weights are 0 or one is infinite.
    """
    raw = {name: _weight(by, one) for name, one in contributions.items()}
    total = math.fsum(raw.values())
    if not 0 < total < math.inf:
        raise PrivacyError(
            f"weighting by {by} gives no weights: {raw}",
            "Weight by size, or leave clinics without noise out of inverse-noise weighting.",
        )
    return {name: weight / total for name, weight in raw.items()}


def _weight(by: Weighting, one: Contribution) -> float:
    if by == "inverse-noise":
        return (
            math.inf if one.noise_multiplier == 0 else (one.expected_batch_size / one.noise_multiplier) ** 2
        )
    known: dict[str, float] = {"equal": 1.0, "size": float(one.patients), "score": one.score}
    if by not in known:
        raise PrivacyError(f"there is no weighting {by!r}", "Use equal, size, score or inverse-noise.")
    return known[by]
