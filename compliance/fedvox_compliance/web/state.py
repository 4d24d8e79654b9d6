"""What the server holds while it runs: the open assessment under one lock, its token, and who is answering."""

from __future__ import annotations

import datetime as dt
import hmac
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedvox_compliance.assessment import Entry, to_jsonable
from fedvox_compliance.canonical import sha256_of
from fedvox_compliance.files import HISTORY_FILE
from fedvox_compliance.score_report import ScoreReport
from fedvox_compliance.scoring import score
from fedvox_compliance.workspace import Workspace

MAX_SESSIONS = 32
"""Browsers at once; the oldest is forgotten first."""


@dataclass
class Session:
    """One browser that came through the printed address.

    Attributes:
        csrf: the secret that its forms carry.
        name: who is answering; empty until somebody says.
    """

    language: str
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    name: str = ""


class FormServer:
    """The state behind the pages.

    Args:
        space: the open assessment.
        language: of new sessions.
        max_upload: bytes of one document.
    """

    def __init__(self, space: Workspace, *, language: str = "en", max_upload: int = 25 * 2**20) -> None:
        self.space = space
        self.language = language
        self.max_upload = max_upload
        self.token = secrets.token_urlsafe(32)
        self._sessions: dict[str, Session] = {}
        self._lock = threading.RLock()
        self._seen = self._history_mark()

    def login(self, token: str) -> str | None:
        """A new session's identifier for the right token, otherwise None."""
        if not hmac.compare_digest(token.encode("utf-8"), self.token.encode("ascii")):
            return None
        identifier = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._sessions) >= MAX_SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))
            self._sessions[identifier] = Session(self.language)
        return identifier

    def session(self, identifier: str | None) -> Session | None:
        """The session that a cookie names, if it exists."""
        return self._sessions.get(identifier) if identifier else None

    @contextmanager
    def opened(self) -> Iterator[Workspace]:
        """The assessment, up to date with what other programs wrote, for one thread at a time."""
        with self._lock:
            mark = self._history_mark()
            if mark != self._seen:
                self.space.reload()
            yield self.space
            self._seen = self._history_mark()

    def score(self, space: Workspace) -> ScoreReport:
        """Today's score, by the engine that everything else uses."""
        return score(space.assessment, space.catalogue, on=space.today())

    def _history_mark(self) -> tuple[int, int]:
        state = Path(self.space.folder / HISTORY_FILE).stat()
        return state.st_size, state.st_mtime_ns


def csrf_matches(session: Session, given: object) -> bool:
    """Whether a form carries its session's secret."""
    return isinstance(given, str) and hmac.compare_digest(given.encode("utf-8"), session.csrf.encode("ascii"))


def version_of(entry: Entry | None) -> str:
    """A short mark of an entry's content: forms carry the one that they were filled in against."""
    return sha256_of(to_jsonable(entry or Entry()))[:24]


def clock_text(now: dt.datetime) -> str:
    """The time of day, as people read it beside a saved answer."""
    return f"{now.astimezone():%H:%M:%S}"
