"""What a page shows: plain values for the templates, in the language of the session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedvox_compliance.assessment import Answer, Entry, same_person
from fedvox_compliance.catalogue import Control
from fedvox_compliance.gaps import plan
from fedvox_compliance.interface import format_date, format_number, load_interface
from fedvox_compliance.judgement import Status
from fedvox_compliance.messages import Messages
from fedvox_compliance.report.charts import Spoke, radar
from fedvox_compliance.report.view import summarise
from fedvox_compliance.rules import allowed_answers
from fedvox_compliance.score_report import ScoreReport
from fedvox_compliance.sharing import suggest_documents
from fedvox_compliance.web.state import FormServer, Session, version_of
from fedvox_compliance.workspace import Workspace

FILTERS = ("all", "open", "gates")


@dataclass(frozen=True)
class Choice:
    """One answer that can be ticked."""

    value: str
    label: str
    hint: str
    checked: bool


@dataclass(frozen=True)
class Document:
    """One document attached to an answer."""

    title: str
    period: str
    sha256: str


@dataclass(frozen=True)
class Shared:
    """A document of a related question, offered and never taken over by itself."""

    title: str
    sha256: str
    ask: str


@dataclass(frozen=True)
class Question:
    """One question as a card."""

    id: str
    citation: str
    framework: str
    title: str
    question: str
    guidance: str
    expected: str
    related: str
    badges: tuple[tuple[str, str], ...]
    choices: tuple[Choice, ...]
    reason: str
    maturity: str
    due: str
    version: str
    by: str
    assurance: str
    notes: tuple[str, ...]
    documents: tuple[Document, ...]
    shared: tuple[Shared, ...]
    second_done: str
    second_ask: str
    second_wait: str
    answered: bool


@dataclass(frozen=True)
class SectionLink:
    """One theme in the list of sections."""

    theme: str
    name: str
    answered: int
    total: int
    gates_left: int
    score: str

    @property
    def done(self) -> bool:
        """Whether nothing in it is open."""
        return self.answered == self.total


@dataclass(frozen=True)
class ScorePanel:
    """The live score."""

    score: str
    assured: str
    tier: str
    sentence: str
    gates: str
    gates_left: int
    answered: int
    total: int
    percent: int
    frameworks: tuple[tuple[str, str, int], ...]
    chart: Markup
    disclaimer: str


class Pages:
    """Builds the values of one request's page.

    Args:
        server: the state.
        session: whose page it is.
        space: the opened assessment.
    """

    def __init__(self, server: FormServer, session: Session, space: Workspace) -> None:
        self.server, self.session, self.space = server, session, space
        self.say: Messages = load_interface(session.language)
        self.report: ScoreReport = server.score(space)

    def common(self) -> dict[str, Any]:
        """What every page has."""
        return {
            "t": self.say,
            "session": self.session,
            "clinic": self.space.assessment.clinic,
            "panel": self.panel(),
            "sections": self.sections(),
            "max_mib": self.server.max_upload // 2**20,
        }

    def panel(self) -> ScorePanel:
        """The live score."""
        report, say = self.report, self.say
        total = sum(p.applicable for p in report.frameworks.values())
        answered = sum(p.answered for p in report.frameworks.values())
        number, assurance = self.number(report.overall), say(f"assurance.{report.assurance.label}")
        left = len(report.failed_gates)
        return ScorePanel(
            score=number,
            assured=say("report.self_assessed", assurance=assurance),
            tier=say(f"tier.{report.tier}"),
            sentence=say("web.score_live", score=number, assurance=assurance, answered=answered, total=total),
            gates=say("web.gates_left", count=left) if left else say("web.gates_done"),
            gates_left=left,
            answered=answered,
            total=total,
            percent=100 * answered // total if total else 0,
            frameworks=tuple(
                (self.say(f"framework.{name}"), self.number(p.score), round(100 * (p.score or 0)))
                for name, p in report.frameworks.items()
            ),
            chart=self.chart(labels=False),
            disclaimer=say("disclaimer"),
        )

    def chart(self, *, labels: bool) -> Markup:
        """The radar by theme; its text is escaped where it is drawn."""
        spokes = self._spokes()
        best, worst = summarise(spokes)
        text = self.say("report.radar_text", count=len(spokes), best=best, worst=worst)
        title = self.say("report.radar_title")
        return Markup(
            radar(spokes, title=title, description=text, ident="radar" if labels else "mini", labels=labels)
        )

    def sections(self) -> list[SectionLink]:
        """All themes with their progress."""
        failed = {g.control for g in self.report.failed_gates}
        links = []
        for theme, part in self.report.themes.items():
            if part.applicable:
                gates = sum(self.space.catalogue.controls[i].theme == theme for i in failed)
                name, shown = self.say(f"theme.{theme}"), self.number(part.score)
                links.append(SectionLink(theme, name, part.answered, part.applicable, gates, shown))
        return links

    def next_steps(self, count: int = 5) -> list[tuple[str, str, str, str]]:
        """What helps most now: id, title, what to do, theme."""
        controls = self.space.catalogue.controls
        steps = plan(self.report, self.space.catalogue, limit=count)
        return [
            (
                s.control,
                self.say.title(controls[s.control]),
                self.say(f"gap.{s.action.value}"),
                controls[s.control].theme,
            )
            for s in steps
        ]

    def scope(self) -> list[dict[str, Any]]:
        """The scope questions, each with what has been stated; those that follow from another are marked."""
        stated = self.space.assessment.stated_scope
        return [
            {
                "id": q.id,
                "question": self.say.scope_question(q),
                "stated": stated.get(q.id),
                "moot": q.after is not None and stated.get(q.after) is False,
                "indented": q.after is not None,
            }
            for q in self.space.catalogue.scope_questions.values()
        ]

    def questions(self, theme: str, show: str) -> list[Question]:
        """The questions of a theme that are in scope."""
        found = []
        for control in self.space.catalogue.controls.values():
            judged = self.report.judgements[control.id]
            if control.theme != theme or judged.status is Status.OUT_OF_SCOPE:
                continue
            if show == "open" and judged.status is not Status.OPEN:
                continue
            if show == "gates" and not (control.gate or control.severity == "critical"):
                continue
            found.append(self.question(control))
        return found

    def question(self, control: Control) -> Question:
        """One card."""
        say, entry = self.say, self.space.assessment.entries.get(control.id, Entry())
        judged = self.report.judgements[control.id]
        done, ask, wait = self._second(entry)
        return Question(
            id=control.id,
            citation=control.citation,
            framework=control.framework,
            title=say.title(control),
            question=say.question(control),
            guidance=say.guidance(control),
            expected=self._expected(control),
            related=self._related(control),
            badges=self._badges(control),
            choices=tuple(self._choice(a, entry) for a in allowed_answers(control)),
            reason=entry.reason,
            maturity="" if entry.maturity is None else str(entry.maturity),
            due=entry.due.isoformat() if entry.due else "",
            version=version_of(self.space.assessment.entries.get(control.id)),
            by=self._by(entry),
            assurance=say(f"assurance.{judged.assurance.label}") if judged.status is Status.SCORED else "",
            notes=tuple(say(f"note.{n.value}") for n in judged.notes),
            documents=tuple(
                Document(
                    e.title or e.path.rsplit("/", 1)[-1],
                    f"{format_date(e.effective, say.language)} – {format_date(e.last_day, say.language)}",
                    e.sha256,
                )
                for e in entry.evidence
            ),
            shared=self._shared(control),
            second_done=done,
            second_ask=ask,
            second_wait=wait,
            answered=entry.answer is not None,
        )

    def number(self, value: float | None) -> str:
        """A score as it is written in this language."""
        return format_number(value, self.say.language)

    def _spokes(self) -> Sequence[Spoke]:
        return [
            Spoke(
                self.say(f"theme.{t}"), p.score, p.interval.high if p.interval else None, self.number(p.score)
            )
            for t, p in self.report.themes.items()
        ]

    def _choice(self, answer: Answer, entry: Entry) -> Choice:
        name = answer.value
        return Choice(
            name, self.say(f"answer.{name}"), self.say(f"answer_hint.{name}"), entry.answer is answer
        )

    def _badges(self, control: Control) -> tuple[tuple[str, str], ...]:
        badges = [(control.citation, "")]
        if control.gate:
            badges.append((self.say("web.gate_badge"), "warn"))
        elif control.severity == "critical":
            badges.append((self.say("web.critical_badge"), "warn"))
        return (*badges, (self.say(f"obligation.{control.obligation.value}"), ""))

    def _expected(self, control: Control) -> str:
        items = "; ".join(self.say.expected(control))
        return self.say("web.evidence_expected", items=items) if items else ""

    def _related(self, control: Control) -> str:
        return self.say("web.asks_also", items=", ".join(control.maps_to)) if control.maps_to else ""

    def _by(self, entry: Entry) -> str:
        if entry.answer is None:
            return ""
        return self.say(
            "web.answered_by", by=f"{entry.author}, {format_date(entry.answered_on, self.say.language)}"
        )

    def _shared(self, control: Control) -> tuple[Shared, ...]:
        space, say = self.space, self.say
        found = suggest_documents(space.assessment, space.catalogue, control.id, on=space.today(), limit=3)
        return tuple(
            Shared(
                s.document.title or s.document.path,
                s.document.sha256,
                say("web.evidence_shared", source=s.source),
            )
            for s in found
        )

    def _second(self, entry: Entry) -> tuple[str, str, str]:
        """What the second person's corner says: done, or the sentence to confirm, or who is needed."""
        say, name = self.say, self.session.name
        second = entry.second_person
        if second is not None:
            return (
                say("web.second_done", name=second.name, date=format_date(second.date, say.language)),
                "",
                "",
            )
        if entry.answer is None or not entry.evidence:
            return "", "", ""
        if not name or same_person(name, entry.author):
            return "", "", say("web.second_needs_other", author=entry.author or "")
        return "", say("web.second_confirm", name=name), ""
