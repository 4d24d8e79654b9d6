"""How far a score hangs on the weights, which are our judgement and not the law's.

Three looks: one severity's weight changed at a time; all weights equal; and many random sets of weights, drawn by a
seed so that anybody can repeat them. If the tier stays the same throughout, the weights do not decide it.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from fedvox_compliance.assessment import Assessment
from fedvox_compliance.catalogue import Catalogue
from fedvox_compliance.score_report import ScoreReport
from fedvox_compliance.scoring import score, tier_of


@dataclass(frozen=True, slots=True)
class Variant:
    """One other set of weights, named, and the score it gives."""

    name: str
    overall: float
    tier: int


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How the score moves with the weights.

    Attributes:
        overall, tier: with the catalogue's weights.
        variants: each severity halved, doubled and dropped; all weights equal.
        spread: each weight multiplied by up to this, or divided by it, at random.
        low, high: between them lie 90 % of the random draws.
        least, most: the extremes of all draws and variants.
        tier_kept: the share of random draws that give the same tier.
    """

    overall: float
    tier: int
    variants: tuple[Variant, ...]
    draws: int
    seed: int
    spread: float
    low: float
    high: float
    least: float
    most: float
    tier_kept: float


def sensitivity(
    assessment: Assessment,
    catalogue: Catalogue,
    *,
    on: dt.date,
    draws: int = 400,
    spread: float = 2.0,
    seed: int = 0,
    trusted_assessors: AbstractSet[str] = frozenset(),
) -> Sensitivity:
    """Score an assessment under other weights.

    Args:
        assessment: the answers.
        catalogue: the questions they answer.
        on: the day of the score.
        draws: how many random sets of weights, at least 20.
        spread: the largest factor by which a single weight changes, above 1.
        seed: names the draws.
        trusted_assessors: as for `score`.

    Raises:
        ValueError: too few draws, or a spread not above 1.
    """
    if draws < 20 or not 1 < spread < float("inf"):
        raise ValueError(f"draws must be 20 or more and spread above 1, not {draws} and {spread}")

    def overall(weights: Mapping[str, float] | None) -> ScoreReport:
        return score(assessment, catalogue, on=on, weights=weights, trusted_assessors=trusted_assessors)

    base = overall(None)
    variants = tuple(
        Variant(name, r.overall, r.tier) for name, w in _variants(catalogue).items() for r in [overall(w)]
    )
    generator = random.Random(seed)
    drawn = sorted(overall(_drawn(catalogue, spread, generator)).overall for _ in range(draws))
    every = [*drawn, *(v.overall for v in variants)]
    return Sensitivity(
        overall=base.overall,
        tier=base.tier,
        variants=variants,
        draws=draws,
        seed=seed,
        spread=spread,
        low=drawn[round(0.05 * (draws - 1))],
        high=drawn[round(0.95 * (draws - 1))],
        least=min(every),
        most=max(every),
        tier_kept=sum(tier_of(s) == base.tier for s in drawn) / draws,
    )


def _variants(catalogue: Catalogue) -> dict[str, dict[str, float]]:
    scored = catalogue.scored
    found = {"equal": {c.id: 1.0 for c in scored}}
    for severity in dict.fromkeys(c.severity for c in scored):
        for name, factor in (("halved", 0.5), ("doubled", 2.0), ("dropped", 0.0)):
            found[f"{severity}_{name}"] = {c.id: c.weight * factor for c in scored if c.severity == severity}
    return found


def _drawn(catalogue: Catalogue, spread: float, generator: random.Random) -> dict[str, float]:
    return {c.id: c.weight * spread ** generator.uniform(-1, 1) for c in catalogue.scored}
