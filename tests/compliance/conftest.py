"""A clinic with a clock that stands still, and a catalogue small enough to score by hand."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

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
from fedvox_compliance.catalogue import (
    Catalogue,
    Control,
    Framework,
    Gate,
    Obligation,
    Protection,
    ScopeQuestion,
)
from fedvox_compliance.workspace import Workspace

TODAY = dt.date(2026, 11, 24)
NOON = dt.datetime(2026, 11, 24, 12, 0, tzinfo=dt.UTC)


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> dt.datetime:
        return self.now


def make_control(control_id: str, framework: str, weight: int = 4, **fields: Any) -> Control:
    severity = {8: "critical", 4: "high", 2: "medium", 1: "low", 0: "low"}[weight]
    given: dict[str, Any] = {
        "citation": control_id,
        "title": control_id,
        "question": f"{control_id}?",
        "guidance": "look",
        "evidence": ("document",),
        "kind": "control",
        "obligation": Obligation.REQUIRED,
        "theme": "governance",
        "severity": severity,
        "weight": weight,
        "effort": 3,
    }
    return Control(id=control_id, framework=framework, **(given | fields))


def make_catalogue(*controls: Control, scope: tuple[ScopeQuestion, ...] = ()) -> Catalogue:
    names = dict.fromkeys(c.framework for c in controls)
    return Catalogue(
        version="test",
        law_as_of=TODAY,
        profile="test",
        overlays=(),
        frameworks=MappingProxyType({n: Framework(n, n, n, "0" * 64) for n in names}),
        themes=tuple(dict.fromkeys(c.theme for c in controls)),
        scope_questions=MappingProxyType({q.id: q for q in scope}),
        controls=MappingProxyType({c.id: c for c in controls}),
    )


def make_entry(
    control_id: str = "X.1",
    answer: Answer = Answer.YES,
    *,
    level: str = "document",
    on: dt.date = TODAY,
    **fields: Any,
) -> Entry:
    """An entry at an assurance level: claim, document, second_person or verified (by 'Assessor')."""
    given: dict[str, Any] = {"answer": answer, "author": "A. Meyer", "answered_on": on}
    if level != "claim":
        given["evidence"] = (Evidence(path="evidence/a.pdf", sha256="a" * 64, effective=on),)
    entry = Entry(**(given | fields))
    claim = claim_sha256(control_id, entry)
    if level == "second_person":
        return _with(entry, second_person=SecondPerson(name="B. Beck", date=on, claim=claim))
    if level == "verified":
        return _with(entry, verification=Verification(assessor="Assessor", date=on, claim=claim))
    return entry


def _with(entry: Entry, **fields: Any) -> Entry:
    return Entry(**({n: getattr(entry, n) for n in Entry.model_fields} | fields))


def make_assessment(
    catalogue: Catalogue, entries: dict[str, Entry] | None = None, scope: dict[str, bool] | None = None
) -> Assessment:
    said = {n: ScopeAnswer(applies=v, author="A. Meyer", answered_on=TODAY) for n, v in (scope or {}).items()}
    return Assessment(
        id="0" * 32,
        clinic="Clinic A",
        profile=catalogue.profile,
        overlays=catalogue.overlays,
        catalogue=CatalogueRef(version=catalogue.version, sha256=catalogue.sha256),
        created=NOON,
        scope=said,
        entries=entries or {},
    )


def two_laws() -> Catalogue:
    """Two frameworks, every kind of control: gates, addressable, excludable, scoped, informative."""
    return make_catalogue(
        make_control("L.1", "LAW", 8, gate=Gate.ELIGIBILITY, protects=Protection.LEGAL_BASIS),
        make_control("L.2", "LAW", 4, obligation=Obligation.ADDRESSABLE, theme="access"),
        make_control("L.3", "LAW", 2, only_if=("cloud",), theme="vendor"),
        make_control("L.4", "LAW", 1, theme="access"),
        make_control("L.5", "LAW", 8, gate=Gate.CAP, theme="risk"),
        make_control(
            "S.1", "STANDARD", 8, gate=Gate.ELIGIBILITY, protects=Protection.ENCRYPTION, theme="crypto"
        ),
        make_control("S.2", "STANDARD", 4, obligation=Obligation.APPLICABILITY, theme="access"),
        make_control("S.3", "STANDARD", 2, obligation=Obligation.APPLICABILITY, theme="risk"),
        make_control("S.4", "STANDARD", 2, obligation=Obligation.APPLICABILITY, theme="vendor"),
        make_control("S.5", "STANDARD", 0, informative=True, theme="quality"),
        scope=(ScopeQuestion("cloud", "Cloud?"), ScopeQuestion("deep", "Deep?", after="cloud")),
    )


class Bench:
    """The builders, for tests that get them as a fixture."""

    today = TODAY
    control = staticmethod(make_control)
    catalogue = staticmethod(make_catalogue)
    entry = staticmethod(make_entry)
    changed = staticmethod(_with)
    assessment = staticmethod(make_assessment)
    two_laws = staticmethod(two_laws)
    refuted = Verdict.REFUTED


@pytest.fixture(scope="session")
def bench() -> type[Bench]:
    """Builders of small catalogues, entries and assessments."""
    return Bench


@pytest.fixture
def clock() -> Clock:
    """A clock that stands at noon of 24 November 2026 until it is moved."""
    return Clock()


@pytest.fixture
def new_space(tmp_path: Path, clock: Clock) -> Callable[..., Workspace]:
    """Starts assessments below `tmp_path`."""

    def start(name: str = "clinic-a", **fields: Any) -> Workspace:
        given = {"clinic": "Clinic A", "author": "A. Meyer", "profile": "gdpr", "clock": clock}
        return Workspace.create(tmp_path / name, **(given | fields))

    return start


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """A document to attach."""
    path = tmp_path / "Impact assessment.pdf"
    path.write_bytes(b"%PDF-1.7 impact assessment")
    return path
