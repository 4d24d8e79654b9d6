"""From single judgements to the score of a framework or theme, and from frameworks to one number.

    S = sum(weight x value) / (sum(weight in scope) - excluded + excess)

The sums run in catalogue order, so the order in which answers were given or stored cannot matter, not even in the
last bit; and every step is monotone in floating point, so no better answer can lower a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedvox_compliance.assessment import Assessment
from fedvox_compliance.judgement import Assurance, Judgement, Status
from fedvox_compliance.score_report import Interval, PartScore

NA_ALLOWANCE = 0.15
"""The share of a framework's weight that may be answered `not applicable`."""
WEAKEST_SHARE = 0.5
"""How much of the overall score is the weakest framework's."""

_SCORED, _OPEN, _OUT_OF_SCOPE = Status.SCORED, Status.OPEN, Status.OUT_OF_SCOPE

Members = Sequence[tuple[str, float]]
"""Controls with their weights, in catalogue order."""


def part_score(
    members: Members, judgements: Mapping[str, Judgement], ratings: Mapping[str, int], *, allowance: float
) -> PartScore:
    """Score some controls together.

    Args:
        members: the controls.
        judgements: by control id.
        ratings: the clinic's own maturity ratings, which are reported beside the score; see `ratings_of`.
        allowance: the share of the weight that may be answered `not applicable`; beyond it counts as missing.
    """
    low = undecided = excluded = settled = 0.0
    answered = outside = 0
    credited = [0.0] * len(Assurance)
    for control_id, of_control in members:
        judged = judgements[control_id]
        status = judged[
            0
        ]  # by index, and enum members by local name: this loop runs for every control of all
        if status is _SCORED:
            answered += 1
            settled += of_control
            value = judged[1]
            if value > 0:
                low += of_control * value
                credited[judged[4]] += of_control
        elif status is _OPEN:
            undecided += of_control
        elif status is _OUT_OF_SCOPE:
            outside += 1
        else:
            answered += 1
            excluded += of_control
    weight = settled + undecided + excluded
    excess = max(0.0, excluded - allowance * weight)
    divisor = settled + undecided + excess
    interval = None
    if divisor > 0:
        interval = Interval(min(1.0, low / divisor), min(1.0, (low + undecided) / divisor))
    return PartScore(
        interval=interval,
        weight=weight,
        excluded_weight=excluded,
        excess_weight=excess,
        credited=tuple(credited),
        maturity=_mean_maturity(members, judgements, ratings) if ratings else None,
        answered=answered,
        applicable=len(members) - outside,
    )


def blend(scores: Sequence[float]) -> float:
    """Half the weakest framework, half the mean of all; 0 where no framework applies."""
    if not scores:
        return 0.0
    mean = sum(scores) / len(scores)
    return min(1.0, WEAKEST_SHARE * min(scores) + (1 - WEAKEST_SHARE) * mean)


def ratings_of(assessment: Assessment) -> dict[str, int]:
    """The clinic's own maturity ratings by control."""
    return {i: rated for i, e in assessment.entries.items() if (rated := e.maturity) is not None}


def _mean_maturity(
    members: Members, judgements: Mapping[str, Judgement], ratings: Mapping[str, int]
) -> float | None:
    rated = [
        ratings[i] for i, _ in members if i in ratings and judgements[i].status is not Status.OUT_OF_SCOPE
    ]
    return sum(rated) / len(rated) if rated else None
