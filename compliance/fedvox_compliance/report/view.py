"""What every report shows, decided once: plain text in reading order, no markup of any kind.

HTML, PDF and OSCAL are renderings of this, so that they cannot tell different stories. Escaping is each renderer's
own duty; nothing here is markup, and everything a clinic typed is here as it was typed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedvox_compliance import __version__
from fedvox_compliance.assessment import Assessment, Entry, Evidence
from fedvox_compliance.catalogue import Catalogue, Control
from fedvox_compliance.evidence import EvidenceState, state_of
from fedvox_compliance.gaps import Step, plan
from fedvox_compliance.interface import format_date, format_number, load_interface
from fedvox_compliance.judgement import Status
from fedvox_compliance.messages import Messages
from fedvox_compliance.report.charts import Spoke
from fedvox_compliance.score_report import ControlScore, GateState, PartScore, ScoreReport


@dataclass(frozen=True)
class PartRow:
    """One law, standard or theme."""

    name: str
    score: str
    range: str
    answered: str
    excluded: str
    spoke: Spoke


@dataclass(frozen=True)
class GateRow:
    """One gate."""

    control: str
    title: str
    question: str
    state: str
    effect: str
    passed: bool
    applies: bool


@dataclass(frozen=True)
class StepRow:
    """One line of the plan."""

    control: str
    title: str
    action: str
    gain: str
    effort: str
    after: str
    step: Step


@dataclass(frozen=True)
class DocumentRow:
    """One document."""

    title: str
    path: str
    sha256: str
    period: str
    state: str


@dataclass(frozen=True)
class ControlRow:
    """One question with everything that was said about it."""

    control: str
    citation: str
    title: str
    question: str
    badges: tuple[str, ...]
    answer: str
    reason: str
    by: str
    assurance: str
    points: str
    status: Status
    notes: tuple[str, ...]
    documents: tuple[DocumentRow, ...]
    score: ControlScore


@dataclass(frozen=True)
class Section:
    """All questions of one law or standard."""

    title: str
    edition: str
    rows: tuple[ControlRow, ...]


@dataclass(frozen=True)
class ReportView:
    """A whole report in one language."""

    messages: Messages
    clinic: str
    title: str
    subtitle: str
    day: str
    headline: str
    self_assessed: str
    tier: str
    range: str
    capped: str
    eligibility: str
    eligible: bool
    disclaimer: str
    frameworks: tuple[PartRow, ...]
    themes: tuple[PartRow, ...]
    gates: tuple[GateRow, ...]
    plan: tuple[StepRow, ...]
    expired: tuple[ControlRow, ...]
    excluded: tuple[ControlRow, ...]
    sections: tuple[Section, ...]
    sources: tuple[str, ...]
    assessment: Assessment
    catalogue: Catalogue
    report: ScoreReport

    @property
    def language(self) -> str:
        """`en` or `de`."""
        return self.messages.language

    @property
    def rows(self) -> Iterable[ControlRow]:
        """All questions, in catalogue order."""
        return (row for section in self.sections for row in section.rows)


def build_view(
    assessment: Assessment,
    catalogue: Catalogue,
    report: ScoreReport,
    *,
    language: str = "en",
    folder: Path | None = None,
    plan_length: int = 15,
) -> ReportView:
    """Put a report into words.

    Args:
        assessment: the answers.
        catalogue: the questions.
        report: the score of these answers.
        language: `en` or `de`.
        folder: where the documents lie, to say which are missing or changed; None leaves that open.
        plan_length: how many lines the plan has at most.
    """
    words = _Words(assessment, catalogue, report, load_interface(language), folder)
    rows = {c.control: words.control_row(c) for c in report.controls}
    return ReportView(
        messages=words.say,
        clinic=assessment.clinic,
        title=words.say("report.title", clinic=assessment.clinic),
        subtitle=words.subtitle(),
        day=words.say("report.on", date=format_date(report.on, language)),
        headline=words.number(report.overall),
        self_assessed=words.say(
            "report.self_assessed", assurance=words.say(f"assurance.{report.assurance.label}")
        ),
        tier=words.say(f"tier.{report.tier}"),
        range=words.range_sentence(),
        capped=words.say("report.capped", uncapped=words.number(report.uncapped)) if report.capped else "",
        eligibility=words.eligibility(),
        eligible=report.eligible,
        disclaimer=words.say("disclaimer"),
        frameworks=tuple(
            words.part_row(words.say(f"framework.{name}"), p) for name, p in report.frameworks.items()
        ),
        themes=tuple(words.part_row(words.say(f"theme.{t}"), p) for t, p in report.themes.items()),
        gates=tuple(words.gate_rows()),
        plan=tuple(words.plan(plan_length)),
        expired=tuple(rows[i] for i in report.expired_controls),
        excluded=tuple(r for r in rows.values() if r.status is Status.NOT_APPLICABLE),
        sections=tuple(words.sections(rows.values())),
        sources=words.sources(),
        assessment=assessment,
        catalogue=catalogue,
        report=report,
    )


@dataclass(frozen=True)
class _Words:
    """Turns numbers and states into the words of one language."""

    assessment: Assessment
    catalogue: Catalogue
    report: ScoreReport
    say: Messages
    folder: Path | None

    def number(self, value: float | None) -> str:
        return format_number(value, self.say.language)

    def subtitle(self) -> str:
        law = format_date(self.report.law_as_of, self.say.language)
        return self.say(
            "report.subtitle", profile=self.report.profile, version=self.report.catalogue_version, law=law
        )

    def range_sentence(self) -> str:
        report = self.report
        count = len(report.open_controls) + len(report.open_scope)
        if not count:
            return self.say("report.interval_closed")
        low, high = self.number(report.interval.low), self.number(report.interval.high)
        return self.say("report.interval", low=low, high=high, count=count)

    def eligibility(self) -> str:
        if self.report.eligible:
            return self.say("report.eligible")
        return self.say("report.not_eligible", count=max(1, len(self.report.ineligible_because)))

    def part_row(self, name: str, part: PartScore) -> PartRow:
        score, interval = self.number(part.score), part.interval
        undecided = interval is not None and interval.width > 0
        spread = (
            f"{self.number(interval.low)} – {self.number(interval.high)}" if interval and undecided else score
        )
        share = part.excluded_weight / part.weight if part.weight else 0.0
        spoke = Spoke(name, part.score, interval.high if interval else None, score)
        return PartRow(name, score, spread, f"{part.answered} / {part.applicable}", f"{share:.0%}", spoke)

    def gate_rows(self) -> Iterable[GateRow]:
        for gate in self.report.gates:
            control = self.catalogue.controls[gate.control]
            yield GateRow(
                control=control.id,
                title=self.say.title(control),
                question=self.say.question(control),
                state=self.say(f"gate.{gate.state.value}"),
                effect=self.say(f"gate_kind.{gate.gate.value}"),
                passed=gate.passed,
                applies=gate.state is not GateState.OUT_OF_SCOPE,
            )

    def plan(self, length: int) -> Iterable[StepRow]:
        for step in plan(self.report, self.catalogue, limit=length):
            yield StepRow(
                control=step.control,
                title=self.say.title(self.catalogue.controls[step.control]),
                action=self.say(f"gap.{step.action.value}"),
                gain=f"+{format_number(step.gain, self.say.language, 3)}",
                effort=format_number(step.effort_days, self.say.language, 1),
                after=self.number(step.score_after),
                step=step,
            )

    def sections(self, rows: Iterable[ControlRow]) -> Iterable[Section]:
        grouped: dict[str, list[ControlRow]] = {}
        for row in rows:
            grouped.setdefault(row.score.framework, []).append(row)
        for name, members in grouped.items():
            title, edition = self.say.framework(self.catalogue.frameworks[name])
            yield Section(title, edition, tuple(members))

    def control_row(self, score: ControlScore) -> ControlRow:
        control = self.catalogue.controls[score.control]
        entry = self.assessment.entries.get(score.control, Entry())
        return ControlRow(
            control=control.id,
            citation=control.citation,
            title=self.say.title(control),
            question=self.say.question(control),
            badges=self._badges(control),
            answer=self._answer(score),
            reason=entry.reason,
            by=self._by(entry),
            assurance=self.say(f"assurance.{score.assurance.label}") if score.status is Status.SCORED else "",
            points=f"{self._points(score)}",
            status=score.status,
            notes=tuple(self.say(f"note.{note.value}") for note in score.notes),
            documents=tuple(self._document(e) for e in entry.evidence),
            score=score,
        )

    def sources(self) -> tuple[str, ...]:
        report, history = self.report, self.assessment.history
        listed = [(*self.say.framework(f), f.sha256) for f in self.catalogue.frameworks.values()]
        lines = [f"{title} ({edition}), SHA-256 {sha256}" for title, edition, sha256 in listed]
        return (
            *lines,
            self.say("report.catalogue_sha256", sha256=report.catalogue_sha256),
            self.say("report.answers_sha256", sha256=self.assessment.sha256),
            self.say("report.history", length=history.length, head=history.head),
            self.say("report.engine", version=__version__),
            self.say("report.iso_note"),
        )

    def _badges(self, control: Control) -> tuple[str, ...]:
        badges = [
            self.say(f"obligation.{control.obligation.value}"),
            self.say(f"severity.{control.severity}"),
        ]
        return (*badges, self.say("web.gate_badge")) if control.gate else tuple(badges)

    def _answer(self, score: ControlScore) -> str:
        if score.status is Status.OUT_OF_SCOPE:
            return self.say("status.out_of_scope")
        return self.say(f"answer.{score.answer.value}" if score.answer else "answer.none")

    def _by(self, entry: Entry) -> str:
        if entry.author is None:
            return ""
        parts = [f"{entry.author}, {format_date(entry.answered_on, self.say.language)}"]
        if entry.second_person is not None:
            parts.append(
                f"{entry.second_person.name}, {format_date(entry.second_person.date, self.say.language)}"
            )
        return "; ".join(parts)

    def _points(self, score: ControlScore) -> str:
        if score.status not in (Status.SCORED, Status.OPEN):
            return "–"
        language, most = self.say.language, score.points + score.lost
        return f"{format_number(100 * score.points, language)} / {format_number(100 * most, language)}"

    def _document(self, document: Evidence) -> DocumentRow:
        language = self.say.language
        missing = self.folder is not None and state_of(document, self.folder) is not EvidenceState.UNCHANGED
        return DocumentRow(
            title=document.title or document.path.rsplit("/", 1)[-1],
            path=document.path,
            sha256=document.sha256,
            period=f"{format_date(document.effective, language)} – {format_date(document.last_day, language)}",
            state=self.say("report.document_missing") if missing else "",
        )


def summarise(spokes: Sequence[Spoke]) -> tuple[str, str]:
    """The strongest and the weakest of some values, as `name score`; dashes when there are none."""
    scored = [s for s in spokes if s.score is not None]
    if not scored:
        return "–", "–"
    best, worst = max(scored, key=lambda s: s.score or 0), min(scored, key=lambda s: s.score or 0)
    return f"{best.label} {best.text}", f"{worst.label} {worst.text}"
