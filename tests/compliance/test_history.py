"""Crashes, cuts and forgeries: what the history survives, and what it gives away."""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvox_compliance import history
from fedvox_compliance.assessment import Answer
from fedvox_compliance.canonical import sha256_of
from fedvox_compliance.errors import AssessmentError, ComplianceError, IntegrityError, UsageError
from fedvox_compliance.files import load_assessment, read_limited, save_assessment
from fedvox_compliance.history import read_lines, verify_history
from fedvox_compliance.workspace import Workspace

NewSpace = Callable[..., Workspace]
CONTROLS = ["GDPR.6.1", "GDPR.9.2", "GDPR.26", "GDPR.35.1"]


def worked_on(new_space: NewSpace, name: str = "clinic-a") -> Workspace:
    space = new_space(name)
    for control in CONTROLS:
        space.answer(control, Answer.YES, author="A. Meyer", reason="as agreed")
    space.state_scope("cloud_services" if "cloud_services" in space.catalogue.scope_questions else "third_country",
                      False, author="A. Meyer")  # fmt: skip
    return space


def test_state_is_the_sum_of_its_history(new_space: NewSpace) -> None:
    space = worked_on(new_space)
    assert verify_history(space.folder) == space.assessment == load_assessment(space.folder)
    lines, _ = read_lines(space.folder)
    assert [line.action for line in lines] == ["create", *["answer"] * 4, "scope"]
    assert space.assessment.history.length == 6
    assert space.assessment.history.head == lines[-1].sha256


def test_chain_can_be_checked_with_nothing_but_a_json_reader_and_sha256(new_space: NewSpace) -> None:
    space = worked_on(new_space)
    previous = "0" * 64
    for raw in (space.folder / "history.jsonl").read_text("utf-8").splitlines():
        line = json.loads(raw)
        assert line["prev"] == previous
        claimed = line.pop("sha256")
        assert sha256_of(line) == claimed
        previous = claimed


def test_files_are_for_their_owner_alone(new_space: NewSpace) -> None:
    space = worked_on(new_space)
    assert space.folder.stat().st_mode & 0o077 == 0
    for name in ("assessment.json", "history.jsonl", ".lock"):
        assert (space.folder / name).stat().st_mode & 0o077 == 0, name


# ------------------------------------------------------------------------------------------------ forgeries


def forged(space: Workspace, change: Callable[[list[dict[str, Any]]], None]) -> None:
    path = space.folder / "history.jsonl"
    lines = [json.loads(raw) for raw in path.read_text("utf-8").splitlines()]
    change(lines)
    path.write_text(
        "".join(json.dumps(line, separators=(",", ":"), sort_keys=True) + "\n" for line in lines), "utf-8"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[2]["changes"][0]["value"].update(answer="no"),
        lambda lines: lines[2].update(by="Somebody Else"),
        lambda lines: lines[2].update(at="2020-01-01T00:00:00Z"),
        lambda lines: lines.pop(2),
        lambda lines: lines.insert(2, lines[3]),
        lambda lines: lines.__setitem__(slice(2, 4), [lines[3], lines[2]]),
        lambda lines: lines.pop(),
        lambda lines: lines.clear(),
        lambda lines: lines[2].update(extra=1),
        lambda lines: lines[2].update(n=30),
    ],
)
def test_changed_removed_exchanged_or_added_lines_are_found(new_space: NewSpace, change: Any) -> None:
    space = worked_on(new_space)
    forged(space, change)
    with pytest.raises(IntegrityError):
        verify_history(space.folder)
    with pytest.raises(IntegrityError):
        Workspace.open(space.folder)


def test_line_with_its_own_hash_made_right_again_breaks_the_next_one(new_space: NewSpace) -> None:
    space = worked_on(new_space)

    def change(lines: list[dict[str, Any]]) -> None:
        lines[2]["changes"][0]["value"]["answer"] = "no"
        lines[2]["sha256"] = sha256_of({k: v for k, v in lines[2].items() if k != "sha256"})

    forged(space, change)
    with pytest.raises(IntegrityError, match="line 4 does not follow"):
        read_lines(space.folder)


def test_state_edited_by_hand_is_found_and_named(new_space: NewSpace) -> None:
    space = worked_on(new_space)
    path = space.folder / "assessment.json"
    path.write_text(path.read_text("utf-8").replace('"answer": "yes"', '"answer": "partly"', 1), "utf-8")
    with pytest.raises(IntegrityError, match=r"GDPR\.6\.1"):
        verify_history(space.folder)


def test_bare_copy_of_the_answers_has_no_history_to_verify(new_space: NewSpace) -> None:
    space = worked_on(new_space)
    (space.folder / "history.jsonl").unlink()
    with pytest.raises(IntegrityError):
        verify_history(space.folder)


def test_every_flipped_byte_of_the_history_is_found(new_space: NewSpace) -> None:
    space = worked_on(new_space)
    path = space.folder / "history.jsonl"
    data = path.read_bytes()
    generator = random.Random(5)
    for position in generator.sample(range(len(data)), 120):
        flipped = bytearray(data)
        flipped[position] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ComplianceError):
            verify_history(space.folder)
    path.write_bytes(data)
    verify_history(space.folder)


# --------------------------------------------------------------------------------------------------- crashes


def test_line_cut_off_anywhere_never_happened_and_the_next_change_takes_its_place(
    new_space: NewSpace,
) -> None:
    space = worked_on(new_space)
    history, state = space.folder / "history.jsonl", space.folder / "assessment.json"
    before = (history.read_bytes(), state.read_bytes(), space.assessment)
    space.answer("GDPR.30.1", Answer.NO, author="A. Meyer")
    whole = history.read_bytes()
    for end in range(len(before[0]) + 1, len(whole), 7):
        history.write_bytes(whole[:end])
        state.write_bytes(before[1])
        again = Workspace.open(space.folder)
        assert again.assessment == before[2]
        again.answer("GDPR.31", Answer.YES, author="B. Beck")
        assert set(verify_history(space.folder).entries) == {*CONTROLS, "GDPR.31"}


def test_line_that_reached_the_disk_counts_although_the_state_file_does_not_know_it_yet(
    new_space: NewSpace,
) -> None:
    space = worked_on(new_space)
    state = space.folder / "assessment.json"
    before = state.read_bytes()
    space.answer("GDPR.30.1", Answer.NO, author="A. Meyer")
    state.write_bytes(before)  # as if the crash had come between the two writes
    assert load_assessment(space.folder).entries["GDPR.30.1"].answer is Answer.NO
    Workspace.open(space.folder).answer("GDPR.31", Answer.YES, author="A. Meyer")
    assert {"GDPR.30.1", "GDPR.31"} <= set(verify_history(space.folder).entries)


def test_lost_state_file_is_rebuilt_from_the_history(new_space: NewSpace) -> None:
    space = worked_on(new_space)
    (space.folder / "assessment.json").unlink()
    assert load_assessment(space.folder) == space.assessment


class Crash(BaseException):
    """The machine stops here."""


WRITING_CALLS = ("write", "fsync", "ftruncate", "replace", "open")


def crash_at(monkeypatch: pytest.MonkeyPatch, nth: int, *, partial: bool) -> list[str]:
    """Let the n-th call that touches the disk be the last; optionally it gets half of its bytes out."""
    calls: list[str] = []
    real = {name: getattr(os, name) for name in WRITING_CALLS}

    def instead(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == nth:
                if partial and name == "write":
                    real["write"](args[0], bytes(args[1])[: len(args[1]) // 2])
                raise Crash
            return real[name](*args, **kwargs)

        return call

    for name in WRITING_CALLS:
        monkeypatch.setattr(os, name, instead(name))
    return calls


@pytest.mark.parametrize("partial", [False, True])
def test_crash_at_any_call_leaves_the_state_before_or_after(
    new_space: NewSpace, monkeypatch: pytest.MonkeyPatch, partial: bool
) -> None:
    space = worked_on(new_space)
    answers = iter([Answer.YES, Answer.NO] * 100)
    crashed = 0
    for nth in range(1, 60):
        before, answer = load_assessment(space.folder), next(answers)
        open_space = Workspace.open(space.folder)
        with monkeypatch.context() as patch:
            crash_at(patch, nth, partial=partial)
            try:
                open_space.answer("GDPR.30.1", answer, author="A. Meyer", reason=f"try {nth}")
                finished = True
            except Crash:
                finished = False
        after = verify_history(space.folder)
        done = "GDPR.30.1" in after.entries and after.entries["GDPR.30.1"].reason == f"try {nth}"
        if finished:
            assert done
            break
        crashed += 1
        assert done or after == before
    assert crashed >= 6  # open, truncate, write, fsync, the state file's write and rename: all were tried
    assert not list(space.folder.glob(".assessment.json.*")), "a temporary file was left behind"


def test_full_disk_is_told_and_the_answer_is_not_half_there(
    new_space: NewSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = worked_on(new_space)
    before = space.assessment
    real = os.write

    def full(handle: int, data: bytes) -> int:
        real(handle, bytes(data)[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UsageError, match="No space left"):
            space.answer("GDPR.30.1", Answer.NO, author="A. Meyer")
    assert space.assessment == before == verify_history(space.folder)
    space.answer("GDPR.30.1", Answer.NO, author="A. Meyer")  # once there is space again, it simply goes on
    assert verify_history(space.folder).entries["GDPR.30.1"].answer is Answer.NO


KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from fedvox_compliance.assessment import Answer
from fedvox_compliance.history import verify_history
from fedvox_compliance.workspace import Workspace

folder, kills, generator = sys.argv[1], int(sys.argv[2]), random.Random(11)
controls, n = list(Workspace.open(folder).catalogue.controls), 0
for _ in range(kills):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        space = Workspace.open(folder)
        while True:
            space.answer(controls[n % len(controls)], Answer.PARTLY, author="A. Meyer", reason=str(n))
            os.write(writing, b"%d\\n" % n)
            n += 1
    os.close(writing)
    pipe = os.fdopen(reading)
    acknowledged = [int(pipe.readline()) for _ in range(generator.randrange(1, 6))]
    time.sleep(generator.uniform(0, 0.006))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    acknowledged += [int(line) for line in pipe if line.endswith("\\n")]
    said = {i: int(e.reason) for i, e in verify_history(Path(folder)).entries.items()}
    lost = [m for m in acknowledged if said.get(controls[m % len(controls)], -1) < m]
    newest = max(said.values())
    print(json.dumps({"last": acknowledged[-1], "newest": newest, "lost": lost}))
    n = newest + 1
"""


@pytest.mark.integration
def test_kill_9_at_any_moment_loses_at_most_the_answer_being_given(new_space: NewSpace) -> None:
    """100 processes answer without pause and are killed at random moments; what each acknowledged is there."""
    space = new_space(profile="combined")
    run = subprocess.run(
        [sys.executable, "-c", KILLER, str(space.folder), "100"], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    kills = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(kills) == 100
    for kill in kills:
        assert not kill["lost"]
        # The answer after the last acknowledged one was being given: it is there or it is not. Nothing was invented.
        assert kill["newest"] - kill["last"] in (0, 1)
    between = sum(kill["newest"] - kill["last"] for kill in kills)
    assert between > 5, "no kill ever fell between writing and acknowledging; the test would prove little"
    assert verify_history(space.folder).history.length > 200


# ------------------------------------------------------------------------------------------------ two at work


def test_two_programs_take_turns_and_see_each_other(new_space: NewSpace) -> None:
    first = worked_on(new_space)
    second = Workspace.open(first.folder)
    first.answer("GDPR.30.1", Answer.YES, author="A. Meyer")
    second.answer("GDPR.31", Answer.NO, author="B. Beck")
    first.answer("GDPR.38", Answer.YES, author="A. Meyer")
    assert {"GDPR.30.1", "GDPR.31", "GDPR.38"} <= set(verify_history(first.folder).entries)


@pytest.mark.parametrize("look", [Workspace.open, verify_history])
def test_an_answer_given_while_another_program_reads_is_no_contradiction(
    new_space: NewSpace, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], object]
) -> None:
    space = new_space()
    controls = iter(space.catalogue.controls)

    def answered_in_between(path: Path, *limit: int) -> bytes:
        data = read_limited(path, *limit)
        with monkeypatch.context() as undisturbed:
            undisturbed.setattr(history, "read_limited", read_limited)
            space.answer(next(controls), Answer.PARTLY, author="Another program")
        return data

    monkeypatch.setattr(history, "read_limited", answered_in_between)
    look(space.folder)


@pytest.mark.integration
def test_four_programs_writing_at_once_lose_nothing(new_space: NewSpace) -> None:
    space = new_space()
    code = """
import sys
from fedvox_compliance.assessment import Answer
from fedvox_compliance.workspace import Workspace
space = Workspace.open(sys.argv[1])
mine = list(space.catalogue.controls)[int(sys.argv[2])::4]
for control in mine:
    space.answer(control, Answer.PARTLY, author="Worker " + sys.argv[2])
"""
    workers = [subprocess.Popen([sys.executable, "-c", code, str(space.folder), str(n)]) for n in range(4)]
    assert [w.wait(timeout=60) for w in workers] == [0, 0, 0, 0]
    state = verify_history(space.folder)
    assert set(state.entries) == set(space.catalogue.controls)
    assert state.history.length == 1 + len(space.catalogue.controls)


# ---------------------------------------------------------------------------------------------- the odd cases


def test_folder_that_holds_an_assessment_is_not_started_again(new_space: NewSpace) -> None:
    worked_on(new_space)
    with pytest.raises(UsageError, match="already holds"):
        new_space()


def test_folder_without_an_assessment_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(AssessmentError, match="fedvox-compliance new"):
        Workspace.open(tmp_path)
    with pytest.raises(AssessmentError, match="no such folder"):
        Workspace.open(tmp_path / "nowhere")


def test_saved_assessment_reads_back_equal(new_space: NewSpace, tmp_path: Path) -> None:
    space = worked_on(new_space)
    save_assessment(space.assessment, tmp_path / "copy.json")
    assert load_assessment(tmp_path / "copy.json") == space.assessment
    assert load_assessment(tmp_path / "copy.json").sha256 == space.assessment.sha256


def test_times_are_written_in_utc_and_ids_never_repeat(new_space: NewSpace, clock: Any) -> None:
    clock.now = dt.datetime(2026, 6, 1, 10, 0, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    space = worked_on(new_space, "one")
    raw = (space.folder / "history.jsonl").read_text("utf-8").splitlines()[0]
    assert json.loads(raw)["at"] == "2026-06-01T08:00:00.000Z"
    assert space.assessment.id != worked_on(new_space, "two").assessment.id
