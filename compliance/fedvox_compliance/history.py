"""Every change of an assessment, in order, so that none can be altered, removed or slipped in unnoticed.

`history.jsonl` is append-only. Each line is one transaction and names the hash of the line before it:

    {"n": 7, "at": "2026-11-24T09:30:00Z", "by": "A. Meyer", "action": "answer", "changes": [...],
     "prev": "<sha256 of line 6>", "sha256": "<sha256 of this line without this key>"}

The assessment's state is nothing but the sum of these changes, and its file names the last line it contains.
So:

- a change is durable once its line is on disk; after a crash, lines beyond the state file are applied on
reading;
- a line without its end (the crash hit while it was written) never happened, and is cut off by the next
change;
- editing the state file by hand is found by replaying; editing a line breaks the chain; cutting lines off
leaves the
  state file naming a line that is gone.

Whoever holds the folder can still rewrite the whole chain. That is why the head's hash is part of the
assessment's
hash, which an assessor signs: from then on it is held outside the clinic.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from fedvox_compliance.assessment import Assessment, Entry, HistoryRef, Name, ScopeAnswer, Sha256, to_jsonable
from fedvox_compliance.canonical import canonical_json, sha256_of
from fedvox_compliance.errors import AssessmentError, IntegrityError, UsageError
from fedvox_compliance.files import (
    ASSESSMENT_FILE,
    HISTORY_FILE,
    describe_problems,
    parse_assessment,
    read_limited,
)

START = "0" * 64
MAX_HISTORY_BYTES = 512 * 2**20

Part = Literal["header", "scope", "entry"]


class Change(BaseModel):
    """One thing that became another. `value` None removes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    part: Part
    target: Annotated[str, Field(max_length=64)] = ""
    value: dict[str, JsonValue] | None


class Line(BaseModel):
    """One transaction."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    n: Annotated[int, Field(ge=1)]
    at: AwareDatetime
    by: Name
    action: Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
    changes: tuple[Change, ...]
    prev: Sha256
    sha256: Sha256


def header_change(assessment: Assessment) -> Change:
    """The change that sets everything but scope and entries."""
    kept = {k: v for k, v in to_jsonable(assessment).items() if k not in ("scope", "entries", "history")}
    return Change(part="header", value=kept)


def entry_change(control_id: str, entry: Entry | None) -> Change:
    """The change that sets or removes one control's entry."""
    return Change(part="entry", target=control_id, value=None if entry is None else to_jsonable(entry))


def scope_change(question_id: str, said: ScopeAnswer | None) -> Change:
    """The change that sets or removes one scope statement."""
    return Change(part="scope", target=question_id, value=None if said is None else to_jsonable(said))


def encode_line(
    previous: HistoryRef, changes: Iterable[Change], *, by: str, action: str, at: dt.datetime
) -> tuple[bytes, Line]:
    """The next line, as bytes with their end, and as read back from them.

    Raises:
        AssessmentError: `by` is no name.
    """
    body = {
        "n": previous.length + 1,
        "at": at.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "by": by,
        "action": action,
        "changes": [c.model_dump(mode="json") for c in changes],
        "prev": previous.head,
    }
    data = canonical_json(body | {"sha256": sha256_of(body)})
    try:
        return data + b"\n", Line.model_validate_json(data)
    except ValidationError as wrong:
        raise AssessmentError(describe_problems(wrong, "change"), "Correct it and try again.") from None


def append_line(folder: Path, data: bytes, *, valid_bytes: int) -> None:
    """Add a line and wait until it is on disk; what a crash left behind `valid_bytes` is cut off first.

    Raises:
        UsageError: the disk is full or read-only. Nothing of the line is left.
    """
    path = folder / HISTORY_FILE
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as wrong:
        raise UsageError(f"{path}: {wrong.strerror}", "Check your rights on the folder.") from wrong
    try:
        os.ftruncate(handle, valid_bytes)
        os.lseek(handle, valid_bytes, os.SEEK_SET)
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    except OSError as wrong:
        with suppress(OSError):
            os.ftruncate(handle, valid_bytes)
        raise UsageError(
            f"{path}: {wrong.strerror}; the change was not made", "Make room, then try again."
        ) from wrong
    finally:
        os.close(handle)


def read_lines(folder: Path) -> tuple[list[Line], int]:
    """The history's lines, checked one against the other, and how many bytes they take.

    Raises:
        IntegrityError: a line is damaged, out of order, or not the one its successor names.
    """
    path = folder / HISTORY_FILE
    if not path.exists():
        return [], 0
    data = read_limited(path, MAX_HISTORY_BYTES)
    whole = data[: data.rfind(b"\n") + 1]
    lines: list[Line] = []
    previous = START
    for number, raw in enumerate(whole.splitlines(), start=1):
        line = _read_line(raw, number, path)
        if line.n != number or line.prev != previous:
            raise IntegrityError(
                f"{path}: line {number} does not follow line {number - 1}",
                "The history was altered. Restore the folder from a copy; do not sign this assessment.",
            )
        lines.append(line)
        previous = line.sha256
    return lines, len(whole)


def read_state(folder: Path) -> Assessment:
    """The assessment of a folder, with what its history holds beyond the state file.

    Raises:
        AssessmentError: there is no assessment in the folder.
        IntegrityError: state and history contradict each other.
    """
    return open_state(folder)[0]


def open_state(folder: Path) -> tuple[Assessment, int]:
    """As `read_state`, with the number of bytes of the history that are in it.

    Raises:
        AssessmentError: see `read_state`.
        IntegrityError: see `read_state`.
    """
    # The state first: another program writes the line before the state, so that the history read last holds what a
    # state read before it names.
    state = _read_state_file(folder)
    lines, valid_bytes = read_lines(folder)
    return _joined(folder, state, lines), valid_bytes


def verify_history(folder: Path) -> Assessment:
    """Replay the whole history and compare it with the state file.

    Raises:
        IntegrityError: the two differ; the controls in which they do are named.
    """
    state = read_state(folder)
    lines, _ = read_lines(folder)
    if not lines:
        raise IntegrityError(
            f"{folder}: has no history", "It was removed, or this is a bare copy of the answers."
        )
    # What another program has written since the state was read is not in it.
    differing = list(_differences(replay(lines[: state.history.length]), state))
    if differing:
        raise IntegrityError(
            f"{folder}: {ASSESSMENT_FILE} was changed outside the program: {', '.join(differing[:8])}",
            "Move the file away; the program rebuilds it from the history.",
        )
    return state


def replay(lines: Iterable[Line], state: Assessment | None = None) -> Assessment:
    """Apply lines to a state (or to nothing).

    Raises:
        IntegrityError: a change does not make a valid assessment.
    """
    raw: dict[str, Any] = to_jsonable(state) if state is not None else {}
    last: Line | None = None
    for last in lines:
        for change in last.changes:
            _apply(raw, change)
    if last is None and state is not None:
        return state
    if last is not None:
        raw["history"] = {"length": last.n, "head": last.sha256}
    try:
        return Assessment.model_validate_json(json.dumps(raw))
    except ValidationError as wrong:
        problem = wrong.errors(include_url=False)[0]
        raise IntegrityError(
            f"the history leads to no valid assessment: {problem['loc']}: {problem['msg']}"
        ) from None


def _read_state_file(folder: Path) -> Assessment | None:
    path = folder / ASSESSMENT_FILE
    return parse_assessment(read_limited(path), source=str(path)) if path.exists() else None


def _joined(folder: Path, state: Assessment | None, lines: list[Line]) -> Assessment:
    if state is None and not lines:
        raise AssessmentError(
            f"{folder}: holds no assessment", "Start one with `fedvox-compliance new FOLDER`."
        )
    if state is None:
        return replay(lines)
    seen = state.history
    if seen.length > len(lines) or seen.head != (lines[seen.length - 1].sha256 if seen.length else START):
        raise IntegrityError(
            f"{folder}: {ASSESSMENT_FILE} names line {seen.length} of a history that does not hold it",
            "The history was cut or exchanged. Restore the folder from a copy; do not sign this assessment.",
        )
    return replay(lines[seen.length :], state)


def _apply(raw: dict[str, Any], change: Change) -> None:
    if change.part == "header":
        raw.update(change.value or {})
        return
    group = raw.setdefault("scope" if change.part == "scope" else "entries", {})
    if change.value is None:
        group.pop(change.target, None)
    else:
        group[change.target] = change.value


def _read_line(raw: bytes, number: int, path: Path) -> Line:
    try:
        line = Line.model_validate_json(raw)
        body = json.loads(raw)
        whole = sha256_of({k: v for k, v in body.items() if k != "sha256"}) == line.sha256
    except (ValidationError, ValueError, TypeError):
        whole = False
    if not whole:
        raise IntegrityError(
            f"{path}: line {number} is damaged or was altered",
            "Restore the folder from a copy; do not sign this assessment.",
        )
    return line


def _differences(a: Assessment, b: Assessment) -> Iterator[str]:
    for name in ("id", "clinic", "profile", "overlays", "catalogue", "created"):
        if getattr(a, name) != getattr(b, name):
            yield name
    for mine, theirs in ((a.scope, b.scope), (a.entries, b.entries)):
        for key in sorted(set(mine) | set(theirs)):
            if mine.get(key) != theirs.get(key):
                yield key
