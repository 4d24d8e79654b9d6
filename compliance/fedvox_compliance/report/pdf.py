"""The PDF report, for management and for the file. Needs the extra `pdf` (reportlab and the Roboto fonts).

Everything that a clinic typed is escaped before it becomes a paragraph, since reportlab's paragraphs are markup. The
font is embedded: PDF's built-in ones know Western European letters only, and a clinic in Łódź or Athens has others.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from importlib import import_module, resources
from types import ModuleType
from typing import Any
from xml.sax.saxutils import escape

from fedvox_compliance.errors import UsageError
from fedvox_compliance.report.charts import Spoke
from fedvox_compliance.report.view import ControlRow, ReportView

_INK, _SOFT, _LINE, _ACCENT, _PANEL = "#1c2733", "#55636f", "#c9d0d3", "#0b6e69", "#f5f8f8"
_WIDTH_MM, _MARGIN_MM = 210, 16
_BODY_MM = _WIDTH_MM - 2 * _MARGIN_MM - 4.3  # less the frame's own padding, 6 pt on either side
_FONTS = {"Roboto": "Roboto-Regular.ttf", "Roboto-Bold": "Roboto-Bold.ttf"}
_STAND_INS = {0x2192: ">", 0x2011: "-", 0x202F: "\u00a0", 0x2713: "+"}
"""What the font lacks of what we write or people are likely to type: an arrow, odd hyphens and spaces, a tick."""
_TALL_LINES = 40
"""Lines from which on a question may be higher than a page, and must be split within."""


def render_pdf(view: ReportView) -> bytes:
    """Render a report on A4.

    Raises:
        UsageError: the extra is not installed.
    """
    page = _Page(_reportlab())
    story: list[Any] = [*page.opening(view), *page.parts(view), *page.gates(view), *page.plan(view)]
    story += page.questions(view)
    story += page.closing(view)
    return page.build(story, view)


def _reportlab() -> ModuleType:
    try:
        import reportlab.graphics.shapes
        import reportlab.lib.colors
        import reportlab.lib.pagesizes
        import reportlab.lib.styles
        import reportlab.pdfbase.pdfmetrics
        import reportlab.pdfbase.ttfonts
        import reportlab.platypus

        import_module("font_roboto")
    except ImportError as error:
        raise UsageError(
            f"PDF reports need {error.name}, which is not installed",
            "Install it with: pip install '.[pdf]' in the source folder (else pip install 'fedvox[pdf]'); "
            "or take the HTML report and print it to PDF.",
        ) from error
    module: ModuleType = reportlab
    return module


def _register_fonts(pdfbase: Any) -> frozenset[int]:
    """Make the fonts known to reportlab; returns the code points that they hold."""
    folder = resources.files("font_roboto") / "files"
    held: list[frozenset[int]] = []
    for name, file in _FONTS.items():
        font = pdfbase.ttfonts.TTFont(name, str(folder / file))
        pdfbase.pdfmetrics.registerFont(font)
        held.append(frozenset(font.face.charToGlyph))
    return frozenset.intersection(*held)


class _Page:
    """Styles and building blocks; one instance a document."""

    def __init__(self, reportlab: ModuleType) -> None:
        self.lib, self.flow, self.shapes = reportlab.lib, reportlab.platypus, reportlab.graphics.shapes
        self.mm = 72 / 25.4
        self._held = _register_fonts(reportlab.pdfbase)
        style = self.lib.styles.ParagraphStyle
        colour = self.lib.colors.HexColor
        base = style("base", fontName="Roboto", fontSize=9, leading=12.5, textColor=colour(_INK))
        self.styles = {
            "body": base,
            "soft": style("soft", parent=base, textColor=colour(_SOFT), fontSize=8, leading=11),
            "strong": style("strong", parent=base, fontName="Roboto-Bold"),
            "title": style("title", parent=base, fontName="Roboto-Bold", fontSize=18, leading=23),
            "figure": style(
                "figure",
                parent=base,
                fontName="Roboto-Bold",
                fontSize=34,
                leading=38,
                textColor=colour(_ACCENT),
            ),
            "h2": style(
                "h2",
                keepWithNext=1,
                parent=base,
                fontName="Roboto-Bold",
                fontSize=13,
                leading=17,
                spaceBefore=16,
                spaceAfter=5,
            ),
            "h3": style(
                "h3",
                keepWithNext=1,
                parent=base,
                fontName="Roboto-Bold",
                fontSize=10,
                leading=14,
                spaceBefore=9,
                spaceAfter=3,
            ),
            "note": style(
                "note", parent=base, backColor=colour(_PANEL), borderPadding=6, spaceBefore=9, spaceAfter=9
            ),
        }

    def text(self, content: str, style: str = "body") -> Any:
        """A paragraph of plain text: markup characters in it are shown, never obeyed."""
        printable = escape(self.printable(content)).replace("\n", "<br/>")
        return self.flow.Paragraph(printable, self.styles[style])

    def printable(self, content: str) -> str:
        """The text in characters that the font holds; what it lacks becomes a question mark."""
        known = content.translate(_STAND_INS)
        return "".join(c if ord(c) in self._held or c == "\n" else "?" for c in known)

    def opening(self, view: ReportView) -> list[Any]:
        facts = [view.self_assessed, view.eligibility, view.tier, view.range, view.capped]
        return [
            self.text(view.title, "title"),
            self.text(f"{view.day} · {view.subtitle}", "soft"),
            self.flow.Spacer(1, 8 * self.mm),
            self.text(view.headline, "figure"),
            *[self.text(fact, "strong" if n == 0 else "body") for n, fact in enumerate(facts) if fact],
            self.text(view.disclaimer, "note"),
        ]

    def parts(self, view: ReportView) -> list[Any]:
        say, story = view.messages, []
        head = [say("column.score"), say("column.interval"), say("column.answered"), say("column.excluded")]
        for title, first, rows in (
            ("report.by_framework", "column.framework", view.frameworks),
            ("report.by_theme", "column.theme", view.themes),
        ):
            cells = [[r.name, r.score, r.range, r.answered, r.excluded] for r in rows]
            table = self.table([[say(first), *head], *cells], [0.36, 0.14, 0.2, 0.16, 0.14])
            chart = self.radar([r.spoke for r in rows]) if rows is view.themes else None
            story += [self.text(say(title), "h2"), chart, table]
        return [item for item in story if item is not None]

    def gates(self, view: ReportView) -> list[Any]:
        say = view.messages
        head = [say("column.control"), say("column.state"), say("column.effect")]
        cells = [[f"{g.control} {g.title}", g.state, g.effect] for g in view.gates]
        return [
            self.text(say("report.gates"), "h2"),
            self.text(say("report.gates_intro")),
            self.table([head, *cells], [0.5, 0.24, 0.26]),
        ]

    def plan(self, view: ReportView) -> list[Any]:
        say = view.messages
        story = [self.text(say("report.plan"), "h2")]
        if not view.plan:
            return [*story, self.text(say("report.plan_empty"))]
        head = [say(f"column.{name}") for name in ("control", "action", "effort", "gain", "after")]
        cells = [[f"{g.control} {g.title}", g.action, g.effort, g.gain, g.after] for g in view.plan]
        return [
            *story,
            self.text(say("report.plan_intro")),
            self.table([head, *cells], [0.4, 0.26, 0.12, 0.11, 0.11]),
        ]

    def questions(self, view: ReportView) -> list[Any]:
        say = view.messages
        head = [say("column.question"), say("column.answer"), say("column.evidence"), say("column.points")]
        story = [self.text(say("report.details"), "h2")]
        for section in view.sections:
            cells = [self.question(row) for row in section.rows]
            story += [self.text(section.title, "h3"), self.text(section.edition, "soft")]
            tall = any(_lines(row) > _TALL_LINES for row in section.rows)
            story.append(self.table([head, *cells], [0.44, 0.25, 0.19, 0.12], split_rows=tall))
        return story

    def question(self, row: ControlRow) -> list[Any]:
        said = [row.answer, row.reason, row.by, *row.notes]
        shown = [
            row.assurance,
            *(f"{d.title} ({d.period}) {d.sha256[:16]} {d.state}".strip() for d in row.documents),
        ]
        asked = [
            self.text(f"{row.control} · {row.citation}", "soft"),
            self.text(f"{row.title}. {row.question}"),
        ]
        return [
            asked,
            [self.text(line) for line in said if line],
            [self.text(line, "soft") for line in shown if line],
            row.points,
        ]

    def closing(self, view: ReportView) -> list[Any]:
        say = view.messages
        return [
            self.text(say("report.what_it_means"), "h2"),
            self.text(say("report.means")),
            self.text(say("report.sources"), "h2"),
            *[self.text(line, "soft") for line in view.sources],
            self.text(f"{view.self_assessed}. {view.disclaimer}", "note"),
        ]

    def table(
        self, rows: Sequence[Sequence[Any]], shares: Sequence[float], *, split_rows: bool = False
    ) -> Any:
        """A table with a repeated head and hairlines; strings become paragraphs.

        `split_rows` lets a row go on on the next page. It is for rows higher than a page: it also cuts lower ones.
        """
        cells = [
            [self.text(c, "soft" if n == 0 else "body") if isinstance(c, str) else c for c in row]
            for n, row in enumerate(rows)
        ]
        line = self.lib.colors.HexColor(_LINE)
        style = [
            ("LINEBELOW", (0, 0), (-1, -1), 0.4, line),
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ("LEFTPADDING", (0, 0), (0, -1), 0),
        ]
        widths = [share * _BODY_MM * self.mm for share in shares]
        return self.flow.Table(cells, colWidths=widths, repeatRows=1, splitInRow=int(split_rows), style=style)

    def radar(self, spokes: Sequence[Spoke]) -> Any:
        """The radar chart, or None for fewer than three values."""
        shown = [s for s in spokes if s.score is not None]
        if len(shown) < 3:
            return None
        width, height, radius = _BODY_MM * self.mm, 72 * self.mm, 26 * self.mm
        drawing, colour = self.shapes.Drawing(width, height), self.lib.colors.HexColor
        centre = (width / 2, height / 2)
        angles = [math.pi / 2 - 2 * math.pi * i / len(shown) for i in range(len(shown))]
        for ring in (0.25, 0.5, 0.75, 1.0):
            drawing.add(
                self.shapes.Polygon(
                    _ring([ring] * len(shown), angles, centre, radius),
                    strokeColor=colour(_LINE),
                    fillColor=None,
                    strokeWidth=0.4,
                )
            )
        reached = _ring([s.score or 0.0 for s in shown], angles, centre, radius)
        drawing.add(
            self.shapes.Polygon(
                reached, strokeColor=colour(_ACCENT), fillColor=colour("#9cc8c4"), strokeWidth=1.2
            )
        )
        for spoke, angle in zip(shown, angles, strict=True):
            x, y = centre[0] + 1.12 * radius * math.cos(angle), centre[1] + 1.12 * radius * math.sin(angle)
            anchor = "middle" if abs(math.cos(angle)) < 0.15 else "start" if math.cos(angle) > 0 else "end"
            if anchor == "middle":  # a line farther out than its neighbours, whose words would touch it
                y += math.copysign(8.0, math.sin(angle))
            drawing.add(
                self.shapes.String(
                    x,
                    y - 2.5,
                    self.printable(spoke.label),
                    fontName="Roboto",
                    fontSize=7,
                    textAnchor=anchor,
                    fillColor=colour(_INK),
                )
            )
        return drawing

    def build(self, story: list[Any], view: ReportView) -> bytes:
        """Lay the document out, with the caveat at the foot of every page."""
        target = io.BytesIO()
        margin = _MARGIN_MM * self.mm
        document = self.flow.SimpleDocTemplate(
            target,
            pagesize=self.lib.pagesizes.A4,
            leftMargin=margin,
            rightMargin=margin,
            topMargin=margin,
            bottomMargin=margin + 6 * self.mm,
            title=view.title,
            subject=view.self_assessed,
            author=view.clinic,
            creator="fedvox-compliance",
        )

        def foot(canvas: Any, _: Any) -> None:
            canvas.setFont("Roboto", 7)
            canvas.setFillColor(self.lib.colors.HexColor(_SOFT))
            page = view.messages("report.page", page=canvas.getPageNumber())
            left = f"{view.clinic} · {view.headline} · {view.self_assessed}"
            canvas.drawString(margin, margin, self.printable(left)[:130])
            canvas.drawRightString(_WIDTH_MM * self.mm - margin, margin, self.printable(page))

        document.build(story, onFirstPage=foot, onLaterPages=foot)
        return target.getvalue()


def _lines(row: ControlRow) -> int:
    """How many lines a question may take at most, in the narrowest of its columns."""
    said = [row.reason, row.by, *row.notes]
    shown = [f"{d.title} {d.period} {d.sha256[:16]} {d.state}" for d in row.documents]
    return max(
        sum(1 + len(line) // 18 for text in column for line in text.split("\n")) for column in (said, shown)
    )


def _ring(
    values: Sequence[float], angles: Sequence[float], centre: tuple[float, float], radius: float
) -> list[float]:
    return [
        centre[axis] + value * radius * (math.cos(angle) if axis == 0 else math.sin(angle))
        for value, angle in zip(values, angles, strict=True)
        for axis in (0, 1)
    ]
