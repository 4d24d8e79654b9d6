"""What the label store hands out: plain frozen records, free of SQL and of numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SourceKind = Literal["import", "model", "consensus", "person"]
Decision = Literal["accept", "edit", "reject"]
Purpose = Literal["queue", "audit", "double", "blind"]
PURPOSES_ALONE: tuple[Purpose, ...] = ("double", "blind")
"""Second opinions: for somebody who must not know the first, and without effect on the label."""
ItemState = Literal["open", "leased", "done", "dropped"]
Role = Literal["reader", "reviewer", "lead"]
Triple = tuple[int, int, int]
Affine = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Source:
    """Who or what made a mask.

    Args:
        kind: `import` (came with the data), `model`, `consensus` (of several), `person`.
        name: of the model's release, of the tool, or of the person.
        weights_sha256: of the model's weights; empty for others.
    """

    kind: SourceKind
    name: str
    weights_sha256: str = ""


@dataclass(frozen=True)
class NewCase:
    """A case to register.

    Args:
        case_id: as the brick store of the images has it.
        shape: voxels, (D, H, W).
        spacing_mm: voxel size, (D, H, W).
        affine: voxel (D, H, W, 1) -> RAS+ mm, row by row; empty where unknown.
        site: where it comes from.
        gold: belongs to the frozen set that judges every round; its label is never decided again.
    """

    case_id: str
    shape: Triple
    spacing_mm: tuple[float, float, float]
    affine: Affine = ()
    site: str = ""
    gold: bool = False


@dataclass(frozen=True)
class Case(NewCase):
    """A registered case.

    Args:
        case_id: see `NewCase`.
        shape: see `NewCase`.
        spacing_mm: see `NewCase`.
        affine: see `NewCase`.
        site: see `NewCase`.
        gold: see `NewCase`.
        head: number of the version that is its label now; None where it has none.
        revision: counts the moves of the head; a decision names the one that it was made on.
        deleted: taken out of the collection; its versions stay.
    """

    head: int | None = None
    revision: int = 0
    deleted: bool = False


@dataclass(frozen=True)
class NewVersion:
    """A version whose mask is in the store of masks already (see `LabelStore.write_mask`).

    Args:
        case_id: of which case.
        mask_sha256: of the mask's content.
        source: who made it.
        round: in which round.
        parent: number of the version that it was made from; None for one made from nothing.
        reviewer: the person who decided, where one did.
        seconds: that the person spent.
        reason: why, in the person's words, or what the machine did.
    """

    case_id: str
    mask_sha256: str
    source: Source
    round: int = 0
    parent: int | None = None
    reviewer: str = ""
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Version(NewVersion):
    """A version of a case's label map; never changed and never deleted.

    Args:
        case_id: see `NewVersion`.
        mask_sha256: see `NewVersion`.
        source: see `NewVersion`.
        round: see `NewVersion`.
        parent: see `NewVersion`.
        reviewer: see `NewVersion`.
        seconds: see `NewVersion`.
        reason: see `NewVersion`.
        number: 1, 2, … within its case.
        created: ISO 8601, UTC.
    """

    number: int = 0
    created: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a person decides on a case.

    Args:
        case_id: on which.
        expected_revision: `Case.revision` as the person saw it.
        reviewer: who.
        seconds: spent.
        reason: why.
        item: id of the queue's item that is answered; None for a decision outside of the queue.
        request_id: chosen by the caller; the same decision sent twice is written once.
    """

    case_id: str
    expected_revision: int
    reviewer: str
    seconds: float = 0.0
    reason: str = ""
    item: int | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Review:
    """A decision that was taken.

    Args:
        id: of the review.
        case_id: on which case.
        seen: number of the version that the person looked at; None where the case had none.
        result: number of the version that is the label since; for a rejection, `seen`.
        decision: accept, edit or reject.
        round: in which.
        reviewer: who.
        seconds: spent.
        reason: why.
        purpose: why the case was in front of a person.
        created: ISO 8601, UTC.
    """

    id: int
    case_id: str
    seen: int | None
    result: int | None
    decision: Decision
    round: int
    reviewer: str
    seconds: float
    reason: str
    purpose: Purpose
    created: str


@dataclass(frozen=True)
class Finding:
    """Something that a check found in a version.

    Args:
        case_id: of which case.
        version: number of the version that was checked.
        round: in which.
        structure: name of the structure.
        rule: kind of the rule, as the rule file has it.
        severity: 0 (a remark) to 1 (certainly wrong).
        evidence: the numbers that were found and expected.
        picture: path of a PNG relative to the store's folder; empty where there is none.
    """

    case_id: str
    version: int
    round: int
    structure: str
    rule: str
    severity: float
    evidence: Mapping[str, Any] = field(default_factory=dict)
    picture: str = ""


@dataclass(frozen=True)
class NewItem:
    """A case to be looked at by one person.

    Args:
        case_id: which.
        purpose: `queue` (by priority), `audit` (by chance), `double` (a second reader), `blind` (read before).
        priority: expected gain per minute; higher comes first.
        gain_mm3: volume of wrong voxels that a look is expected to repair.
        minutes: that a look is expected to take.
        not_for: a reviewer who must not get it (the first reader).
    """

    case_id: str
    purpose: Purpose
    priority: float
    gain_mm3: float
    minutes: float
    not_for: str = ""


@dataclass(frozen=True)
class QueueItem(NewItem):
    """An item of a round's queue.

    Args:
        case_id: see `NewItem`.
        purpose: see `NewItem`.
        priority: see `NewItem`.
        gain_mm3: see `NewItem`.
        minutes: see `NewItem`.
        not_for: see `NewItem`.
        id: of the item.
        round: of the item.
        state: `open`, `leased` (somebody looks at it), `done`, `dropped`.
        reviewer: who leased or answered it.
        lease_until: Unix time at which a lease ends.
    """

    id: int = 0
    round: int = 0
    state: ItemState = "open"
    reviewer: str = ""
    lease_until: float = 0.0


@dataclass(frozen=True)
class AuditEntry:
    """A line of the audit log.

    Args:
        sequence: 1, 2, … without gaps.
        created: ISO 8601, UTC.
        actor: person or job.
        action: what was done.
        case_id: on which case; empty for none.
        details: of the action.
        sha256: over this line and the hash of the one before.
    """

    sequence: int
    created: str
    actor: str
    action: str
    case_id: str
    details: Mapping[str, Any]
    sha256: str


@dataclass(frozen=True)
class Person:
    """Somebody who may look or decide.

    Args:
        name: of the person.
        role: `reader` looks, `reviewer` decides, `lead` also rolls back, deletes and admits people.
    """

    name: str
    role: Role
