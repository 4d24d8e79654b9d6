"""The conversation, with a scripted person; and a whole sitting in a real terminal."""

from __future__ import annotations

import datetime as dt
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedvox_compliance.assessment import Answer
from fedvox_compliance.catalogue import Control, ScopeQuestion, load_catalogue
from fedvox_compliance.dialogue import Asking, Dialogue
from fedvox_compliance.files import load_assessment
from fedvox_compliance.history import verify_history
from fedvox_compliance.interface import load_interface
from fedvox_compliance.questionnaire import Only, Progress, Selection, is_answered, steps_of
from fedvox_compliance.scoring import score
from fedvox_compliance.terminal import EndOfInput, PlainTerminal, StyledTerminal
from fedvox_compliance.workspace import Workspace

NewSpace = Callable[..., Workspace]
TODAY = dt.date(2026, 11, 24)


class Person:
    """A terminal with a person at it who types what a script says, and then closes the input."""

    def __init__(self, typed: Iterable[str]) -> None:
        self._typed = iter(typed)
        self.seen: list[tuple[str, str]] = []

    def say(self, text: str, style: str = "plain") -> None:
        self.seen.append((style, text))

    def ask(self, prompt: str) -> str:
        self.seen.append(("prompt", prompt))
        try:
            return next(self._typed)
        except StopIteration:
            raise EndOfInput from None

    def progress(self, done: int, total: int, text: str) -> None:
        self.seen.append(("progress", text))

    def texts(self, style: str) -> list[str]:
        return [t for s, t in self.seen if s == style]


def sit(space: Workspace, typed: Iterable[str], language: str = "en", **asking: Any) -> Person:
    person = Person(typed)
    given = {"author": "A. Meyer", "selection": Selection(), "ask_documents": False}
    Dialogue(space, person, load_interface(language), Asking(**(given | asking))).run()
    return person


GATES = Selection(quick=True, framework="GDPR")


# ---------------------------------------------------------------------------------- which questions, in which order


def test_scope_comes_first_and_then_theme_by_theme(new_space: NewSpace) -> None:
    space = new_space(profile="combined")
    steps = steps_of(space.assessment, space.catalogue, Selection(), TODAY)
    kinds = [isinstance(s, ScopeQuestion) for s in steps]
    assert kinds == sorted(kinds, reverse=True)
    themes = [s.theme for s in steps if isinstance(s, Control)]
    assert [t for n, t in enumerate(themes) if n == 0 or themes[n - 1] != t] == list(space.catalogue.themes)
    assert len(steps) == len(space.catalogue.scope_questions) + 283


def test_quick_mode_asks_for_gates_and_critical_controls_only(new_space: NewSpace) -> None:
    space = new_space(profile="combined")
    controls = [
        s
        for s in steps_of(space.assessment, space.catalogue, Selection(quick=True), TODAY)
        if isinstance(s, Control)
    ]
    assert len(controls) == 35
    assert all(c.severity == "critical" for c in controls)
    assert {c.id for c in space.catalogue.gates} <= {c.id for c in controls}


def test_denied_statement_takes_its_questions_out_at_once(new_space: NewSpace) -> None:
    space = new_space()
    before = {s.id for s in steps_of(space.assessment, space.catalogue, Selection(), TODAY)}
    space.state_scope("third_country", False, author="A")
    after = {s.id for s in steps_of(space.assessment, space.catalogue, Selection(), TODAY)}
    assert before - after == {
        "GDPR.44", "GDPR.45", "GDPR.46", "GDPR.47", "GDPR.48", "GDPR.49",
        "transfer_adequacy", "transfer_safeguards", "transfer_bcr", "transfer_derogation",
    }  # fmt: skip


def test_parts_can_be_asked_alone(new_space: NewSpace, document: Path) -> None:
    space = new_space()

    def ids(**fields: Any) -> list[str]:
        return [s.id for s in steps_of(space.assessment, space.catalogue, Selection(**fields), TODAY)]

    space.assign(["GDPR.31", "GDPR.38"], "D. Officer", author="A")
    assert ids(owner=" d.  officer") == ["GDPR.31", "GDPR.38"]
    assert ids(theme="transfer") == [f"GDPR.{n}" for n in (44, 45, 46, 47, 48, 49)]
    assert set(ids(framework="PLATFORM")) == {c for c in space.catalogue.controls if c.startswith("PLATFORM")}
    space.answer("GDPR.31", Answer.YES, author="A")
    assert "GDPR.31" not in ids(only=Only.OPEN)
    assert ids(only=Only.UNDOCUMENTED, owner="D. Officer") == ["GDPR.31"]
    space.add_evidence("GDPR.31", document, author="A", effective=TODAY)
    assert ids(only=Only.UNDOCUMENTED) == []
    later = TODAY + dt.timedelta(days=400)
    expired = Selection(only=Only.EXPIRED, owner="D. Officer")
    assert [s.id for s in steps_of(space.assessment, space.catalogue, expired, later)] == ["GDPR.31"]


def test_resuming_begins_at_the_first_open_question_and_goes_back_from_there(new_space: NewSpace) -> None:
    space = new_space()
    steps = steps_of(space.assessment, space.catalogue, Selection(theme="rights"), TODAY)
    for step in steps[:3]:
        space.answer(step.id, Answer.NO, author="A")
    progress = Progress(steps, space.assessment)
    assert progress.current == steps[3]
    assert progress.back()
    assert progress.current == steps[2]
    assert [is_answered(space.assessment, s) for s in steps[:4]] == [True, True, True, False]


# ------------------------------------------------------------------------------------------------ the conversation


def test_numbers_answer_and_each_answer_is_saved_at_once(new_space: NewSpace) -> None:
    space = new_space()
    sit(space, ["1", "3", "2", "half of it", "4", "2027-01-31", "q"], selection=GATES)
    steps = [s.id for s in steps_of(space.assessment, space.catalogue, GATES, TODAY)]
    saved = load_assessment(space.folder).entries
    assert [saved[i].answer for i in steps[:4]] == [Answer.YES, Answer.NO, Answer.PARTLY, Answer.PLANNED]
    assert saved[steps[2]].reason == "half of it"
    assert saved[steps[3]].due == dt.date(2027, 1, 31)
    assert {saved[i].author for i in steps[:4]} == {"A. Meyer"}
    assert len(saved) == 4


def test_empty_line_never_answers_an_open_question(new_space: NewSpace) -> None:
    space = new_space()
    person = sit(space, ["", "", "yes", "0", "9", "-1", "1.0", "²", "٣", "x"], selection=GATES)
    assert not space.reload().entries
    assert len(person.texts("problem")) == 10


def test_enter_keeps_an_answer_and_its_confirmation(new_space: NewSpace) -> None:
    space = new_space()
    first, second = [s.id for s in steps_of(space.assessment, space.catalogue, GATES, TODAY)][:2]
    space.answer(first, Answer.YES, author="A. Meyer")
    space.confirm(first, name="B. Beck")
    person = sit(space, ["b", "", "q"], selection=GATES)
    assert space.entry(first).second_person is not None
    assert any("A. Meyer" in t for t in person.texts("note"))
    assert space.entry(second).answer is None


def test_back_skip_and_quit(new_space: NewSpace) -> None:
    space = new_space()
    ids = [s.id for s in steps_of(space.assessment, space.catalogue, GATES, TODAY)]
    person = sit(space, ["b", "s", "1", "b", "b", "3", "q", "1"], selection=GATES)
    assert space.entry(ids[0]).answer is Answer.NO  # gone back to and answered after having been skipped
    assert space.entry(ids[1]).answer is Answer.YES
    assert space.entry(ids[2]).answer is None  # nothing is read after q
    assert load_interface()("ask.at_first") in person.texts("note")
    assert load_interface()("ask.stopped") in person.texts("note")


def test_question_mark_shows_guidance_expected_evidence_and_related_answers(new_space: NewSpace) -> None:
    space = new_space(profile="combined")
    space.answer("GDPR.32.1.a", Answer.PARTLY, author="A. Meyer")
    person = sit(space, ["?", "q"], selection=Selection(theme="crypto", quick=True, framework="HIPAA"))
    shown = "\n".join(person.texts("plain"))
    control = load_catalogue("combined").control("HIPAA.164.312.a.2.iv")
    assert control.guidance in shown
    assert control.evidence[0] in shown
    assert "GDPR.32.1.a: Partly" in shown
    assert "Addressable" in shown


def test_reason_is_insisted_on_where_the_rule_needs_one(new_space: NewSpace) -> None:
    space = new_space(profile="hipaa")
    addressable = Selection(theme="malware")
    person = sit(space, ["2", "", "", "isolated network instead"], selection=addressable)
    entry = space.entry("HIPAA.164.308.a.5.ii.B")
    assert (entry.answer, entry.reason) == (Answer.ALTERNATIVE, "isolated network instead")
    assert len(person.texts("problem")) == 2


def test_colon_b_leaves_a_text_prompt_for_the_question_and_colon_q_the_sitting(new_space: NewSpace) -> None:
    space = new_space()
    ids = [s.id for s in steps_of(space.assessment, space.catalogue, GATES, TODAY)]
    sit(space, ["2", ":b", "1", "2", ":q", "1"], selection=GATES)
    assert space.entry(ids[0]).answer is Answer.YES
    assert space.entry(ids[1]).answer is None


def test_wrong_days_are_asked_again_and_german_ones_understood(new_space: NewSpace) -> None:
    space = new_space()
    sit(space, ["4", "soon", "2027-02-30", "", "31.01.2027"], selection=GATES, language="de")
    (entry,) = space.reload().entries.values()
    assert entry.due == dt.date(2027, 1, 31)


def test_maturity_is_asked_for_on_request(new_space: NewSpace) -> None:
    space = new_space()
    sit(space, ["1", "7", "4", "1", ""], selection=GATES, ask_maturity=True)
    assert [e.maturity for e in space.reload().entries.values()] == [4, None]


def test_documents_are_attached_by_path_with_their_days(new_space: NewSpace, document: Path) -> None:
    space = new_space()
    person = sit(
        space,
        ["1", "/no/such/file", f"'{document}'", "2026-03-01", "2027-03-01", "The assessment", "", "q"],
        selection=GATES,
        ask_documents=True,
    )
    (entry,) = space.reload().entries.values()
    (attached,) = entry.evidence
    assert (attached.title, attached.effective, attached.expires) == (
        "The assessment", dt.date(2026, 3, 1), dt.date(2027, 3, 1),
    )  # fmt: skip
    assert (space.folder / attached.path).read_bytes() == document.read_bytes()
    assert any("/no/such/file" in t for t in person.texts("problem"))


def test_letters_of_the_other_prompts_work_at_the_document_prompt_too(new_space: NewSpace) -> None:
    space = new_space()
    steps = [s for s in steps_of(space.assessment, space.catalogue, GATES, TODAY) if isinstance(s, Control)]
    person = sit(space, ["1", "?", "s", "1", "b", "3", "1", "q", "1"], selection=GATES, ask_documents=True)
    assert any(steps[0].evidence[0] in t for t in person.texts("plain"))
    answers = [space.entry(s.id).answer for s in steps[:4]]
    assert answers == [Answer.YES, Answer.NO, Answer.YES, None]
    assert not person.texts("problem")


def test_related_documents_are_offered_and_taken_over_only_by_number(
    new_space: NewSpace, document: Path
) -> None:
    space = new_space(profile="combined")
    space.answer("GDPR.32.1.a", Answer.YES, author="A. Meyer")
    space.add_evidence("GDPR.32.1.a", document, author="A. Meyer", effective=TODAY)
    crypto = Selection(theme="crypto", framework="HIPAA", quick=True)
    person = sit(space, ["1", "", "1", "9", "1", "", "q"], selection=crypto, ask_documents=True)
    at_rest, in_transit = space.entry("HIPAA.164.312.a.2.iv"), space.entry("HIPAA.164.312.e.2.ii")
    assert at_rest.evidence == ()  # an empty line takes nothing over
    assert [d.shared_from for d in in_transit.evidence] == ["GDPR.32.1.a"]
    assert len(person.texts("problem")) == 1


def test_denying_a_statement_shortens_the_sitting_that_is_under_way(new_space: NewSpace) -> None:
    space = new_space()
    total = len(steps_of(space.assessment, space.catalogue, Selection(), TODAY))
    person = sit(space, ["2"] * len(space.catalogue.scope_questions))
    last = person.texts("progress")[-1]
    dropped = sum(1 for c in space.catalogue.controls.values() if c.only_if)
    children = sum(1 for q in space.catalogue.scope_questions.values() if q.after)
    assert f"of {total - dropped - children}," in last
    assert all(not s.applies for s in space.reload().scope.values())


def test_no_question_is_put_twice_and_none_is_left_out(new_space: NewSpace) -> None:
    space = new_space(profile="combined")

    def partly() -> Iterator[str]:
        while True:
            yield from ("2", "")

    person = sit(space, partly())
    asked = person.texts("question")
    assert len(asked) == len(set(asked))
    report = score(space.assessment, space.catalogue, on=TODAY)
    assert report.complete


def test_answer_that_another_program_gave_meanwhile_is_not_undone(new_space: NewSpace) -> None:
    space = new_space()
    first = steps_of(space.assessment, space.catalogue, GATES, TODAY)[0].id

    def typed() -> Iterator[str]:
        yield "2"
        Workspace.open(space.folder).answer(first, Answer.NO, author="B. Beck")
        yield "my remark"
        yield "q"

    person = sit(space, typed(), selection=GATES)
    assert space.reload().entries[first].author == "B. Beck"
    assert any("another program" in t for t in person.texts("problem"))
    assert any("B. Beck" in t for t in person.texts("note"))  # and theirs is shown


def test_german_sitting_says_nothing_in_english(new_space: NewSpace) -> None:
    space = new_space(profile="combined")
    person = sit(space, ["?", "2", "?", "q"], language="de")
    shown = "\n".join(t for _, t in person.seen)
    assert "[en]" not in shown
    assert not re.search(r"\b(the|your|Enter|answered)\b", shown)


# ---------------------------------------------------------------------------------------------- a real terminal


class RealTerminal:
    """A process on a pseudo-terminal, driven by what it shows."""

    def __init__(self, arguments: list[str], term: str = "xterm", columns: int = 90) -> None:
        self.pid, self._handle = pty.fork()
        if self.pid == 0:
            # Tests started in the background of a script inherit that Ctrl-C is ignored; a terminal's program does not.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            environment = os.environ | {
                "TERM": term,
                "COLUMNS": str(columns),
                "FEDVOX_AUTHOR": "A. Meyer",
                "LANG": "C.UTF-8",
            }
            os.execve(sys.executable, [sys.executable, "-m", "fedvox_compliance", *arguments], environment)
        self.shown = ""
        self._read_to = 0

    def expect(self, pattern: str, timeout_s: float = 60.0) -> re.Match[str]:
        """Wait until the text shown since the last match holds a pattern."""
        deadline = time.monotonic() + timeout_s
        while (found := re.compile(pattern).search(self.shown, self._read_to)) is None:
            if time.monotonic() > deadline or not self._read():
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"{pattern!r} was not shown; the end of what was: {self.shown[-800:]!r}")
        self._read_to = found.end()
        return found

    def type(self, text: str) -> None:
        os.write(self._handle, text.encode() + b"\r")

    def wait(self, timeout_s: float = 60.0) -> int:
        """Read to the end and return the exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"it did not end; the end of what was shown: {self.shown[-800:]!r}")
        _, status = os.waitpid(self.pid, 0)
        os.close(self._handle)
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._handle], [], [], 1.0)
        if not ready:
            return True
        try:
            data = os.read(self._handle, 65536)
        except OSError:  # the other end is closed
            return False
        self.shown += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)


PROMPT = (
    r"(?P<choose>Answer \(1-\d.*?\):)|(?P<reason>(?:What is missing|Why is it not).*?quit\):)"
    r"|(?P<document>(?:Path of a document|Numbers, the path).*?:)|(?P<end>self-assessed)"
)


@pytest.mark.integration
def test_clinic_answers_the_combined_profile_in_one_sitting_in_a_terminal(
    new_space: NewSpace, document: Path
) -> None:
    """317 questions, typed one by one, with a pause, help, going back, a wrong key and one document on the way."""
    space = new_space(profile="combined")
    terminal, answered = RealTerminal(["answer", str(space.folder), "--plain"]), 0
    attached = False
    terminal.expect("Self-assessment aid")
    terminal.expect("Type a number and Enter")
    while True:
        found = terminal.expect(PROMPT)
        if found["end"]:
            break
        if found["choose"]:
            answered += 1
            if answered == 2:
                terminal.type("?")
                terminal.expect("recorded with your name")
                terminal.expect(PROMPT)
                terminal.type("x")
                terminal.expect("Please type a number")
                terminal.expect(PROMPT)
                terminal.type("b")
                terminal.expect("Present answer: Yes")
                terminal.expect(PROMPT)
                terminal.type("")
                terminal.expect(PROMPT)
            terminal.type("1" if answered % 5 else "2" if answered > 40 else "1")
        elif found["reason"]:
            terminal.type("wird ergänzt – nächste Woche")
        elif answered == 41 and not attached:
            attached = True
            terminal.type(str(document))
            for prompt in ("In effect since", "Valid until", "What is it"):
                terminal.expect(prompt)
                terminal.type("")
            terminal.expect("Attached: ")
        else:
            terminal.type("")
    assert terminal.wait() == 0
    state = verify_history(space.folder)
    assert len(state.entries) == 283
    assert len(state.scope) == len(space.catalogue.scope_questions)
    assert score(state, space.catalogue, on=dt.datetime.now(dt.UTC).date()).complete
    assert any(e.reason == "wird ergänzt – nächste Woche" for e in state.entries.values())
    assert sum(len(e.evidence) for e in state.entries.values()) == 1
    assert "\x1b[" not in terminal.shown.replace("\x1b[?2004h", "").replace(
        "\x1b[?2004l", ""
    )  # plain lines only


class Tmux:
    """A terminal window that a person would use: its screen is read, keys are sent to it."""

    def __init__(self) -> None:
        self._opened = 0

    @property
    def _name(self) -> str:
        return f"fedvox-{os.getpid()}-{self._opened}"  # its own server each time; the last one takes a while to end

    def call(self, *words: str) -> str:
        command = ["tmux", "-L", self._name, "-f", "/dev/null", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def open(self, folder: Path) -> None:
        self._opened += 1
        command = shlex.join(
            [sys.executable, "-m", "fedvox_compliance", "answer", str(folder), "--author", "A. Meyer"]
        )
        self.call("new-session", "-d", "-x", "100", "-y", "50", f"{command}; echo LEFT-WITH=$?; sleep 600")

    def close(self) -> None:
        """Close the window in the middle of whatever it shows, as people do."""
        subprocess.run(["tmux", "-L", self._name, "kill-server"], capture_output=True)

    def screen(self) -> str:
        return self.call("capture-pane", "-p", "-J").rstrip()

    def wait(self, seen: str, timeout_s: float = 120) -> str:
        """The screen, once it shows something new that ends in a prompt or in the end."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            now = self.screen()
            if now != seen and re.search(r"(:|LEFT-WITH=\d+)$", now):
                return now
            time.sleep(0.005)
        raise AssertionError(seen)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_clinic_answers_the_combined_profile_in_a_tmux_window_that_is_closed_on_the_way(
    new_space: NewSpace,
) -> None:
    space = new_space(profile="combined")
    window = Tmux()
    window.open(space.folder)
    try:
        screen, typed = window.wait(""), 0
        while "LEFT-WITH" not in screen:
            prompt = screen.splitlines()[-1]
            if prompt.startswith("Answer (1-"):
                typed += 1
                if typed in (60, 200):
                    told = len(space.reload().entries)
                    window.close()
                    window.open(space.folder)
                    screen = window.wait("")
                    assert len(space.reload().entries) == told
                    continue
                window.call("send-keys", "1", "Enter")
            else:
                window.call("send-keys", "Enter")
            screen = window.wait(screen)
        assert screen.endswith("LEFT-WITH=0")
        assert "self-assessed" in screen
    finally:
        window.close()
    state = verify_history(space.folder)
    assert len(state.entries) == 283
    assert len(state.scope) == len(space.catalogue.scope_questions)


@pytest.mark.integration
def test_sitting_is_killed_and_goes_on_where_it_was(new_space: NewSpace) -> None:
    space = new_space()
    terminal = RealTerminal(["answer", str(space.folder), "--no-documents", "--quick"])
    for _ in range(4):
        terminal.expect(PROMPT)
        terminal.type("1")
    terminal.expect(PROMPT)
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.wait()
    assert len(verify_history(space.folder).scope) == 4
    again = RealTerminal(["answer", str(space.folder), "--no-documents", "--quick"])
    again.expect(r"Question 5 of \d+, 4 answered")
    again.expect(PROMPT)
    again.type("q")
    again.expect("goes on where you were")
    assert again.wait() == 3


@pytest.mark.integration
@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_styled_prompts_come_only_where_the_terminal_can(new_space: NewSpace, term: str) -> None:
    terminal = RealTerminal(["answer", str(new_space().folder), "--rich"], term=term)
    if term == "dumb":
        terminal.expect("shows plain lines only")
    terminal.expect(PROMPT)
    terminal.type("q")
    assert terminal.wait() == 3
    assert ("\x1b[1m" in terminal.shown) is (term != "dumb")
    assert ("░" in terminal.shown) is (term != "dumb")


@pytest.mark.integration
def test_control_d_saves_and_quits_and_control_c_stops(new_space: NewSpace) -> None:
    space = new_space()
    terminal = RealTerminal(["answer", str(space.folder)])
    terminal.expect(PROMPT)
    terminal.type("1")
    terminal.expect(PROMPT)
    terminal.type("\x04")
    assert terminal.wait() == 3
    terminal = RealTerminal(["answer", str(space.folder)])
    terminal.expect(PROMPT)
    terminal.type("\x03")
    terminal.expect("Stopped. What was answered is saved")
    assert terminal.wait() == 130
    assert len(load_assessment(space.folder).scope) == 1


@pytest.mark.integration
def test_answers_come_through_a_pipe_as_well(new_space: NewSpace) -> None:
    space = new_space()
    typed = "1\n2\n\xff\n2\nq\n".encode("latin-1")
    done = subprocess.run(
        [sys.executable, "-m", "fedvox_compliance", "answer", str(space.folder), "--author", "A"],
        input=typed,
        capture_output=True,
    )
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr
    assert [s.applies for s in load_assessment(space.folder).scope.values()] == [True, False, False]


def test_styled_terminal_shows_markup_of_an_answer_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    StyledTerminal().say("[bold red]not bold[/] [link=http://x]y[/link]")
    assert "[bold red]not bold[/] [link=http://x]y[/link]" in capsys.readouterr().out


def test_plain_terminal_leaves_lines_whole_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    PlainTerminal().say("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1
