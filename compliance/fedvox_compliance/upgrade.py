"""Carrying an assessment over to other questions: a new version of the catalogue, or another profile.

Answers follow their control's id. Second persons' and assessors' confirmations do not: they were given to the former
wording. Answers to controls that no longer exist leave the state; the history keeps them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvox_compliance.assessment import Assessment, CatalogueRef, Entry
from fedvox_compliance.catalogue import Catalogue, load_catalogue
from fedvox_compliance.history import Change, entry_change, header_change, read_state, scope_change
from fedvox_compliance.workspace import Clock, Workspace, system_clock


@dataclass(frozen=True)
class Upgraded:
    """What carrying over came to.

    Attributes:
        changed: False when the assessment answered these questions already.
        kept: how many answers were carried over.
        dropped: controls and scope questions that are no longer asked.
        confirmations_ended: how many confirmations did not follow.
    """

    changed: bool
    kept: int = 0
    dropped: tuple[str, ...] = ()
    confirmations_ended: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self) | {"dropped": list(self.dropped)}


def upgrade_folder(
    folder: Path,
    *,
    author: str,
    profile: str | None = None,
    overlays: tuple[str, ...] | None = None,
    clock: Clock = system_clock,
) -> Upgraded:
    """Carry a folder's assessment over to the present catalogue, in one transaction.

    Raises:
        AssessmentError: no assessment there.
        CatalogueError: unknown profile or overlay.
        IntegrityError: state and history contradict each other.
    """
    before = read_state(folder)
    catalogue = load_catalogue(
        profile or before.profile, before.overlays if overlays is None else tuple(overlays)
    )
    if catalogue.sha256 == before.catalogue.sha256:
        return Upgraded(changed=False)
    dropped = [i for i in before.scope if i not in catalogue.scope_questions]
    dropped += [i for i in before.entries if i not in catalogue.controls]
    confirmed = {i: e for i, e in before.entries.items() if e.second_person or e.verification}
    changes = _changes(before, catalogue, dropped, confirmed)
    Workspace(folder, before, catalogue, clock).record(changes, action="upgrade", author=author)
    kept = sum(e.answer is not None for i, e in before.entries.items() if i in catalogue.controls)
    return Upgraded(True, kept, tuple(dropped), len(confirmed))


def _changes(
    before: Assessment, catalogue: Catalogue, dropped: list[str], confirmed: dict[str, Entry]
) -> tuple[Change, ...]:
    header = before.model_copy(
        update={
            "profile": catalogue.profile,
            "overlays": catalogue.overlays,
            "catalogue": CatalogueRef(version=catalogue.version, sha256=catalogue.sha256),
        }
    )
    changes = [header_change(header)]
    changes += [scope_change(i, None) for i in dropped if i in before.scope]
    changes += [entry_change(i, None) for i in dropped if i in before.entries]
    for control_id, entry in confirmed.items():
        if control_id in catalogue.controls:
            bare = entry.model_copy(update={"second_person": None, "verification": None})
            changes.append(entry_change(control_id, bare))
    return tuple(changes)
