"""Who is signed in. A session lives in this process; who may do what is asked of the label store at every request."""

from __future__ import annotations

import hmac
import secrets
import threading
from dataclasses import dataclass, field

from fedvox.curation.store import LabelStore, Person

MAX_SESSIONS = 64
"""Browsers at once; the oldest is forgotten first."""


@dataclass(frozen=True)
class Undoable:
    """The last decision of a session, as long as nobody decided after it.

    Args:
        case_id: on which case.
        seen: number of the version that was the label before.
        revision: of the case since the decision.
    """

    case_id: str
    seen: int
    revision: int


@dataclass(frozen=True)
class Uploaded:
    """An edited mask that was checked and waits to be confirmed.

    Args:
        case_id: whose.
        mask_sha256: of its content; it lies in the store of masks, where no version knows it yet.
        parent: number of the version that was edited.
        tool: the file's name.
    """

    case_id: str
    mask_sha256: str
    parent: int
    tool: str


@dataclass
class Session:
    """One browser of one person.

    Attributes:
        token: that it signed in with; dismissed people lose their sessions at once.
        csrf: the secret that its requests carry.
        undoable: what it may take back.
        uploaded: what it may confirm.
    """

    token: str
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    undoable: Undoable | None = None
    uploaded: Uploaded | None = None


class Sessions:
    """The sessions of a server.

    Args:
        store: knows the people.
    """

    def __init__(self, store: LabelStore) -> None:
        self._store = store
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def sign_in(self, token: str) -> str | None:
        """A new session's identifier for an admitted person's token, otherwise None."""
        if self._store.people.by_token(token) is None:
            return None
        identifier = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._sessions) >= MAX_SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))
            self._sessions[identifier] = Session(token)
        return identifier

    def find(self, identifier: str | None) -> tuple[Session, Person] | None:
        """The session that a cookie names and whose it is, as long as that person is admitted."""
        session = self._sessions.get(identifier) if identifier else None
        person = None if session is None else self._store.people.by_token(session.token)
        return None if session is None or person is None else (session, person)

    def forget(self, identifier: str | None) -> None:
        """Ends a session."""
        with self._lock:
            self._sessions.pop(identifier or "", None)


def csrf_matches(session: Session, given: str | None) -> bool:
    """Whether a request carries its session's secret."""
    return given is not None and hmac.compare_digest(given.encode(), session.csrf.encode())
