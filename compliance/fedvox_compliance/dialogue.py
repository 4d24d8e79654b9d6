"""The conversation: one question at a time, with guidance, back, skip and quit, each answer saved as it is given.

At a numbered prompt:  a number answers,  Enter keeps what is there,  ? helps,  b goes back,  s skips,  q quits.
At a free text prompt: what is typed is the text; `:b` goes back to the question, `:q` quits.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from fedvox_compliance.assessment import Answer, Entry, Evidence
from fedvox_compliance.catalogue import Control, ScopeQuestion
from fedvox_compliance.errors import AssessmentError, ComplianceError, ConflictError, EvidenceError
from fedvox_compliance.interface import format_date
from fedvox_compliance.messages import Messages
from fedvox_compliance.questionnaire import Progress, Selection, is_answered, steps_of
from fedvox_compliance.rules import allowed_answers
from fedvox_compliance.sharing import Suggestion, suggest_documents
from fedvox_compliance.terminal import EndOfInput, Terminal
from fedvox_compliance.workspace import Workspace

_WITH_DOCUMENTS = frozenset({Answer.YES, Answer.ALTERNATIVE, Answer.PARTLY})
_NEEDS_REASON = frozenset({Answer.ALTERNATIVE, Answer.NOT_APPLICABLE})


class Move(Enum):
    """Where to go after a question."""

    NEXT = auto()
    BACK = auto()
    QUIT = auto()


class _Leave(Exception):
    """Typed `:b` or `:q` at a free text prompt."""

    def __init__(self, move: Move) -> None:
        super().__init__(move)
        self.move = move


@dataclass(frozen=True)
class Asking:
    """How to ask.

    Attributes:
        ask_maturity: whether the maturity is asked for as well.
        ask_documents: whether documents are asked for.
    """

    author: str
    selection: Selection
    ask_maturity: bool = False
    ask_documents: bool = True


class Dialogue:
    """A sitting at the questionnaire."""

    def __init__(self, workspace: Workspace, terminal: Terminal, say: Messages, asking: Asking) -> None:
        self._space = workspace
        self._terminal = terminal
        self._say = say
        self._asking = asking
        self._progress = Progress(self._steps(), workspace.assessment)
        self._theme: str | None = None

    def run(self) -> bool:
        """Put all questions of the selection.

        Returns:
            True when the end was reached, False when the person stopped before.
        """
        self._terminal.say(self._say("ask.keys"), "note")
        try:
            while (step := self._progress.current) is not None:
                self._announce(step)
                if not self._go(self._ask(step)):
                    return False
        except EndOfInput:
            self._terminal.say(self._say("ask.stopped"), "note")
            return False
        return True

    def _steps(self) -> tuple[ScopeQuestion | Control, ...]:
        space = self._space
        return steps_of(space.assessment, space.catalogue, self._asking.selection, space.today())

    def _go(self, move: Move) -> bool:
        if move is Move.QUIT:
            self._terminal.say(self._say("ask.stopped"), "note")
            return False
        if move is Move.BACK:
            if not self._progress.back():
                self._terminal.say(self._say("ask.at_first"), "note")
        else:
            self._progress.forward()
        return True

    def _announce(self, step: ScopeQuestion | Control) -> None:
        theme = step.theme if isinstance(step, Control) else "scope"
        if theme != self._theme:
            self._theme = theme
            name = self._say("ask.scope_heading") if theme == "scope" else self._say(f"theme.{theme}")
            self._terminal.say(name, "heading")
        done = sum(is_answered(self._space.assessment, s) for s in self._progress.steps)
        total = len(self._progress.steps)
        number = self._progress.position + 1
        text = self._say("ask.progress", number=number, total=total, done=done)
        self._terminal.progress(done, total, text)

    def _ask(self, step: ScopeQuestion | Control) -> Move:
        try:
            if isinstance(step, ScopeQuestion):
                return self._ask_scope(step)
            return self._ask_control(step)
        except _Leave as left:
            return left.move if left.move is Move.QUIT else self._ask(step)

    def _ask_scope(self, question: ScopeQuestion) -> Move:
        said = self._space.assessment.scope.get(question.id)
        self._terminal.say(self._say.scope_question(question), "question")
        if said is not None:
            answer = self._say("answer.yes" if said.applies else "answer.no")
            self._terminal.say(self._say("ask.current", answer=answer, author=said.author), "note")
        choices = [self._say("answer.yes"), self._say("answer.no")]
        chosen = self._choose(choices, lambda: self._say("ask.scope_help"), has_answer=said is not None)
        if isinstance(chosen, Move):
            return chosen
        self._space.state_scope(question.id, chosen == 0, author=self._asking.author)
        self._progress.replan(self._steps())
        return Move.NEXT

    def _ask_control(self, control: Control) -> Move:
        entry = self._space.entry(control.id)
        self._show_control(control, entry)
        answers = allowed_answers(control)
        choices = [f"{self._say(f'answer.{a}')} – {self._say(f'answer_hint.{a}')}" for a in answers]
        chosen = self._choose(choices, lambda: self._help(control), has_answer=entry.answer is not None)
        if isinstance(chosen, Move):
            return chosen
        answer = answers[chosen]
        reason = self._ask_reason(answer)
        due = self._ask_day(self._say("ask.due"), required=True) if answer is Answer.PLANNED else None
        maturity = self._ask_maturity() if self._asking.ask_maturity else entry.maturity
        try:
            self._space.answer(
                control.id, answer, author=self._asking.author, reason=reason, maturity=maturity, due=due
            )
        except (AssessmentError, ConflictError) as wrong:
            self._terminal.say(self._told(wrong), "problem")
            return self._ask_control(control)
        if answer in _WITH_DOCUMENTS and self._asking.ask_documents:
            self._ask_documents(control)
        return Move.NEXT

    def _show_control(self, control: Control, entry: Entry) -> None:
        marks = [control.citation, self._say(f"severity.{control.severity}")]
        if control.gate is not None:
            marks.append(self._say("ask.gate", kind=self._say(f"gate_kind.{control.gate}")))
        self._terminal.say(self._say.question(control), "question")
        self._terminal.say(f"{self._say.title(control)} · " + " · ".join(marks), "note")
        if entry.answer is not None and entry.author is not None:
            answer = self._say(f"answer.{entry.answer}")
            self._terminal.say(self._say("ask.current", answer=answer, author=entry.author), "note")
        for document in entry.evidence:
            self._terminal.say("  " + _describe(document, self._say), "note")

    def _help(self, control: Control) -> str:
        say = self._say
        lines = [say.guidance(control), say("ask.expects", items=", ".join(say.expected(control)))]
        if control.alternative_allowed:
            lines.append(say("ask.addressable"))
        related = [
            f"{i}: {say(f'answer.{e.answer}')}"
            for i in control.maps_to
            if (e := self._space.assessment.entries.get(i)) is not None and e.answer is not None
        ]
        if related:
            lines.append(say("ask.related", items="; ".join(related[:8])))
        return "\n".join(lines)

    def _choose(self, choices: list[str], helping: Callable[[], str], *, has_answer: bool) -> int | Move:
        """Put numbered choices until one is made; the index, or where to go instead."""
        for number, choice in enumerate(choices, start=1):
            self._terminal.say(f"  {number}  {choice}", "choice")
        prompt = self._say("ask.prompt_again" if has_answer else "ask.prompt", last=len(choices))
        while True:
            typed = self._terminal.ask(prompt).casefold()
            if typed == "?":
                self._terminal.say(helping())
            elif typed == "b":
                return Move.BACK
            elif typed == "q":
                return Move.QUIT
            elif typed == "s" or (typed == "" and has_answer):
                return Move.NEXT
            elif typed.isdecimal() and typed.isascii() and 1 <= int(typed[:3]) <= len(choices):
                return int(typed[:3]) - 1
            else:
                self._terminal.say(self._say("ask.not_understood", last=len(choices)), "problem")

    def _text(self, prompt: str, help_text: str = "") -> str:
        """Ask for free text; `?` alone shows help where there is some."""
        while True:
            typed = self._terminal.ask(prompt)
            if typed in (":b", ":q"):
                raise _Leave(Move.BACK if typed == ":b" else Move.QUIT)
            if typed != "?" or not help_text:
                return typed
            self._terminal.say(help_text)

    def _ask_reason(self, answer: Answer) -> str:
        if answer in _NEEDS_REASON:
            while not (reason := self._text(self._say(f"ask.reason_{answer}"))):
                self._terminal.say(self._say("ask.reason_missing"), "problem")
            return reason
        return self._text(self._say("ask.reason_partly")) if answer is Answer.PARTLY else ""

    def _ask_day(
        self, prompt: str, *, required: bool = False, default: dt.date | None = None
    ) -> dt.date | None:
        while True:
            typed = self._text(prompt)
            if not typed and not required:
                return default
            for form in ("%Y-%m-%d", "%d.%m.%Y"):
                try:
                    return dt.datetime.strptime(typed, form).date()
                except ValueError:
                    continue
            self._terminal.say(self._say("ask.no_date"), "problem")

    def _ask_maturity(self) -> int | None:
        for level in range(6):
            self._terminal.say(f"  {self._say(f'web.maturity_{level}')}", "choice")
        while True:
            typed = self._text(self._say("ask.maturity"))
            if not typed:
                return None
            if typed in ("0", "1", "2", "3", "4", "5"):
                return int(typed)
            self._terminal.say(self._say("ask.not_understood", last=5), "problem")

    def _ask_documents(self, control: Control) -> None:
        """Documents one after another: numbers take suggestions over, a path adds a new one, Enter ends it."""
        while True:
            space = self._space
            offered = suggest_documents(space.assessment, space.catalogue, control.id, on=space.today())
            if offered:
                self._terminal.say(self._say("ask.suggested"), "note")
            for number, suggestion in enumerate(offered, start=1):
                described = _describe(suggestion.document, self._say)
                self._terminal.say(f"  {number}  {described}, {suggestion.source}", "choice")
            prompt = self._say("ask.document_or_number" if offered else "ask.document")
            typed = self._text(prompt, self._say("ask.expects", items=", ".join(self._say.expected(control))))
            if typed in ("", "s"):
                return
            if typed in ("b", "q"):  # the letters of the other prompts; no document has such a name
                raise _Leave(Move.BACK if typed == "b" else Move.QUIT)
            try:
                if not self._take_over(control, typed, offered):
                    self._add_document(control, typed)
            except (EvidenceError, AssessmentError, ConflictError) as wrong:
                self._terminal.say(self._told(wrong), "problem")

    def _told(self, wrong: ComplianceError) -> str:
        """An error in the language of the conversation; with its remedy where both are in one language."""
        language = self._say.language
        return str(wrong) if language == "en" else wrong.told_in(language)

    def _take_over(self, control: Control, typed: str, offered: tuple[Suggestion, ...]) -> bool:
        numbers = typed.replace(",", " ").split()
        if not offered or not all(n.isdecimal() and n.isascii() and len(n) < 3 for n in numbers):
            return False
        chosen = [int(n) for n in numbers]
        if not all(1 <= n <= len(offered) for n in chosen):
            raise AssessmentError(self._say("ask.not_understood", last=len(offered)))
        for number in dict.fromkeys(chosen):
            self._space.attach_evidence(
                control.id, offered[number - 1].taken_over(), author=self._asking.author
            )
        return True

    def _add_document(self, control: Control, typed: str) -> None:
        file = Path(typed.strip("'\"")).expanduser()
        if not file.is_file():
            raise EvidenceError(self._say("ask.no_file", path=str(file)))
        today = self._space.today()
        effective = self._ask_day(self._say("ask.effective"), default=today) or today
        expires = self._ask_day(self._say("ask.expires"))
        title = self._text(self._say("ask.title"))
        self._space.add_evidence(
            control.id, file, author=self._asking.author, effective=effective, expires=expires, title=title
        )
        self._terminal.say(self._say("ask.attached", name=file.name), "note")


def _describe(document: Evidence, say: Messages) -> str:
    name = document.title or document.path.rsplit("/", 1)[-1]
    return say("ask.valid_until", name=name, day=format_date(document.last_day, say.language))
