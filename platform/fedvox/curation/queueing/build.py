"""A round's queue: the most promising cases within the budget, and a random share that keeps it honest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from fedvox.curation.queueing.priority import Pace, Scores
from fedvox.curation.queueing.settings import QueueSection
from fedvox.curation.store import LabelStore, NewItem, Review

Array = np.ndarray[Any, Any]


def fill_queue(
    store: LabelStore,
    round: int,
    scores: Scores,
    settings: QueueSection,
    pace: Pace,
    *,
    seed: int,
    actor: str,
) -> list[NewItem]:
    """Chooses a round's items and writes them into the store.

    Cases that a person has judged in an earlier round are not queued again unless they were rejected; they may be
    shown again as blind re-reads.

    Args:
        store: whose queue.
        round: of the items.
        scores: of all cases.
        settings: budget and shares.
        pace: expected minutes.
        seed: of all that is drawn.
        actor: person or job.
    """
    reviews = store.reviews()
    items = choose_items(scores, settings, pace, reviews, round, seed)
    store.queue.replace(round, items, actor=actor)
    return items


def choose_items(
    scores: Scores, settings: QueueSection, pace: Pace, reviews: Sequence[Review], round: int, seed: int
) -> list[NewItem]:
    """The items of a round; see `fill_queue`."""
    rng = np.random.default_rng([seed, round])
    ids = np.asarray(scores.case_ids, object)
    minutes, priority = scores.minutes(pace), scores.priority(pace)
    settled = {review.case_id for review in reviews if review.decision != "reject" and review.round < round}
    settled -= {review.case_id for review in _last_of_each(reviews) if review.decision == "reject"}
    free = np.array([case_id not in settled for case_id in scores.case_ids], bool)
    budget = min(max(1, int(settings.budget * len(ids))), int(free.sum()))
    audits = round_share(settings.audit_share, budget)
    candidates = np.flatnonzero(free)
    order = (
        rng.permutation(candidates) if settings.order == "random" else _by_priority(priority, candidates, rng)
    )
    queued, rest = order[: budget - audits], order[budget - audits :]
    audited = rng.choice(rest, min(audits, len(rest)), replace=False) if audits else rest[:0]

    def item(row: int, purpose: Any, level: float) -> NewItem:
        return NewItem(str(ids[row]), purpose, level, float(scores.gain_mm3[row]), float(minutes[row]))

    top = float(priority[queued].max()) if len(queued) else 0.0
    items = [item(row, "queue", float(priority[row])) for row in queued]
    # An audit that only comes when the queue is empty is never answered: it is spread among the others.
    items += [item(row, "audit", float(rng.uniform(0, max(top, 1e-9)))) for row in audited]
    chosen = np.concatenate([queued, audited])
    twice = rng.permutation(chosen)[: round_share(settings.double_share, len(chosen))]
    items += [item(row, "double", float(priority[row])) for row in twice]
    return items + _blind(scores, settings, minutes, reviews, round, rng)


def round_share(share: float, number: int) -> int:
    """A share of a number of cases, rounded to the nearest; at least one where the share is not 0."""
    return min(number, max(1, int(share * number + 0.5))) if share > 0 and number else 0


def _by_priority(priority: Array, candidates: Array, rng: np.random.Generator) -> Array:
    """The largest first; equals in random order, so that nothing depends on how cases are called."""
    shuffled = rng.permutation(candidates)
    ordered: Array = shuffled[np.argsort(-priority[shuffled], kind="stable")]
    return ordered


def _last_of_each(reviews: Sequence[Review]) -> Collection[Review]:
    return {review.case_id: review for review in reviews if review.purpose in ("queue", "audit")}.values()


def _blind(
    scores: Scores, settings: QueueSection, minutes: Array, reviews: Sequence[Review], round: int,
    rng: np.random.Generator,
) -> list[NewItem]:  # fmt: skip
    """Cases of earlier rounds to be read again, on the version that was seen then."""
    rows = {case_id: row for row, case_id in enumerate(scores.case_ids)}
    before = sorted({review.case_id for review in reviews if review.round < round and review.case_id in rows})
    drawn = rng.permutation(np.asarray(before, object))[: round_share(settings.blind_share, len(before))]
    return [NewItem(str(case_id), "blind", 0.0, 0.0, float(minutes[rows[case_id]])) for case_id in drawn]
