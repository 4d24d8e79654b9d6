"""Priority: what a minute of a person's time is expected to repair.

For each structure s of a case, the findings give the probability that its label is wrong, as if they were independent:
1 - 0.98 · Π(1 - severity), which takes two in a hundred to be wrong although no rule fires. The comparison with the
consensus gives what would change: W_s mm³ of M_s mm³ that are usual of the structure. Then

    gain     = Σ_s p_s · min(1, W_s / M_s)        in structures: a small organ counts as much as a large one
    gain_mm3 = Σ_s p_s · W_s                      the same in mm³, for people
    minutes  = look + repair · (P(any wrong) + ¼ · further structures expected to be wrong)
    priority = gain / minutes

`look` and `repair` are the settings' until reviewers have shown how long they take (see `calibration`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedvox.curation.check.measure import CaseFacts
from fedvox.curation.store import Finding

Array = np.ndarray[Any, Any]

FURTHER = 0.25
"""Minutes that each further structure of a case takes, as a share of the first: the case is open already."""
_WRONG_UNSEEN = 0.02  # so that cases without a finding are ordered by what the consensus would change


@dataclass(frozen=True)
class Pace:
    """How long a person takes.

    Args:
        look_minutes: to look at a case and accept it.
        repair_minutes: to repair one structure, on top; each further one takes a quarter of it.
    """

    look_minutes: float = 0.5
    repair_minutes: float = 3.0


@dataclass(frozen=True)
class Scores:
    """What a round expects of each case; all arrays are (n,), in the order of `case_ids`.

    Args:
        case_ids: of all cases that may be queued.
        gain: in structures.
        gain_mm3: in mm³.
        wrong: probability that anything is wrong.
        structures: number of structures expected to be wrong.
    """

    case_ids: tuple[str, ...]
    gain: Array
    gain_mm3: Array
    wrong: Array
    structures: Array

    def minutes(self, pace: Pace) -> Array:
        """Expected minutes of a look at each case."""
        further = np.maximum(self.structures - self.wrong, 0)
        minutes: Array = pace.look_minutes + pace.repair_minutes * (self.wrong + FURTHER * further)
        return minutes

    def priority(self, pace: Pace) -> Array:
        """Expected gain per minute of each case."""
        return self.gain / self.minutes(pace)


def score_cases(cases: Sequence[CaseFacts], findings: Sequence[Finding]) -> Scores:
    """Scores cases by their findings.

    Args:
        cases: facts of every case.
        findings: of any of them.
    """
    names = sorted({name for case in cases for name in case.structures})
    volumes = np.array([[_volume(case, name) for name in names] for case in cases]).reshape(
        len(cases), len(names)
    )
    changes = np.array([[_change(case, name) for name in names] for case in cases]).reshape(volumes.shape)
    usual = np.array([np.median(column[column > 0]) if (column > 0).any() else 1.0 for column in volumes.T])
    wrong = 1 - _product_of_trust(cases, findings, names)
    # A rule may know that a label is wrong where the consensus is not better: some gain is expected all the same.
    share = np.clip(changes / usual, 0.02, 1.0) if len(names) else changes
    return Scores(
        case_ids=tuple(case.case_id for case in cases),
        gain=(wrong * share).sum(axis=1),
        gain_mm3=(wrong * changes).sum(axis=1),
        wrong=1 - np.prod(1 - wrong, axis=1),
        structures=wrong.sum(axis=1),
    )


def _volume(case: CaseFacts, name: str) -> float:
    facts = case.structures.get(name)
    return 0.0 if facts is None else facts.volume_mm3


def _change(case: CaseFacts, name: str) -> float:
    facts = case.structures.get(name)
    return 0.0 if facts is None else facts.different_mm3


def _product_of_trust(cases: Sequence[CaseFacts], findings: Sequence[Finding], names: Sequence[str]) -> Array:
    """(n, S) probability that a structure of a case is right, by all findings on it."""
    rows: Mapping[str, int] = {case.case_id: row for row, case in enumerate(cases)}
    columns = {name: column for column, name in enumerate(names)}
    trust = np.full((len(cases), len(names)), 1 - _WRONG_UNSEEN)
    for finding in findings:
        trust[rows[finding.case_id], columns[finding.structure]] *= 1 - min(finding.severity, 0.999)
    return trust
