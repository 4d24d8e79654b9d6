"""What an entry may say: the rules that hold for one control on its own, whoever writes the entry.

The terminal, the web form, the spreadsheet import and the check command all ask here, so they cannot
disagree.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fedvox_compliance.assessment import Answer, Entry, claim_sha256, same_person
from fedvox_compliance.catalogue import Catalogue, Control
from fedvox_compliance.errors import AssessmentError


class Rule(StrEnum):
    """The rules, by a stable name; the wording is in the message catalogues under `rule.<name>`."""

    UNKNOWN_CONTROL = "unknown_control"
    NA_REFUSED = "na_refused"
    NA_NEEDS_REASON = "na_needs_reason"
    ALTERNATIVE_REFUSED = "alternative_refused"
    ALTERNATIVE_NEEDS_REASON = "alternative_needs_reason"
    PLAN_NEEDS_DATE = "plan_needs_date"
    MATURITY_CONTRADICTS = "maturity_contradicts"
    SECOND_PERSON_IS_AUTHOR = "second_person_is_author"
    SECOND_PERSON_STALE = "second_person_stale"
    VERIFICATION_STALE = "verification_stale"
    ANSWER_IN_FUTURE = "answer_in_future"
    REVIEW_BEFORE_ANSWER = "review_before_answer"


REFUSED_ON_WRITING = frozenset(
    {
        Rule.UNKNOWN_CONTROL,
        Rule.NA_REFUSED,
        Rule.NA_NEEDS_REASON,
        Rule.ALTERNATIVE_REFUSED,
        Rule.ALTERNATIVE_NEEDS_REASON,
        Rule.PLAN_NEEDS_DATE,
        Rule.ANSWER_IN_FUTURE,
        Rule.REVIEW_BEFORE_ANSWER,
        Rule.SECOND_PERSON_IS_AUTHOR,
    }
)
"""What is refused when an answer is given. The others are contradictions that a check points out."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that an entry breaks, with what the message needs."""

    rule: Rule
    control: str
    details: dict[str, str] = field(default_factory=dict)


def allowed_answers(control: Control) -> tuple[Answer, ...]:
    """What may be answered, in the order in which it is offered."""
    offered = [Answer.YES, Answer.PARTLY, Answer.NO, Answer.PLANNED]
    if control.alternative_allowed:
        offered.insert(1, Answer.ALTERNATIVE)
    if control.na_allowed:
        offered.append(Answer.NOT_APPLICABLE)
    return tuple(offered)


def broken_rules(control_id: str, entry: Entry, catalogue: Catalogue, on: dt.date) -> tuple[Broken, ...]:
    """All rules that an entry breaks on a day, in a fixed order."""
    control = catalogue.controls.get(control_id)
    if control is None:
        return (Broken(Rule.UNKNOWN_CONTROL, control_id),)
    if entry.answer is None:
        return ()
    found = [*_about_answer(control, entry), *_about_dates(entry, on), *_about_confirmations(control, entry)]
    return tuple(Broken(rule, control_id) for rule in found)


def require_allowed(entries: Mapping[str, Entry | None], catalogue: Catalogue, on: dt.date) -> None:
    """Refuse entries that break a rule of `REFUSED_ON_WRITING`.

    Raises:
        AssessmentError: names the controls and what is wrong with each.
    """
    broken = [b for i, e in entries.items() for b in broken_rules(i, e or Entry(), catalogue, on)]
    refused = [b for b in broken if b.rule in REFUSED_ON_WRITING]
    if refused:
        from fedvox_compliance.messages import describe_broken

        def told(language: str) -> str:
            return "; ".join(describe_broken(b, language) for b in refused[:8])

        remedy = "Nothing was changed. Correct it and try again."
        raise AssessmentError(told("en"), remedy, translate=told)


def _about_answer(control: Control, entry: Entry) -> list[Rule]:
    reasoned = bool(entry.reason.strip())
    found: list[Rule] = []
    if entry.answer is Answer.NOT_APPLICABLE and not (control.na_allowed and reasoned):
        found.append(Rule.NA_NEEDS_REASON if control.na_allowed else Rule.NA_REFUSED)
    if entry.answer is Answer.ALTERNATIVE and not (control.alternative_allowed and reasoned):
        found.append(
            Rule.ALTERNATIVE_NEEDS_REASON if control.alternative_allowed else Rule.ALTERNATIVE_REFUSED
        )
    if entry.answer is Answer.PLANNED and entry.due is None:
        found.append(Rule.PLAN_NEEDS_DATE)
    claims = entry.answer in (Answer.YES, Answer.ALTERNATIVE)
    if entry.maturity is not None and (
        (claims and entry.maturity < 2) or (entry.answer is Answer.NO and entry.maturity > 2)
    ):
        found.append(Rule.MATURITY_CONTRADICTS)
    return found


def _about_dates(entry: Entry, on: dt.date) -> list[Rule]:
    found: list[Rule] = []
    if entry.answered_on is not None and entry.answered_on > on:
        found.append(Rule.ANSWER_IN_FUTURE)
    if entry.answered_on is not None and entry.review_on is not None and entry.review_on < entry.answered_on:
        found.append(Rule.REVIEW_BEFORE_ANSWER)
    return found


def _about_confirmations(control: Control, entry: Entry) -> list[Rule]:
    found: list[Rule] = []
    if entry.second_person is None and entry.verification is None:
        return found
    claim = claim_sha256(control.id, entry)
    if entry.second_person is not None and same_person(entry.second_person.name, entry.author):
        found.append(Rule.SECOND_PERSON_IS_AUTHOR)
    if entry.second_person is not None and entry.second_person.claim != claim:
        found.append(Rule.SECOND_PERSON_STALE)
    if entry.verification is not None and entry.verification.claim != claim:
        found.append(Rule.VERIFICATION_STALE)
    return found
