"""An assessment's folder, open for work: the only place where an assessment is changed.

    with a lock  ->  read what others changed  ->  check the rules  ->  line into the history, on disk
                 ->  new state file, renamed into place

Terminal, web form and imports all go through `Workspace`, so every change is checked and recorded alike, and a crash
loses at most the change that was being made.
"""

from __future__ import annotations

import datetime as dt
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from pydantic import ValidationError

from fedvox_compliance.assessment import (
    Answer,
    Assessment,
    CatalogueRef,
    Entry,
    Evidence,
    ScopeAnswer,
    SecondPerson,
    Verdict,
    Verification,
    claim_sha256,
)
from fedvox_compliance.catalogue import Catalogue, load_catalogue
from fedvox_compliance.errors import AssessmentError, ConflictError, UsageError
from fedvox_compliance.evidence import copy_into_folder
from fedvox_compliance.files import ASSESSMENT_FILE, HISTORY_FILE, describe_problems, save_assessment
from fedvox_compliance.history import (
    Change,
    append_line,
    encode_line,
    entry_change,
    header_change,
    open_state,
    read_state,
    replay,
    scope_change,
)
from fedvox_compliance.locking import folder_lock
from fedvox_compliance.rules import require_allowed
from fedvox_compliance.scoring import require_same_catalogue

Clock = Callable[[], dt.datetime]
_T = TypeVar("_T")


def system_clock() -> dt.datetime:
    """The present moment in UTC."""
    return dt.datetime.now(dt.UTC)


class Workspace:
    """An assessment's folder. Open it with `Workspace.open` or `Workspace.create`.

    Attributes:
        folder: where it lies.
        catalogue: the questions it answers.
    """

    def __init__(self, folder: Path, assessment: Assessment, catalogue: Catalogue, clock: Clock) -> None:
        self.folder = folder
        self.catalogue = catalogue
        self._assessment = assessment
        self._clock = clock
        self._history_bytes = -1  # how much of the history file is in `_assessment`; -1: not known

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        *,
        clinic: str,
        profile: str = "combined",
        overlays: tuple[str, ...] = (),
        author: str,
        clock: Clock = system_clock,
    ) -> Workspace:
        """Start an assessment in a new or empty folder, readable by its owner only.

        Raises:
            UsageError: the folder already holds an assessment, or cannot be made.
            CatalogueError: unknown profile or overlay.
        """
        where = Path(folder)
        catalogue = load_catalogue(profile, tuple(overlays))
        now = clock()
        assessment = _validated(
            lambda: Assessment(
                id=uuid.uuid4().hex,
                clinic=clinic,
                profile=profile,
                overlays=tuple(overlays),
                catalogue=CatalogueRef(version=catalogue.version, sha256=catalogue.sha256),
                created=now.replace(microsecond=0),
            )
        )
        try:
            where.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as wrong:
            raise UsageError(f"{where}: {wrong.strerror}", "Choose another folder.") from None
        with folder_lock(where):
            if (where / ASSESSMENT_FILE).exists() or (where / HISTORY_FILE).exists():
                raise UsageError(
                    f"{where}: already holds an assessment", "Go on with it by `answer`, or choose another."
                )
            space = cls(where, assessment, catalogue, clock)
            space._history_bytes = 0
            space._record((header_change(assessment),), by=author, action="create")
        return space

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, clock: Clock = system_clock) -> Workspace:
        """Open an assessment's folder.

        Raises:
            AssessmentError: no assessment there, or it answers another version of the catalogue.
            IntegrityError: state and history contradict each other.
        """
        where = Path(folder)
        if not where.is_dir():
            raise AssessmentError(
                f"{where}: no such folder", "Start one with `fedvox-compliance new FOLDER`."
            )
        assessment = read_state(where)
        catalogue = load_catalogue(assessment.profile, assessment.overlays)
        require_same_catalogue(assessment, catalogue)
        return cls(where, assessment, catalogue, clock)

    @property
    def assessment(self) -> Assessment:
        """The state as of the last change made or seen here."""
        return self._assessment

    def today(self) -> dt.date:
        """The day on which changes are dated."""
        return self._clock().astimezone().date()

    def reload(self) -> Assessment:
        """Take in what other programs changed."""
        self._assessment, self._history_bytes = open_state(self.folder)
        return self._assessment

    def entry(self, control_id: str) -> Entry:
        """One control's entry, empty when there is none.

        Raises:
            CatalogueError: the profile has no such control.
        """
        self.catalogue.control(control_id)
        return self._assessment.entries.get(control_id, Entry())

    def state_scope(self, question_id: str, applies: bool, *, author: str, reason: str = "") -> None:
        """Record a scope statement.

        Raises:
            AssessmentError: the profile has no such scope question, or the author is no name.
        """
        said = _validated(
            lambda: ScopeAnswer(applies=applies, author=author, answered_on=self.today(), reason=reason)
        )
        self.apply({}, scope={question_id: said}, action="scope", author=author)

    def answer(
        self,
        control_id: str,
        answer: Answer,
        *,
        author: str,
        reason: str = "",
        maturity: int | None = None,
        due: dt.date | None = None,
        review_on: dt.date | None = None,
    ) -> Entry:
        """Answer a control. Documents and owner stay; confirmations of the former claim do not.

        Raises:
            AssessmentError: the control does not allow this answer, or a reason or date is missing.
        """
        return self._update(
            control_id,
            "answer",
            author,
            answer=Answer(answer),
            reason=reason,
            maturity=maturity,
            due=due,
            author=author,
            answered_on=self.today(),
            review_on=review_on,
            second_person=None,
            verification=None,
        )

    def clear(self, control_id: str, *, author: str) -> None:
        """Take an entry back altogether."""
        self.apply({control_id: None}, action="clear", author=author)

    def assign(self, control_ids: Iterable[str], owner: str | None, *, author: str) -> None:
        """Say who in the clinic is to answer some controls; None takes it back."""
        changed = {i: _changed(self.entry(i), owner=owner) for i in control_ids}
        self.apply(changed, action="assign", author=author)

    def add_evidence(
        self,
        control_id: str,
        file: str | os.PathLike[str],
        *,
        author: str,
        effective: dt.date,
        expires: dt.date | None = None,
        title: str = "",
    ) -> Evidence:
        """Copy a document into the folder, hash it, and attach it to a control.

        Raises:
            EvidenceError: the file cannot be read, or is empty.
        """
        self.catalogue.control(control_id)
        path, digest = copy_into_folder(self.folder, Path(file))
        document = _validated(
            lambda: Evidence(path=path, sha256=digest, title=title, effective=effective, expires=expires)
        )
        self.attach_evidence(control_id, document, author=author)
        return document

    def attach_evidence(self, control_id: str, document: Evidence, *, author: str) -> Entry:
        """Attach a document that lies in the folder already (shared evidence, by a person's decision)."""
        kept = tuple(e for e in self.entry(control_id).evidence if e.sha256 != document.sha256)
        return self._update(
            control_id, "evidence", author, evidence=(*kept, document), second_person=None, verification=None
        )

    def remove_evidence(self, control_id: str, sha256: str, *, author: str) -> Entry:
        """Detach a document. The file stays: other controls may name it, and the history does."""
        before = self.entry(control_id)
        kept = tuple(e for e in before.evidence if e.sha256 != sha256)
        if len(kept) == len(before.evidence):
            raise AssessmentError(f"{control_id} has no document {sha256[:12]}…", "List them with `show`.")
        return self._update(
            control_id, "evidence", author, evidence=kept, second_person=None, verification=None
        )

    def confirm(self, control_id: str, *, name: str) -> Entry:
        """A second person of the clinic confirms an answer and its documents.

        Raises:
            AssessmentError: there is nothing to confirm, or the name is the author's.
        """
        self.confirm_all((control_id,), name=name)
        return self.entry(control_id)

    def confirm_all(self, control_ids: Iterable[str], *, name: str) -> None:
        """Confirm several answers in one transaction: all of them, or none.

        Raises:
            AssessmentError: see `confirm`; every control concerned is named.
        """
        today = self.today()

        def confirmed(control_id: str) -> Entry:
            entry = self._claimed(control_id)
            claim = claim_sha256(control_id, entry)
            second = _validated(lambda: SecondPerson(name=name, date=today, claim=claim))
            return _changed(entry, second_person=second)

        self.apply({i: confirmed(i) for i in control_ids}, action="confirm", author=name)

    def verify(
        self, control_id: str, *, assessor: str, result: Verdict = Verdict.CONFIRMED, note: str = ""
    ) -> Entry:
        """An assessor records a finding on an answer and its documents.

        Raises:
            AssessmentError: there is nothing to verify.
        """
        entry = self._claimed(control_id)
        finding = _validated(
            lambda: Verification(
                assessor=assessor,
                date=self.today(),
                claim=claim_sha256(control_id, entry),
                result=Verdict(result),
                note=note,
            )
        )
        return self._update(control_id, "verify", assessor, verification=finding)

    def apply(
        self,
        entries: Mapping[str, Entry | None],
        *,
        action: str,
        author: str,
        scope: Mapping[str, ScopeAnswer] = MappingProxyType({}),
    ) -> None:
        """Set or remove many entries and scope statements in one transaction: all of them, or none.

        What is as it was leaves no line in the history.

        Raises:
            AssessmentError: an entry breaks a rule, or a scope question is unknown; all are named.
            ConflictError: another program changed one of these entries since this one read it.
        """
        require_allowed(entries, self.catalogue, self.today())
        for question_id in scope:
            self._require_scope_question(question_id)
        entries = {i: e for i, e in entries.items() if e != self._assessment.entries.get(i)}
        if entries or scope:
            seen = {i: self._assessment.entries.get(i) for i in entries}
            with self._changing():
                self._refuse_conflicts(seen)
                said = [scope_change(i, s) for i, s in scope.items()]
                self._record(
                    (*said, *(entry_change(i, e) for i, e in entries.items())), by=author, action=action
                )

    def record(self, changes: tuple[Change, ...], *, action: str, author: str) -> None:
        """Write changes that were made elsewhere (an upgrade) as one transaction, unchecked by the rules."""
        with self._changing():
            self._record(changes, by=author, action=action)

    def _require_scope_question(self, question_id: str) -> None:
        if question_id not in self.catalogue.scope_questions:
            raise AssessmentError(
                f"this profile has no scope question {question_id!r}", "List them with `frameworks --scope`."
            )

    def _refuse_conflicts(self, seen: Mapping[str, Entry | None]) -> None:
        """The new entries were made from the old ones; if those are no longer there, writing would undo somebody."""
        moved = [i for i, entry in seen.items() if self._assessment.entries.get(i) != entry]
        if moved:
            raise ConflictError(
                f"{', '.join(moved[:8])}: changed by another program in the meantime",
                "Nothing was written. Look at the present answer, then try again.",
            )

    def _claimed(self, control_id: str) -> Entry:
        entry = self.entry(control_id)
        if entry.answer is None:
            raise AssessmentError(f"{control_id} has no answer yet", "Answer it first.")
        return entry

    def _update(self, control_id: str, action: str, by: str, **fields: object) -> Entry:
        entry = _changed(self.entry(control_id), **fields)
        self.apply({control_id: entry}, action=action, author=by)
        return entry

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock and start from what is on disk."""
        with folder_lock(self.folder):
            path = self.folder / HISTORY_FILE
            if not path.exists() or path.stat().st_size != self._history_bytes:
                self.reload()
            yield

    def _record(self, changes: tuple[Change, ...], *, by: str, action: str) -> None:
        """Write one transaction: history first, state second. The caller holds the lock."""
        data, line = encode_line(self._assessment.history, changes, by=by, action=action, at=self._clock())
        after = replay((line,), self._assessment)
        append_line(self.folder, data, valid_bytes=self._history_bytes)
        self._history_bytes += len(data)
        self._assessment = after
        save_assessment(after, self.folder / ASSESSMENT_FILE)


def _changed(entry: Entry, **fields: object) -> Entry:
    """A copy of an entry with other fields, validated again."""
    kept = {name: getattr(entry, name) for name in Entry.model_fields}
    return _validated(lambda: Entry(**(kept | fields)))


def _validated(make: Callable[[], _T]) -> _T:
    try:
        return make()
    except ValidationError as wrong:
        raise AssessmentError(describe_problems(wrong, "input"), "Correct it and try again.") from None
