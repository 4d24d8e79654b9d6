"""Bringing the work of several people together, and saying where they disagree.

Three states meet: ours, theirs, and the one both started from. Who changed something alone is followed; where both
changed the same thing differently, nobody is: it is a conflict, reported with both versions, for a person to decide.

Two copies of a folder share the beginning of their history, and its last common line is where both started. A
sheet that was handed out carries, for each answer, the fingerprint of what it said at that time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from fedvox_compliance.assessment import Assessment, Entry, ScopeAnswer, to_jsonable
from fedvox_compliance.canonical import sha256_of
from fedvox_compliance.errors import AssessmentError
from fedvox_compliance.evidence import EvidenceState, copy_into_folder, state_of
from fedvox_compliance.history import read_lines, read_state, replay
from fedvox_compliance.scoring import require_same_catalogue
from fedvox_compliance.workspace import Workspace

Side = Literal["ours", "theirs"]
Item = TypeVar("Item", Entry, ScopeAnswer)
_FINGERPRINT_DIGITS = 16


@dataclass(frozen=True)
class Conflict(Generic[Item]):
    """Something that both sides changed, differently. None stands for taken back."""

    where: str
    ours: Item | None
    theirs: Item | None


@dataclass(frozen=True)
class Merged(Generic[Item]):
    """What a merge comes to.

    Attributes:
        taken: what changes here; None for taken back.
        kept: what only we changed.
        conflicts: what is left to decide. These stay as they are here.
    """

    taken: Mapping[str, Item | None] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    conflicts: tuple[Conflict[Item], ...] = ()


@dataclass(frozen=True)
class MergeReport:
    """What was merged into a folder.

    Attributes:
        entries, scope: see `Merged`.
        missing_documents: paths that the taken answers name, and that could not be found and copied.
    """

    entries: Merged[Entry]
    scope: Merged[ScopeAnswer]
    missing_documents: tuple[str, ...] = ()

    @property
    def conflicts(self) -> int:
        """How many things are left to decide."""
        return len(self.entries.conflicts) + len(self.scope.conflicts)


def fingerprint(item: Entry | ScopeAnswer | None) -> str:
    """A short name of a state; the empty string for nothing at all."""
    if item is None or item == Entry():
        return ""
    return sha256_of(to_jsonable(item))[:_FINGERPRINT_DIGITS]


def merge_items(
    ours: Mapping[str, Item],
    theirs: Mapping[str, Item | None],
    bases: Mapping[str, str],
    *,
    prefer: Side | None = None,
    decided: Mapping[str, Side] | None = None,
) -> Merged[Item]:
    """Decide for each thing that `theirs` speaks of.

    Args:
        ours: what is here.
        theirs: what they say; None where they took something back. What they do not name is not touched.
        bases: fingerprints of the common beginning; missing means that it was empty.
        prefer: whom to follow in conflicts; None leaves them open.
        decided: whom to follow in single conflicts.
    """
    taken: dict[str, Item | None] = {}
    kept: list[str] = []
    conflicts: list[Conflict[Item]] = []
    for where, their in theirs.items():
        our, base = ours.get(where), bases.get(where, "")
        mine, other = fingerprint(our), fingerprint(their)
        if mine == other:
            continue
        side = (decided or {}).get(where, prefer)
        if mine == base or (other != base and side == "theirs"):
            taken[where] = their
        elif other == base or side == "ours":
            kept.append(where)
        else:
            conflicts.append(Conflict(where, our, their))
    return Merged(taken, tuple(kept), tuple(conflicts))


def merge_folders(
    workspace: Workspace,
    other: Path,
    *,
    author: str,
    prefer: Side | None = None,
    decided: Mapping[str, Side] | None = None,
) -> MergeReport:
    """Bring what was done in a copy of this folder back into it. Conflicts are left as they are here.

    Raises:
        AssessmentError: the other folder holds another assessment, or answers another catalogue.
        IntegrityError: a history does not hold.
    """
    theirs = read_state(other)
    require_same_catalogue(theirs, workspace.catalogue)
    if theirs.id != workspace.assessment.id:
        raise AssessmentError(
            f"{other}: holds another assessment ({theirs.clinic}) and no copy of this one",
            "Merge copies of one folder; for another clinic's answers use `export` and `import`.",
        )
    base = _common_beginning(workspace.folder, other)
    ours = workspace.reload()
    entries = merge_items(
        ours.entries,
        _with_removals(theirs.entries, base.entries),
        {i: fingerprint(e) for i, e in base.entries.items()},
        prefer=prefer,
        decided=decided,
    )
    scope = merge_items(
        ours.scope,
        dict(theirs.scope),
        {i: fingerprint(s) for i, s in base.scope.items()},
        prefer=prefer,
        decided=decided,
    )
    missing = copy_documents(entries.taken, other, workspace.folder)
    said = {i: s for i, s in scope.taken.items() if s is not None}
    workspace.apply(entries.taken, scope=said, action="merge", author=author)
    return MergeReport(entries, scope, missing)


def copy_documents(entries: Mapping[str, Entry | None], source: Path, target: Path) -> tuple[str, ...]:
    """Copy the documents that some entries name from one folder to another; return the paths that failed."""
    missing: list[str] = []
    for document in {d.path: d for e in entries.values() if e for d in e.evidence}.values():
        if state_of(document, target) is EvidenceState.UNCHANGED:
            continue
        if state_of(document, source) is not EvidenceState.UNCHANGED:
            missing.append(document.path)
            continue
        path, _ = copy_into_folder(target, source / document.path, keep_name=True)
        if path != document.path:
            missing.append(document.path)
    return tuple(missing)


def _common_beginning(ours: Path, theirs: Path) -> Assessment:
    """The state at the last history line that both folders share."""
    mine, others = read_lines(ours)[0], read_lines(theirs)[0]
    shared = 0
    for a, b in zip(mine, others, strict=False):
        if a.sha256 != b.sha256:
            break
        shared += 1
    if shared == 0:
        raise AssessmentError(
            f"{theirs}: its history has no line in common with this one",
            "Only copies of one folder can be merged.",
        )
    return replay(mine[:shared])


def _with_removals(theirs: Mapping[str, Entry], base: Mapping[str, Entry]) -> dict[str, Entry | None]:
    """Their entries, with None for those of the beginning that they took back."""
    return {**{i: None for i in base if i not in theirs}, **theirs}
