"""Two programs in one folder: no answer or document of one is undone by the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedvox_compliance.assessment import Answer
from fedvox_compliance.errors import ConflictError
from fedvox_compliance.workspace import Workspace


@pytest.fixture
def pair(tmp_path: Path, make: Any) -> tuple[Workspace, Workspace]:
    first = Workspace.create(tmp_path / "c", clinic="C", profile="gdpr", author="A", clock=lambda: make.now)
    return first, Workspace.open(tmp_path / "c", clock=lambda: make.now)


def test_a_document_that_another_program_attached_is_not_lost(
    pair: tuple[Workspace, Workspace], tmp_path: Path
) -> None:
    mine, theirs = pair
    file = tmp_path / "policy.txt"
    file.write_text("Policy")
    theirs.add_evidence("GDPR.6.1", file, author="B", effective=theirs.today())
    with pytest.raises(ConflictError, match=r"GDPR\.6\.1: changed by another program"):
        mine.answer("GDPR.6.1", Answer.YES, author="A")
    mine.answer("GDPR.6.1", Answer.YES, author="A")  # the refusal showed what is there now
    entry = Workspace.open(mine.folder).entry("GDPR.6.1")
    assert entry.answer is Answer.YES
    assert len(entry.evidence) == 1


def test_changes_to_different_questions_do_not_disturb_each_other(pair: tuple[Workspace, Workspace]) -> None:
    mine, theirs = pair
    theirs.answer("GDPR.9.2", Answer.NO, author="B")
    mine.answer("GDPR.6.1", Answer.YES, author="A")
    entries = Workspace.open(mine.folder).assessment.entries
    assert {i: e.answer for i, e in entries.items()} == {"GDPR.6.1": Answer.YES, "GDPR.9.2": Answer.NO}


def test_a_refused_change_leaves_no_trace(pair: tuple[Workspace, Workspace]) -> None:
    mine, theirs = pair
    theirs.answer("GDPR.6.1", Answer.NO, author="B")
    before = (mine.folder / "history.jsonl").read_bytes()
    with pytest.raises(ConflictError):
        mine.answer("GDPR.6.1", Answer.YES, author="A")
    assert (mine.folder / "history.jsonl").read_bytes() == before
    assert mine.assessment.entries["GDPR.6.1"].answer is Answer.NO
