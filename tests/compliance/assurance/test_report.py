"""Reports: the same numbers in every form, nothing fetched, nothing executed, the caveat always beside the score."""

from __future__ import annotations

import base64
import copy
import html.parser
import json
import re
import sys
import xml.etree.ElementTree as ET
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvox_compliance.assessment import Answer, Entry, Evidence
from fedvox_compliance.catalogue import Catalogue, load_catalogue
from fedvox_compliance.errors import UsageError
from fedvox_compliance.interface import format_number, load_interface
from fedvox_compliance.judgement import Assurance
from fedvox_compliance.messages import LANGUAGES
from fedvox_compliance.report import ReportView, build_view, render_html, render_json, render_oscal
from fedvox_compliance.report.charts import Spoke, bars, radar
from fedvox_compliance.report.oscal import oscal_document
from fedvox_compliance.report.pdf import render_pdf
from fedvox_compliance.scoring import score
from fedvox_compliance.workspace import Workspace

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</textarea></style></svg><svg onload=alert(1)>",
    "{{ 1337*1337 }}{% include 'x' %}",
    "</para><b>bold</b>&amp;&#60;",
    '=HYPERLINK("http://evil","x")',
    "javascript:alert(1)",
    "]]>--><!--",
]
SCHEMA_FILE = Path(__file__).parents[1] / "data" / "oscal_assessment-results_schema-1.1.3.json"
RENDERERS: dict[str, Callable[[ReportView], str]] = {
    "html": render_html,
    "json": render_json,
    "oscal": render_oscal,
}


def view_of(space: Workspace, make: Any, language: str = "en") -> ReportView:
    report = score(space.assessment, space.catalogue, on=make.now.date())
    return build_view(space.assessment, space.catalogue, report, language=language, folder=space.folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace) -> Workspace:
    """A clinic with every kind of answer, some documents, some expired, some open."""
    space = Workspace.create(
        tmp_path_factory.mktemp("mixed") / "c",
        clinic="Klinikum Süd",
        author="A. Meyer",
        clock=lambda: make.now,
    )
    day = make.now.date()
    shown = Evidence(path="evidence/p.pdf", sha256="a1" * 32, title="Policy", effective=day)
    old = shown.model_copy(
        update={"expires": day - make.day, "effective": day - 400 * make.day, "sha256": "b2" * 32}
    )
    entries: dict[str, Entry] = {}
    for number, control in enumerate(space.catalogue.controls.values()):
        if number % 6 == 5:
            continue
        answer = (Answer.YES, Answer.PARTLY, Answer.NO, Answer.PLANNED, Answer.YES)[number % 5]
        if control.na_allowed and number % 9 == 0:
            answer = Answer.NOT_APPLICABLE
        entries[control.id] = Entry(
            answer=answer,
            reason="We have none." if answer is Answer.NOT_APPLICABLE else "",
            due=day + make.day if answer is Answer.PLANNED else None,
            author="A. Meyer",
            answered_on=day,
            evidence=(old if number % 11 == 0 else shown,)
            if answer is Answer.YES and number % 2 == 0
            else (),
        )
    space.apply(entries, action="import", author="A. Meyer")
    return space


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace) -> Workspace:
    """A clinic that attacks its own reader, in every field that takes text."""
    space = Workspace.create(
        tmp_path_factory.mktemp("hostile") / "c", clinic=HOSTILE[0], author=HOSTILE[1], clock=lambda: make.now
    )
    day = make.now.date()
    entries = {
        control: Entry(
            answer=Answer.YES,
            reason=HOSTILE[number % len(HOSTILE)],
            author=HOSTILE[(number + 1) % len(HOSTILE)],
            answered_on=day,
            evidence=(
                Evidence(
                    path=f"evidence/{number}-{'<b>' if number % 2 else 'a&b'}.pdf",
                    sha256=f"{number:064x}",
                    title=HOSTILE[(number + 2) % len(HOSTILE)],
                    effective=day,
                ),
            ),
        )
        for number, control in enumerate(list(space.catalogue.controls)[:40])
    }
    space.apply(entries, action="import", author="x")
    return space


class Outline(html.parser.HTMLParser):
    """Counts elements and attributes, and collects text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.values: list[str] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_is_one_file_without_script_or_anything_fetched(
    mixed: Workspace, make: Any, language: str
) -> None:
    page = render_html(view_of(mixed, make, language))
    outline = Outline(page)
    for active in ("script", "link", "img", "iframe", "object", "form", "base", "a"):
        assert outline.tags[active] == 0
    assert not [name for name in outline.attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert f'<html lang="{language}">' in page
    assert "default-src 'none'" in page


def test_hostile_answers_are_shown_as_text_and_never_become_markup(
    hostile: Workspace, mixed: Workspace, make: Any
) -> None:
    attacked, calm = Outline(render_html(view_of(hostile, make))), Outline(render_html(view_of(mixed, make)))
    assert set(attacked.tags) <= set(calm.tags)
    assert set(attacked.attributes) <= set(calm.attributes)
    for text in HOSTILE:
        assert " ".join(text.split()) in attacked.text
    assert "1787569" not in attacked.text  # no template was evaluated


@given(label=st.text(max_size=30), text=st.text(max_size=10))
def test_chart_labels_are_text_whatever_they_hold(label: str, text: str) -> None:
    clean = "".join(c for c in label + text if c.isprintable())
    for draw in (radar, bars):
        picture = draw([Spoke(clean, 0.5, 0.7, clean)] * 4, title=clean, description=clean, ident="x")
        root = ET.fromstring(picture)  # well-formed whatever the label
        names = {element.tag.rsplit("}", 1)[-1] for element in root.iter()}
        assert names <= {"svg", "title", "desc", "g", "polygon", "line", "circle", "text", "rect"}


def test_the_radar_puts_values_where_they_belong() -> None:
    picture = radar([Spoke(n, 1.0) for n in "abcd"], title="t", description="d", ident="x")
    reached = re.search(r'class="reached" points="([^"]+)"', picture)
    assert reached is not None
    corners = [tuple(float(c) for c in p.split(",")) for p in reached.group(1).split()]
    assert [(round(x), round(y)) for x, y in corners] == [(0, -190), (190, 0), (0, 190), (-190, 0)]


def test_a_chart_says_in_words_what_it_shows(mixed: Workspace, make: Any) -> None:
    view = view_of(mixed, make)
    page = render_html(view)
    for ident in ("radar", "bars"):
        assert re.search(rf'role="img" aria-labelledby="{ident}-t {ident}-d"', page)
        assert re.search(rf'<title id="{ident}-t">[^<]+</title><desc id="{ident}-d">[^<]+</desc>', page)
    scored = [r for r in view.themes if r.spoke.score is not None]
    weakest = min(scored, key=lambda r: r.spoke.score or 0)
    assert f"Weakest: {weakest.name} {weakest.score}" in page


def test_fewer_than_three_values_are_drawn_as_bars() -> None:
    picture = radar(
        [Spoke("a", 0.5), Spoke("b", None), Spoke("c", 0.2)], title="t", description="d", ident="x"
    )
    assert "polygon" not in picture
    assert picture.count("<rect") == 5  # three tracks, two values


def test_numbers_agree_with_the_engine_in_every_form(mixed: Workspace, make: Any) -> None:
    view = view_of(mixed, make)
    report = score(mixed.assessment, mixed.catalogue, on=make.now.date())
    assert view.headline == format_number(report.overall, "en")
    assert [r.score for r in view.frameworks] == [
        format_number(p.score, "en") for p in report.frameworks.values()
    ]
    document = json.loads(render_json(view))
    assert document["score"]["overall"] == pytest.approx(report.overall, abs=1e-6)
    assert len(document["questions"]) == len(document["score"]["controls"]) == len(mixed.catalogue.controls)
    props = {p["name"]: p["value"] for p in oscal_document(view)["assessment-results"]["results"][0]["props"]}
    assert float(props["score"]) == pytest.approx(report.overall, abs=1e-6)


@given(value=st.floats(0, 1), language=st.sampled_from(LANGUAGES))
def test_a_shown_number_never_overstates(value: float, language: str) -> None:
    shown = float(format_number(value, language).replace(",", "."))
    assert shown <= value + 1e-9
    assert value < shown + 0.01 + 1e-9


@pytest.mark.parametrize("form", RENDERERS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_report_calls_a_clinic_compliant_or_certified(
    form: str, language: str, clinic: Path, make: Any
) -> None:
    space = Workspace.open(clinic, clock=lambda: make.now)  # the best case: everything yes and documented
    view = view_of(space, make, language)
    own_words = RENDERERS[form](view)
    for row in view.rows:  # the questions quote what the law asks for; the verdict must not use its words
        own_words = own_words.replace(row.question, "").replace(row.title, "").replace(row.citation, "")
    plain = " ".join(Outline(own_words).text.split()) if form == "html" else own_words
    assert not re.search(
        r"\b(is|are) (fully )?compliant|\bcompliant\b|\bcertified\b|zertifiziert\b|\bkonform\b", plain, re.I
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_caveat_and_assurance_stand_beside_the_score(mixed: Workspace, make: Any, language: str) -> None:
    view = view_of(mixed, make, language)
    text = Outline(render_html(view)).text
    at = text.index(view.headline)
    assert view.self_assessed in text[at : at + 120]
    assert " ".join(view.disclaimer.split()) in text[at : at + 900]
    assert json.loads(render_json(view))["notice"] == view.disclaimer
    result = json.loads(render_oscal(view))["assessment-results"]["results"][0]
    assert view.self_assessed in result["title"]
    assert result["description"] == view.disclaimer


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG 2.2, relative contrast."""
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_text_has_the_contrast_of_wcag_aa_in_light_and_dark(mixed: Workspace, make: Any) -> None:
    page = render_html(view_of(mixed, make))
    palettes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", page, re.S)
    ]
    light, dark = palettes[0], palettes[0] | palettes[1]
    for palette in (light, dark):
        for ink, ground in [
            ("ink", "page"), ("ink", "panel"), ("soft", "page"), ("soft", "panel"), ("accent", "page"),
            ("warn", "warn-soft"), ("bad", "bad-soft"), ("good", "good-soft"), ("warn", "page"),
        ]:  # fmt: skip
            assert contrast(palette[ink], palette[ground]) >= 4.5, (ink, ground)


def test_the_german_report_is_german(mixed: Workspace, make: Any) -> None:
    view = view_of(mixed, make, "de")
    assert view.title == "Selbsteinschätzung: Klinikum Süd"
    assert "24.11.2026" in view.day
    assert re.fullmatch(r"\d,\d\d", view.headline)


def test_both_languages_say_the_same_things() -> None:
    english, german = load_interface("en"), load_interface("de")
    for key in english._texts:
        assert key in german._texts, key
        assert re.findall(r"\{\w+\}", english._texts[key]) or not re.findall(
            r"\{\w+\}", german._texts[key]
        ), key
        assert set(re.findall(r"\{\w+\}", english._texts[key])) == set(
            re.findall(r"\{\w+\}", german._texts[key])
        ), key


def test_every_state_and_note_has_words(catalogue: Catalogue) -> None:
    from fedvox_compliance.judgement import Note, Status
    from fedvox_compliance.score_report import GateState

    for language in LANGUAGES:
        say = load_interface(language)
        for prefix, names in (
            ("answer", [a.value for a in Answer]),
            ("assurance", [a.label for a in Assurance]),
            ("note", [n.value for n in Note]),
            ("gate", [g.value for g in GateState]),
            ("status", [s.value for s in Status]),
            ("theme", load_catalogue("combined").themes),
            ("tier", [str(n) for n in range(5)]),
            ("severity", {c.severity for c in catalogue.controls.values()}),
            ("obligation", {c.obligation.value for c in catalogue.controls.values()}),
        ):
            for name in names:
                assert say(f"{prefix}.{name}")


def test_missing_documents_are_pointed_out(clinic: Path, make: Any) -> None:
    space = Workspace.open(clinic, clock=lambda: make.now)
    assert not any(d.state for row in view_of(space, make).rows for d in row.documents)
    next((clinic / "evidence").iterdir()).unlink()
    assert all(d.state == "missing or changed" for row in view_of(space, make).rows for d in row.documents)


def test_an_empty_assessment_has_reports_too(tmp_path: Path, make: Any, oscal_schema: Any) -> None:
    space = Workspace.create(
        tmp_path / "e", clinic="New", author="A", profile="hipaa", clock=lambda: make.now
    )
    view = view_of(space, make)
    assert view.headline == "0.00"
    assert "Not eligible" in render_html(view)
    assert render_pdf(view).startswith(b"%PDF-")
    oscal_schema.validate(oscal_document(view))


# --- OSCAL ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oscal_schema() -> Any:
    """NIST's own schema. Its token pattern uses \\p{..}, which Python's re lacks; letters and digits are the same."""
    text = SCHEMA_FILE.read_text(encoding="utf-8")
    schema = json.loads(text.replace(r"\\p{L}", r"[^\\W\\d_]").replace(r"\\p{N}", r"\\d"))
    return jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker())


def test_assessment_results_are_valid_against_the_schema_of_nist(
    mixed: Workspace, make: Any, oscal_schema: Any
) -> None:
    for language in LANGUAGES:
        oscal_schema.validate(json.loads(render_oscal(view_of(mixed, make, language))))


@pytest.mark.parametrize("profile", ["hipaa", "gdpr", "iso"])
def test_every_profile_exports_valid_results(
    profile: str, tmp_path: Path, make: Any, oscal_schema: Any
) -> None:
    space = Workspace.create(tmp_path / "c", clinic="C", author="A", profile=profile, clock=lambda: make.now)
    make.fill(space, author="A")
    oscal_schema.validate(oscal_document(view_of(space, make)))


def test_hostile_answers_stay_valid_oscal(hostile: Workspace, make: Any, oscal_schema: Any) -> None:
    oscal_schema.validate(oscal_document(view_of(hostile, make)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["assessment-results"].pop("import-ap"),
        lambda d: d["assessment-results"].update(uuid="not-a-uuid"),
        lambda d: d["assessment-results"]["results"][0]["findings"][0]["target"]["status"].update(
            state="partly"
        ),
        lambda d: d["assessment-results"]["results"][0]["findings"][0]["target"].update({"target-id": "1 2"}),
        lambda d: d["assessment-results"]["results"][0]["props"][0].update(value=" "),
        lambda d: d["assessment-results"]["results"][0]["observations"][0].update(extra=1),
    ],
)
def test_the_schema_check_notices_what_is_wrong(
    damage: Any, mixed: Workspace, make: Any, oscal_schema: Any
) -> None:
    document = copy.deepcopy(oscal_document(view_of(mixed, make)))
    damage(document)
    assert not oscal_schema.is_valid(document)


def test_references_inside_the_document_resolve_and_repeat_exactly(mixed: Workspace, make: Any) -> None:
    view = view_of(mixed, make)
    body = oscal_document(view)["assessment-results"]
    assert render_oscal(view) == render_oscal(view_of(mixed, make))
    resources = {"#" + r["uuid"] for r in body["back-matter"]["resources"]}
    result = body["results"][0]
    observations = {o["uuid"] for o in result["observations"]}
    assert body["import-ap"]["href"] in resources
    assert {r["href"] for o in result["observations"] for r in o.get("relevant-evidence", [])} <= resources
    assert {
        r["observation-uuid"] for f in result["findings"] for r in f.get("related-observations", [])
    } <= observations
    every = [o["uuid"] for o in result["observations"] + result["findings"]]
    assert len(set(every)) == len(every)


def test_nothing_is_called_satisfied_that_no_document_shows(mixed: Workspace, make: Any) -> None:
    view = view_of(mixed, make)
    states = {
        f["target"]["target-id"]: f["target"]["status"]["state"]
        for f in oscal_document(view)["assessment-results"]["results"][0]["findings"]
    }
    for row in view.rows:
        if states.get(row.control) == "satisfied":
            entry = mixed.assessment.entries[row.control]
            assert entry.answer is Answer.YES
            assert entry.evidence
    assert "satisfied" in states.values()
    assert "not-satisfied" in states.values()


# --- PDF --------------------------------------------------------------------------------------------------------------


def pdf_text(data: bytes) -> str:
    """The strings drawn on the pages, in order, each read by the character map of its embedded font."""
    objects = {int(n): body for n, body in re.findall(rb"(\d+) 0 obj\s(.*?)endobj", data, re.S)}
    maps: dict[bytes, dict[int, str]] = {}
    for body in objects.values():
        if (name := re.search(rb"/Name /(F\d+\+\d+)", body)) and (
            cmap := re.search(rb"/ToUnicode (\d+)", body)
        ):
            pairs = re.findall(rb"<([0-9A-F]{2})> <([0-9A-F]{4})>\n", pdf_stream(objects[int(cmap[1])]))
            maps[name[1]] = {int(code, 16): chr(int(value, 16)) for code, value in pairs}
    pieces: list[str] = []
    for body in objects.values():
        if b"stream" not in body or b"/Length1" in body:
            continue
        font: dict[int, str] = {}
        for name, literal in re.findall(rb"/(F\d+\+\d+) |\(((?:\\.|[^\\()])*)\) Tj", pdf_stream(body)):
            if name:
                font = maps[name]
            else:
                raw = re.sub(rb"\\(\d{3})", lambda m: bytes([int(m.group(1), 8)]), literal)
                raw = re.sub(rb"\\([\\()])", rb"\1", raw)
                pieces.append("".join(font.get(code, "\ufffd") for code in raw))
    return " ".join(pieces)


def pdf_stream(body: bytes) -> bytes:
    found = re.search(rb"stream\r?\n(.*?)endstream", body, re.S)
    assert found is not None
    raw = found[1].strip()
    if b"/ASCII85Decode" in body:
        raw = base64.a85decode(raw.removesuffix(b"~>"))
    return zlib.decompress(raw) if b"/FlateDecode" in body else raw


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_pdf_says_what_the_page_says(mixed: Workspace, make: Any, language: str) -> None:
    view = view_of(mixed, make, language)
    data = render_pdf(view)
    text = pdf_text(data)
    assert data.startswith(b"%PDF-")
    assert view.headline in text
    assert view.self_assessed in text
    assert text.count(view.self_assessed) > data.count(b"/Type /Page\n") // 2  # at the foot of every page
    for row in view.rows:
        assert row.control in text


def test_the_pdf_shows_hostile_answers_as_text(hostile: Workspace, make: Any) -> None:
    text = "".join(pdf_text(render_pdf(view_of(hostile, make))).split())
    for content in HOSTILE:
        assert "".join(content.split()) in text


def test_the_pdf_prints_names_of_all_of_europe_and_embeds_what_it_prints_with(
    new_space: Callable[..., Workspace], make: Any
) -> None:
    clinic = "Szpital Łódź – Νοσοκομείο „Ωμέγα“ Шпиталь ăşţőű ≥ 2 €"
    space = new_space(profile="gdpr", clinic=clinic)
    space.answer("GDPR.6.1", Answer.PARTLY, author="Zofia Świątek", reason="“fehlt” → später ½ 漢")
    data = render_pdf(view_of(space, make, "de"))
    text = pdf_text(data)
    assert clinic in " ".join(text.split())
    assert "Zofia Świątek" in text
    assert "“fehlt” > später ½ ?" in text  # an arrow has a stand-in; what no European font holds is marked
    assert data.count(b"/FontFile2") == 2


def test_a_pdf_survives_answers_higher_than_a_page_and_cuts_no_other_row(
    new_space: Callable[..., Workspace], make: Any
) -> None:
    space = new_space(profile="gdpr")
    space.answer(
        "GDPR.6.1",
        Answer.PARTLY,
        author="A. Meyer",
        reason="\n".join("abcdefghij"[n % 10] for n in range(400)),
    )
    space.answer("GDPR.9.2", Answer.PARTLY, author="A. Meyer", reason="word " * 700)
    text = pdf_text(render_pdf(view_of(space, make)))
    assert text.count("word") >= 700


def test_without_reportlab_the_error_names_the_extra(
    mixed: Workspace, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "reportlab"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "reportlab", None)
    with pytest.raises(UsageError, match="reportlab") as caught:
        render_pdf(view_of(mixed, make))
    assert "pip install 'fedvox[pdf]'" in caught.value.remedy
    assert render_html(view_of(mixed, make))  # the other forms do not need it
