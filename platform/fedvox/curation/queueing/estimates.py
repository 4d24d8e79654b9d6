"""What the reviews say about the labels, the checks and the people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from fedvox.curation.queueing.priority import Pace
from fedvox.curation.store import Review

Array = np.ndarray[Any, Any]

_LEAST_TIMES = 5


@dataclass(frozen=True)
class Rate:
    """A share with its exact interval (Clopper and Pearson 1934).

    Args:
        hits: of `trials`.
        trials: looked at.
        low: of the 95 % interval.
        high: of it.
    """

    hits: int
    trials: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """`hits / trials`; NaN without trials."""
        return self.hits / self.trials if self.trials else float("nan")


def rate(hits: int, trials: int, confidence: float = 0.95) -> Rate:
    """A share with its exact interval; 0 to 1 without trials."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return Rate(hits, trials, low, high)


def found_error(review: Review) -> bool:
    """Whether a reader found the label wrong: edited it, rejected it, or took another version."""
    return review.decision != "accept" or review.result != review.seen


@dataclass(frozen=True)
class Detection:
    """How well a round's queue finds wrong labels, from its reviews and its audit.

    Args:
        queued: error rate among the queued cases.
        audited: error rate among the audited ones: what a random review finds, and what remains in the rest.
        unseen: cases that nobody looked at in this round.
        errors_per_minute: found through the queue.
        random_errors_per_minute: found through the audit, per minute.
        sensitivity: share of the wrong labels that the queue had; None where there is no estimate.
        specificity: share of the right labels that the queue left alone; None where there is no estimate.
    """

    queued: Rate
    audited: Rate
    unseen: int
    errors_per_minute: float
    random_errors_per_minute: float
    sensitivity: float | None
    specificity: float | None


def detection(reviews: Sequence[Review], cases: int) -> Detection:
    """Estimates of one round.

    Args:
        reviews: of the round; second opinions are left out.
        cases: in the collection that the round chose from.
    """
    queue = [review for review in reviews if review.purpose == "queue"]
    audit = [review for review in reviews if review.purpose == "audit"]
    queued = rate(sum(map(found_error, queue)), len(queue))
    audited = rate(sum(map(found_error, audit)), len(audit))
    rest = cases - len(queue)
    sensitivity = specificity = None
    if audit and queue:
        missed = audited.share * rest
        right = rest - missed + queued.trials - queued.hits
        sensitivity = queued.hits / (queued.hits + missed) if queued.hits + missed > 0 else None
        specificity = (rest - missed) / right if right > 0 else None
    return Detection(
        queued, audited, rest - len(audit), _per_minute(queue), _per_minute(audit), sensitivity, specificity
    )


def _per_minute(reviews: Sequence[Review]) -> float:
    minutes = sum(review.seconds for review in reviews) / 60
    return sum(map(found_error, reviews)) / minutes if minutes > 0 else float("nan")


@dataclass(frozen=True)
class Agreement:
    """Two opinions on the same label.

    Args:
        pairs: of first and second opinions.
        same_verdict: share of them that both found right, or both wrong.
        kappa: the same beyond chance (Cohen 1960); None where chance leaves nothing to say.
        dice: mean Dice between the resulting labels; None without pairs.
    """

    pairs: int
    same_verdict: float
    kappa: float | None
    dice: float | None


def agreement(
    reviews: Sequence[Review], dice: Callable[[Review, Review], float], *, purpose: str
) -> Agreement:
    """Compares second opinions with the others on the same version, whichever came first.

    Args:
        reviews: all.
        dice: between the results of two reviews.
        purpose: `double` (another reader) or `blind` (read again).
    """
    firsts = [review for review in reviews if review.purpose in ("queue", "audit")]
    pairs = []
    for second in (review for review in reviews if review.purpose == purpose):
        same = [
            f for f in firsts if f.case_id == second.case_id and f.seen == second.seen and f.id < second.id
        ]
        if same:
            pairs.append((same[-1], second))
    verdicts = np.array([[found_error(review) for review in pair] for pair in pairs], bool).reshape(-1, 2)
    same_share = float((verdicts[:, 0] == verdicts[:, 1]).mean()) if pairs else float("nan")
    return Agreement(
        len(pairs),
        same_share,
        _kappa(verdicts),
        float(np.mean([dice(*pair) for pair in pairs])) if pairs else None,
    )


def _kappa(verdicts: Array) -> float | None:
    if not len(verdicts):
        return None
    wrong = verdicts.mean(axis=0)
    by_chance = wrong[0] * wrong[1] + (1 - wrong[0]) * (1 - wrong[1])
    observed = (verdicts[:, 0] == verdicts[:, 1]).mean()
    return float((observed - by_chance) / (1 - by_chance)) if by_chance < 1 else None


@dataclass(frozen=True)
class Annotator:
    """What a reviewer's answers show.

    Args:
        name: of the person.
        reviews: answered.
        look_minutes: median of accepted cases; None where too few.
        repair_minutes: median of edited ones, beyond a look; None where too few.
        error_rate: share of the cases that the person found wrong.
        second_opinions: with others on the same label.
        agreed: of these.
    """

    name: str
    reviews: int
    look_minutes: float | None
    repair_minutes: float | None
    error_rate: Rate
    second_opinions: int
    agreed: int


def annotators(reviews: Sequence[Review]) -> list[Annotator]:
    """Every reviewer, by name."""
    by_label: dict[tuple[str, int | None], list[Review]] = {}
    for review in reviews:
        by_label.setdefault((review.case_id, review.seen), []).append(review)
    return [_annotator(name, reviews, by_label) for name in sorted({review.reviewer for review in reviews})]


def _annotator(
    name: str, reviews: Sequence[Review], by_label: Mapping[tuple[str, int | None], Sequence[Review]]
) -> Annotator:
    mine = [review for review in reviews if review.reviewer == name]
    looks = [review.seconds / 60 for review in mine if not found_error(review)]
    repairs = [review.seconds / 60 for review in mine if review.decision == "edit"]
    look = float(np.median(looks)) if len(looks) >= _LEAST_TIMES else None
    repair = max(float(np.median(repairs)) - (look or 0.0), 0.05) if len(repairs) >= _LEAST_TIMES else None
    pairs = [
        (review, other)
        for review in mine
        for other in by_label[review.case_id, review.seen]
        if other.reviewer != name
    ]
    agreed = sum(found_error(a) == found_error(b) for a, b in pairs)
    errors = rate(sum(map(found_error, mine)), len(mine))
    return Annotator(name, len(mine), look, repair, errors, len(pairs), agreed)


def calibrated_pace(reviews: Sequence[Review], settings: Pace) -> Pace:
    """How long people really take, as the medians over reviewers; the settings where that is not known yet."""
    people = annotators(reviews)
    looks = [one.look_minutes for one in people if one.look_minutes is not None]
    repairs = [one.repair_minutes for one in people if one.repair_minutes is not None]
    return Pace(
        max(float(np.median(looks)), 0.01) if looks else settings.look_minutes,
        float(np.median(repairs)) if repairs else settings.repair_minutes,
    )
