"""What a form does: read its fields, check them, and change the assessment through its workspace."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from fedvox_compliance.assessment import Answer, Entry, Name
from fedvox_compliance.errors import ComplianceError, ConflictError, EvidenceError, UsageError
from fedvox_compliance.evidence import safe_name
from fedvox_compliance.interface import load_interface
from fedvox_compliance.messages import LANGUAGES
from fedvox_compliance.sharing import suggest_documents
from fedvox_compliance.web.state import Session, version_of
from fedvox_compliance.workspace import Workspace

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_CHUNK = 2**20
Fields = Mapping[str, object]


class Upload(Protocol):
    """What arrives in a file field: a name and a stream."""

    filename: str | None

    async def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        ...


@dataclass(frozen=True)
class _Given:
    """The fields of a question's form."""

    answer: Answer
    reason: str
    maturity: int | None
    due: dt.date | None


def set_name(session: Session, fields: Fields) -> None:
    """Remember who is answering.

    Raises:
        UsageError: not a name.
    """
    try:
        session.name = _NAME.validate_python(_text(fields, "name").strip())
    except ValidationError:
        raise _refusal(UsageError, "name") from None


def set_language(session: Session, fields: Fields) -> None:
    """Change the language of a session; unknown ones change nothing."""
    wanted = _text(fields, "language")
    if wanted in LANGUAGES:
        session.language = wanted


def save_scope(space: Workspace, session: Session, question: str, fields: Fields) -> None:
    """Record a scope statement.

    Raises:
        UsageError: neither yes nor no.
        AssessmentError: there is no such question.
    """
    said = _text(fields, "applies")
    if said not in ("yes", "no"):
        raise _refusal(UsageError, "yes_or_no")
    if space.assessment.stated_scope.get(question) is not (said == "yes"):
        space.state_scope(question, said == "yes", author=session.name)


def save_answer(space: Workspace, session: Session, control: str, fields: Fields) -> None:
    """Record an answer, unless the question changed since the form was shown.

    Saving the same answer again on the same day writes nothing.

    Raises:
        ConflictError: somebody else changed it.
        AssessmentError: the answer breaks a rule of this control.
        UsageError: a field cannot be read.
    """
    before = space.entry(control)
    given = _read_answer(fields)
    if _same(before, given, space.today()):
        return
    _require_version(space, control, fields)
    space.answer(
        control,
        given.answer,
        author=session.name,
        reason=given.reason,
        maturity=given.maturity,
        due=given.due,
    )


async def receive_upload(upload: object, folder: Path, limit: int) -> Path:
    """Stream an uploaded file into a temporary folder under a harmless name.

    Args:
        upload: the form's file field.
        folder: where the temporary folder is made.
        limit: bytes.

    Returns:
        The file; the caller removes its folder.

    Raises:
        EvidenceError: no file was chosen, or it is larger than the limit.
    """
    name = getattr(upload, "filename", None)
    if not isinstance(name, str) or not name:
        raise _refusal(EvidenceError, "no_file")
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    target = Path(tempfile.mkdtemp(prefix=".incoming.", dir=folder)) / safe_name(base)
    size = 0
    with target.open("wb") as file:
        while chunk := await upload.read(_CHUNK):  # type: ignore[attr-defined]
            size += len(chunk)
            if size > limit:
                target.unlink()
                target.parent.rmdir()
                raise _refusal(EvidenceError, "too_large", mib=limit // 2**20)
            file.write(chunk)
    return target


def attach(space: Workspace, session: Session, control: str, file: Path, fields: Fields) -> None:
    """Attach an uploaded document.

    Raises:
        EvidenceError: it is empty or cannot be copied.
        UsageError: a date cannot be read, or the last lies before the first.
    """
    effective, expires = _date(fields, "effective") or space.today(), _date(fields, "expires")
    if expires is not None and expires < effective:
        raise _refusal(UsageError, "dates")
    if file.stat().st_size == 0:
        raise _refusal(EvidenceError, "empty")
    space.add_evidence(
        control,
        file,
        author=session.name,
        effective=effective,
        expires=expires,
        title=_text(fields, "title").strip(),
    )


def share(space: Workspace, session: Session, control: str, fields: Fields) -> None:
    """Take over a related question's document, because a person said that it shows this too.

    Raises:
        UsageError: it is not among those suggested.
    """
    wanted = _text(fields, "sha256")
    for suggestion in suggest_documents(
        space.assessment, space.catalogue, control, on=space.today(), limit=50
    ):
        if suggestion.document.sha256 == wanted:
            space.attach_evidence(control, suggestion.taken_over(), author=session.name)
            return
    raise _refusal(UsageError, "not_suggested")


def detach(space: Workspace, session: Session, control: str, fields: Fields) -> None:
    """Detach a document; the file itself stays, the history names it."""
    space.remove_evidence(control, _text(fields, "sha256"), author=session.name)


def confirm(space: Workspace, session: Session, control: str, fields: Fields) -> None:
    """Confirm exactly what was shown, as a second person.

    Raises:
        ConflictError: the answer or its documents changed since the page was shown.
        AssessmentError: the author cannot confirm.
    """
    _require_version(space, control, fields)
    space.confirm(control, name=session.name)


def _read_answer(fields: Fields) -> _Given:
    try:
        answer = Answer(_text(fields, "answer"))
    except ValueError:
        raise _refusal(UsageError, "no_answer") from None
    maturity = _text(fields, "maturity")
    if maturity and maturity not in "012345":
        raise _refusal(UsageError, "maturity")
    return _Given(
        answer=answer,
        reason=_text(fields, "reason").replace("\r\n", "\n").strip(),
        maturity=int(maturity) if maturity else None,
        due=_date(fields, "due") if answer is Answer.PLANNED else None,
    )


def _same(before: Entry, given: _Given, today: dt.date) -> bool:
    said = (before.answer, before.reason, before.maturity, before.due)
    return said == (given.answer, given.reason, given.maturity, given.due) and before.answered_on == today


def _require_version(space: Workspace, control: str, fields: Fields) -> None:
    if _text(fields, "version") != version_of(space.assessment.entries.get(control)):
        raise _refusal(ConflictError, "changed", control=control)


def _date(fields: Fields, name: str) -> dt.date | None:
    text = _text(fields, name).strip()
    if not text:
        return None
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise _refusal(UsageError, "no_date", text=text[:20]) from None


def _refusal(kind: type[ComplianceError], key: str, **values: object) -> ComplianceError:
    """An error that the form can tell in its own language."""

    def told(language: str) -> str:
        return load_interface(language)(f"refused.{key}", **values)

    return kind(told("en"), translate=told)


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name, "")
    return value if isinstance(value, str) else ""
