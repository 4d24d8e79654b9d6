"""Out to people and back: nothing lost, nothing slipped in, nobody overwritten."""

from __future__ import annotations

import csv
import datetime as dt
import io
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedvox_compliance.assessment import Answer, Assessment, Entry, Evidence
from fedvox_compliance.errors import AssessmentError, ComplianceError, UsageError
from fedvox_compliance.exchange import export_text, import_sheet, owned_by, read_sheet
from fedvox_compliance.exchange_csv import guard_cell, parse_csv, unguard_cell, write_csv
from fedvox_compliance.exchange_yaml import parse_yaml, write_yaml
from fedvox_compliance.history import read_lines, verify_history
from fedvox_compliance.merge import fingerprint, merge_folders, merge_items
from fedvox_compliance.workspace import Workspace

NewSpace = Callable[..., Workspace]
TODAY = dt.date(2026, 11, 24)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NASTY = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "'=1",
    "''=1",
    "'",
    "=cmd|' /C calc'!A0",
    "＝1",
    "%0A",
    "|x",
    'a,b;c"d\n=e',
]


def filled(space: Workspace, document: Path) -> Workspace:
    """One entry of each kind, with awkward texts."""
    space.answer(
        "GDPR.6.1", Answer.YES, author="A. Meyer", maturity=4, review_on=TODAY + dt.timedelta(days=90)
    )
    space.add_evidence(
        "GDPR.6.1", document, author="A. Meyer", effective=TODAY, title="Record, „Art. 30“ | v2"
    )
    space.confirm("GDPR.6.1", name="B. Beck")
    space.answer("GDPR.9.2", Answer.PARTLY, author="=HYPERLINK(1)", reason='=1+1\nand; more, "quoted"')
    space.answer("GDPR.30.1", Answer.PLANNED, author="A. Meyer", due=TODAY + dt.timedelta(days=30))
    space.answer("GDPR.31", Answer.NO, author="A. Meyer", reason="-")
    space.assign(["GDPR.31", "GDPR.38"], "IT Größe", author="A. Meyer")
    space.state_scope("third_country", False, author="A. Meyer", reason="@home")
    space.state_scope("uses_processors", True, author="A. Meyer")
    return space


def content(assessment: Assessment) -> tuple[dict[str, Any], dict[str, Any]]:
    return dict(assessment.entries), dict(assessment.scope)


@pytest.mark.parametrize("ending", ["yaml", "csv"])
def test_file_read_back_into_its_own_assessment_changes_nothing(
    new_space: NewSpace, document: Path, tmp_path: Path, ending: str
) -> None:
    space = filled(new_space(), document)
    file = tmp_path / f"all.{ending}"
    file.write_bytes(export_text(space.assessment, space.catalogue, file))
    length = space.assessment.history.length
    report = import_sheet(space, read_sheet(file), author="C. Clerk")
    assert not report.entries.taken
    assert not report.conflicts
    assert space.assessment.history.length == length


@pytest.mark.parametrize("ending", ["yaml", "csv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_file_read_into_an_empty_assessment_gives_all_of_it(
    new_space: NewSpace, document: Path, tmp_path: Path, ending: str, delimiter: str
) -> None:
    space, empty = filled(new_space(), document), new_space("clinic-b")
    file = tmp_path / f"all.{ending}"
    file.write_bytes(export_text(space.assessment, space.catalogue, file, delimiter=delimiter))
    sheet = read_sheet(file)
    for bases in (
        sheet.bases,
    ):  # the other assessment is empty, so nothing there can be the common beginning
        assert any(bases.values())
    fresh = type(sheet)(**{**sheet.__dict__, "bases": {}})
    report = import_sheet(empty, fresh, author="C. Clerk", documents=space.folder)
    assert not report.missing_documents
    if ending == "yaml":
        assert content(empty.assessment) == content(space.assessment)
        assert (empty.folder / empty.entry("GDPR.6.1").evidence[0].path).read_bytes() == document.read_bytes()
        return
    for control_id, entry in space.assessment.entries.items():
        got = empty.entry(control_id)
        for name in ("answer", "reason", "maturity", "due", "author", "answered_on", "review_on", "owner"):
            assert getattr(got, name) == getattr(entry, name), (control_id, name)
        assert [(d.sha256, d.effective, d.title) for d in got.evidence] == [
            (d.sha256, d.effective, d.title) for d in entry.evidence
        ]
    assert {i: s.applies for i, s in empty.assessment.scope.items()} == {
        "third_country": False,
        "uses_processors": True,
    }


# --------------------------------------------------------------------------------------- what spreadsheets do


@pytest.mark.parametrize("text", NASTY)
def test_cells_that_a_spreadsheet_would_run_are_guarded_and_come_back(text: str) -> None:
    guarded = guard_cell(text)
    assert not guarded.startswith(("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠", "|", "%"))
    assert unguard_cell(guarded) == text


@QUICK
@given(st.text(alphabet=st.characters(blacklist_characters="\r", blacklist_categories=("Cs",)), max_size=30))
def test_any_text_comes_back_from_its_guarded_cell(text: str) -> None:
    assert unguard_cell(guard_cell(text)) == text


def test_no_cell_of_an_export_is_a_formula_whatever_was_answered(new_space: NewSpace, document: Path) -> None:
    space = filled(new_space(), document)
    for number, text in enumerate(NASTY):
        if "\t" not in text:
            control = list(space.catalogue.controls)[20 + number]
            space.answer(control, Answer.PARTLY, author="A. Meyer", reason=text)
    rows = list(csv.reader(io.StringIO(write_csv(space.assessment, space.catalogue), newline="")))
    assert len(rows) == 1 + len(space.catalogue.scope_questions) + len(space.catalogue.controls)
    for row in rows:
        for cell in row:
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠"))


def edited(text: str, edits: dict[str, dict[str, str]]) -> str:
    """A sheet as somebody leaves it who edited some cells."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, reader.fieldnames or [])
    writer.writeheader()
    for row in reader:
        writer.writerow(row | edits.get(row["id"], {}))
    return out.getvalue()


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("TRUE", Answer.YES),
        ("False", Answer.NO),
        (" Yes ", Answer.YES),
        ("N/A", Answer.NOT_APPLICABLE),
        ("Not applicable", Answer.NOT_APPLICABLE),
    ],
)
def test_answers_are_read_as_spreadsheets_and_people_write_them(
    new_space: NewSpace, tmp_path: Path, written: str, answer: Answer
) -> None:
    space = new_space(profile="iso")
    control = "ISO27001.A.7.12"
    text = edited(
        write_csv(space.assessment, space.catalogue), {control: {"answer": written, "reason": "so"}}
    )
    (tmp_path / "a.csv").write_text(text, "utf-8")
    import_sheet(space, read_sheet(tmp_path / "a.csv"), author="C. Clerk")
    entry = space.entry(control)
    assert (entry.answer, entry.author, entry.answered_on) == (answer, "C. Clerk", TODAY)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_that_excel_saves_are_understood(new_space: NewSpace, encoding: str) -> None:
    space = new_space()
    text = edited(
        write_csv(space.assessment, space.catalogue),
        {"GDPR.31": {"answer": "partly", "reason": "Größe fehlt"}},
    )
    sheet = parse_csv(text.encode(encoding), source="a.csv")
    assert sheet.entries["GDPR.31"]["reason"] == "Größe fehlt"


@pytest.mark.parametrize(
    ("written", "day"),
    [("2026-12-01", "2026-12-01"), ("01.12.2026", "2026-12-01"), ("1.12.2026", "2026-12-01")],
)
def test_german_days_are_read_and_ambiguous_ones_refused(new_space: NewSpace, written: str, day: str) -> None:
    space = new_space()
    base = write_csv(space.assessment, space.catalogue)
    sheet = parse_csv(
        edited(base, {"GDPR.31": {"answer": "planned", "due": written}}).encode(), source="a.csv"
    )
    assert sheet.entries["GDPR.31"]["due"] == day
    with pytest.raises(AssessmentError, match="12/01/2026"):
        parse_csv(
            edited(base, {"GDPR.31": {"answer": "planned", "due": "12/01/2026"}}).encode(), source="a.csv"
        )


def test_edited_answer_with_its_old_day_and_author_gets_new_ones(
    new_space: NewSpace, document: Path, tmp_path: Path, clock: Any
) -> None:
    space = filled(new_space(), document)
    text = edited(write_csv(space.assessment, space.catalogue), {"GDPR.6.1": {"answer": "no"}})
    (tmp_path / "a.csv").write_text(text, "utf-8")
    clock.now += dt.timedelta(days=3)
    import_sheet(space, read_sheet(tmp_path / "a.csv"), author="C. Clerk")
    entry = space.entry("GDPR.6.1")
    assert (entry.answer, entry.author, entry.answered_on) == (
        Answer.NO,
        "C. Clerk",
        TODAY + dt.timedelta(days=3),
    )
    assert entry.second_person is None  # it confirmed the yes
    assert len(entry.evidence) == 1


def test_all_wrong_rows_are_named_and_nothing_is_changed(new_space: NewSpace, tmp_path: Path) -> None:
    space = new_space()
    before = space.assessment
    text = edited(
        write_csv(space.assessment, space.catalogue),
        {
            "GDPR.6.1": {"answer": "sure"},
            "GDPR.9.2": {"answer": "yes", "maturity": "9"},
            "GDPR.30.1": {"answer": "planned", "due": "soon"},
            "scope.third_country": {"answer": "partly"},
            "GDPR.31": {"answer": "yes", "documents": "dpia.pdf"},
        },
    )
    (tmp_path / "a.csv").write_text(text, "utf-8")
    with pytest.raises(AssessmentError) as told:
        import_sheet(space, read_sheet(tmp_path / "a.csv"), author="C")
    for word in (
        "GDPR.6.1",
        "sure",
        "GDPR.9.2",
        "maturity",
        "GDPR.30.1",
        "soon",
        "scope.third_country",
        "dpia.pdf",
    ):
        assert word in told.value.message
    assert space.reload() == before


def test_rules_hold_for_imports_too(new_space: NewSpace, tmp_path: Path) -> None:
    space = new_space()
    text = edited(
        write_csv(space.assessment, space.catalogue),
        {"GDPR.6.1": {"answer": "not_applicable", "reason": "no"}, "GDPR.31": {"answer": "yes"}},
    )
    (tmp_path / "a.csv").write_text(text, "utf-8")
    with pytest.raises(AssessmentError, match=r"GDPR\.6\.1"):
        import_sheet(space, read_sheet(tmp_path / "a.csv"), author="C")
    assert not space.reload().entries


def test_wrong_columns_are_told_with_the_nearest_name() -> None:
    with pytest.raises(AssessmentError, match="did you mean 'reason'"):
        parse_csv(b"id,answer,raeson\n", source="a.csv")
    with pytest.raises(AssessmentError, match="'answer' is missing"):
        parse_csv(b"id,question\n", source="a.csv")
    with pytest.raises(AssessmentError, match="twice"):
        parse_csv(b"id,answer\nGDPR.31,yes\nGDPR.31,no\n", source="a.csv")
    with pytest.raises(AssessmentError, match="column occurs twice"):
        parse_csv(b"id,answer,answer\n", source="a.csv")


def test_documents_named_in_a_sheet_are_copied_from_their_folder(
    new_space: NewSpace, document: Path, tmp_path: Path
) -> None:
    space = new_space()
    cell = f"{document.name} | 01.03.2026 | 2027-03-01 | Impact assessment"
    text = edited(
        write_csv(space.assessment, space.catalogue), {"GDPR.35.1": {"answer": "yes", "documents": cell}}
    )
    (tmp_path / "a.csv").write_text(text, "utf-8")
    with pytest.raises(AssessmentError, match="--documents"):
        import_sheet(space, read_sheet(tmp_path / "a.csv"), author="C")
    import_sheet(space, read_sheet(tmp_path / "a.csv"), author="C", documents=document.parent)
    (attached,) = space.entry("GDPR.35.1").evidence
    assert (attached.effective, attached.expires) == (dt.date(2026, 3, 1), dt.date(2027, 3, 1))
    assert (space.folder / attached.path).read_bytes() == document.read_bytes()


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b"])
def test_document_outside_its_folder_is_not_taken_in(new_space: NewSpace, tmp_path: Path, path: str) -> None:
    space = new_space()
    inner = tmp_path / "x" / "y"
    inner.mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("root")
    (tmp_path / "b").write_text("b")
    text = edited(
        write_csv(space.assessment, space.catalogue),
        {"GDPR.31": {"answer": "yes", "documents": f"{path} | 2026-01-01"}},
    )
    (tmp_path / "a.csv").write_text(text, "utf-8")
    with pytest.raises(AssessmentError):
        import_sheet(space, read_sheet(tmp_path / "a.csv"), author="C", documents=inner)
    assert not list(space.folder.glob("evidence/*"))


# ------------------------------------------------------------------------------------------------------- YAML


def test_yes_and_no_without_quotes_are_answers(new_space: NewSpace) -> None:
    text = "schema: fedvox.answers/1\nanswers:\n  GDPR.6.1: {answer: yes}\n  GDPR.31: {answer: no, due: 2026-12-01}\n"
    space = new_space()
    import_sheet(space, parse_yaml(text.encode(), source="a.yaml"), author="C")
    assert space.entry("GDPR.6.1").answer is Answer.YES
    assert space.entry("GDPR.31").answer is Answer.NO
    assert space.entry("GDPR.31").due == dt.date(2026, 12, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "schema: other/1",
        "schema: fedvox.answers/1\nextra: 1",
        "schema: fedvox.answers/1\nanswers: [1]",
        "schema: fedvox.answers/1\nanswers: {GDPR.6.1: yes}",
        "schema: fedvox.answers/1\nanswers:\n  GDPR.6.1: {answer: yes}\n  GDPR.6.1: {answer: no}",
        "schema: fedvox.answers/1\na: &a [x]\nb: *a",
        "schema: fedvox.answers/1\nanswers: {GDPR.6.1: {answer: !!python/object/apply:os.system ['id']}}",
        "schema: fedvox.answers/1\nanswers: {GDPR.6.1: {due: 2026-99-99}}",
        "schema: fedvox.answers/1\nanswers: " + "{a: " * 50 + "1" + "}" * 50,
        "schema: fedvox.answers/1\nanswers: {GDPR.6.1: {reason: !!binary aGk=}}",
        "schema: fedvox.answers/1\nanswers: {GDPR.6.1: {maturity: .nan}}",
        "a: [" * 3000,
        "\x00",
    ],
)
def test_yaml_of_another_form_or_with_tricks_is_refused(new_space: NewSpace, text: str) -> None:
    space = new_space()
    with pytest.raises(AssessmentError):
        import_sheet(space, parse_yaml(text.encode(), source="a.yaml"), author="C")
    assert not space.reload().entries


def test_billion_laughs_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    with pytest.raises(AssessmentError, match="aliases"):
        parse_yaml("\n".join(lines).encode(), source="a.yaml")


def test_export_carries_questions_allowed_answers_and_the_disclaimer(new_space: NewSpace) -> None:
    space = new_space()
    tree = yaml.safe_load(write_yaml(space.assessment, space.catalogue, language="de"))
    assert tree["disclaimer"].startswith("Hilfe zur Selbsteinschätzung")
    assert list(tree["answers"]) == list(space.catalogue.controls)
    assert tree["answers"]["GDPR.6.1"]["allowed"] == ["yes", "partly", "no", "planned"]


def test_file_for_other_questions_is_refused(new_space: NewSpace) -> None:
    gdpr, iso = new_space(), new_space("b", profile="iso")
    text = write_yaml(iso.assessment, iso.catalogue)
    with pytest.raises(AssessmentError, match="other questions"):
        import_sheet(gdpr, parse_yaml(text.encode(), source="a.yaml"), author="C")


def test_endings_and_delimiters_that_are_not_known_are_refused(new_space: NewSpace, tmp_path: Path) -> None:
    space = new_space()
    with pytest.raises(UsageError, match="neither YAML nor CSV"):
        export_text(space.assessment, space.catalogue, tmp_path / "a.xlsx")
    with pytest.raises(UsageError, match="delimiter"):
        export_text(space.assessment, space.catalogue, tmp_path / "a.csv", delimiter="x")
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        export_text(space.assessment, space.catalogue, tmp_path / "there.csv")
    (tmp_path / "a.bin").write_text("x")
    with pytest.raises(AssessmentError, match="neither YAML nor CSV"):
        read_sheet(tmp_path / "a.bin")


# ------------------------------------------------------------------------------------------- sharing the work


def test_owners_part_goes_out_is_answered_elsewhere_and_comes_back(
    new_space: NewSpace, tmp_path: Path
) -> None:
    space = new_space()
    space.assign(["GDPR.32.1.b", "GDPR.32.1.c"], "IT department", author="A. Meyer")
    part = owned_by(space.assessment, space.catalogue, "it  DEPARTMENT")
    text = write_csv(space.assessment, space.catalogue, only=part)
    assert [r["id"] for r in csv.DictReader(io.StringIO(text))] == ["GDPR.32.1.b", "GDPR.32.1.c"]
    answers = {i: {"answer": "yes", "author": "I. Tee", "answered_on": "2026-11-20"} for i in part}
    (tmp_path / "it.csv").write_text(edited(text, answers), "utf-8")
    space.answer("GDPR.6.1", Answer.YES, author="A. Meyer")  # meanwhile, here
    report = import_sheet(space, read_sheet(tmp_path / "it.csv"), author="A. Meyer")
    assert set(report.entries.taken) == set(part)
    assert not report.conflicts
    assert {space.entry(i).author for i in part} == {"I. Tee"}
    assert {space.entry(i).owner for i in part} == {"IT department"}
    with pytest.raises(AssessmentError, match="Owners: IT department"):
        owned_by(space.assessment, space.catalogue, "HR")


def test_answer_changed_on_both_sides_is_a_conflict_and_stays_until_decided(
    new_space: NewSpace, tmp_path: Path
) -> None:
    space = new_space()
    space.answer("GDPR.6.1", Answer.PARTLY, author="A. Meyer")
    text = write_csv(space.assessment, space.catalogue)
    (tmp_path / "a.csv").write_text(
        edited(text, {"GDPR.6.1": {"answer": "no"}, "GDPR.9.2": {"answer": "yes"}}), "utf-8"
    )
    space.answer("GDPR.6.1", Answer.YES, author="A. Meyer")
    report = import_sheet(space, read_sheet(tmp_path / "a.csv"), author="C")
    (conflict,) = report.entries.conflicts
    assert (conflict.where, conflict.ours.answer, conflict.theirs.answer) == (
        "GDPR.6.1",
        Answer.YES,
        Answer.NO,
    )
    assert space.entry("GDPR.6.1").answer is Answer.YES
    assert space.entry("GDPR.9.2").answer is Answer.YES  # what was no conflict came in
    kept = import_sheet(space, read_sheet(tmp_path / "a.csv"), author="C", prefer="ours")
    assert (kept.conflicts, kept.entries.kept) == (0, ("GDPR.6.1",))
    import_sheet(space, read_sheet(tmp_path / "a.csv"), author="C", decided={"GDPR.6.1": "theirs"})
    assert space.entry("GDPR.6.1").answer is Answer.NO


def copied(space: Workspace, target: Path, clock: Any) -> Workspace:
    shutil.copytree(space.folder, target)
    return Workspace.open(target, clock=clock)


def test_two_copies_of_a_folder_come_together(
    new_space: NewSpace, document: Path, tmp_path: Path, clock: Any
) -> None:
    ours = filled(new_space(), document)
    theirs = copied(ours, tmp_path / "copy", clock)
    ours.answer("GDPR.38", Answer.YES, author="A. Meyer")
    other = tmp_path / "policy.txt"
    other.write_text("policy")
    theirs.answer("GDPR.24.2", Answer.YES, author="B. Beck")
    theirs.add_evidence("GDPR.24.2", other, author="B. Beck", effective=TODAY)
    theirs.confirm("GDPR.24.2", name="C. Clerk")
    theirs.clear("GDPR.30.1", author="B. Beck")
    theirs.state_scope("third_country", True, author="B. Beck")
    for side, answer in ((ours, Answer.PARTLY), (theirs, Answer.YES)):
        side.answer("GDPR.31", answer, author="A. Meyer")
    report = merge_folders(ours, theirs.folder, author="A. Meyer")
    assert set(report.entries.taken) == {"GDPR.24.2", "GDPR.30.1"}
    assert [c.where for c in report.entries.conflicts] == ["GDPR.31"]
    merged = verify_history(ours.folder)
    assert "GDPR.30.1" not in merged.entries
    assert merged.entries["GDPR.38"].answer is Answer.YES
    assert merged.entries["GDPR.31"].answer is Answer.PARTLY
    assert merged.scope["third_country"].applies
    entry = merged.entries["GDPR.24.2"]
    assert entry.second_person is not None
    assert (ours.folder / entry.evidence[0].path).read_text() == "policy"
    assert read_lines(ours.folder)[0][-1].action == "merge"


def test_merging_again_takes_nothing_over_twice(
    new_space: NewSpace, document: Path, tmp_path: Path, clock: Any
) -> None:
    ours = filled(new_space(), document)
    theirs = copied(ours, tmp_path / "copy", clock)
    theirs.answer("GDPR.24.2", Answer.YES, author="B. Beck")
    assert merge_folders(ours, theirs.folder, author="A").entries.taken
    again = merge_folders(ours, theirs.folder, author="A")
    assert not again.entries.taken
    assert not again.conflicts


def test_only_copies_of_the_same_assessment_are_merged(new_space: NewSpace, tmp_path: Path) -> None:
    ours, stranger = new_space(), new_space("clinic-b", clinic="Clinic B")
    with pytest.raises(AssessmentError, match="another assessment"):
        merge_folders(ours, stranger.folder, author="A")
    with pytest.raises(ComplianceError):
        merge_folders(ours, tmp_path / "nowhere", author="A")


def test_document_that_was_changed_in_the_copy_is_reported_and_not_copied(
    new_space: NewSpace, document: Path, tmp_path: Path, clock: Any
) -> None:
    ours = new_space()
    theirs = copied(ours, tmp_path / "copy", clock)
    theirs.answer("GDPR.35.1", Answer.YES, author="B")
    attached = theirs.add_evidence("GDPR.35.1", document, author="B", effective=TODAY)
    (theirs.folder / attached.path).write_text("something else")
    assert merge_folders(ours, theirs.folder, author="A").missing_documents == (attached.path,)
    assert not (ours.folder / attached.path).exists()


LETTERS = "abc"
states = st.fixed_dictionaries(
    {}, optional={c: st.sampled_from([Answer.YES, Answer.NO, Answer.PARTLY]) for c in LETTERS}
)


@QUICK
@given(base=states, ours=states, theirs=states)
def test_merge_follows_the_one_who_changed_and_never_decides_between_two(
    base: dict[str, Answer], ours: dict[str, Answer], theirs: dict[str, Answer]
) -> None:
    """Against the definition: a change is a difference from the beginning."""

    def entry(state: dict[str, Answer], letter: str) -> Entry | None:
        return Entry(answer=state[letter], author="A", answered_on=TODAY) if letter in state else None

    mine = {c: e for c in LETTERS if (e := entry(ours, c))}
    merged = merge_items(
        mine,
        {c: entry(theirs, c) for c in LETTERS},
        {c: fingerprint(entry(base, c)) for c in LETTERS},
    )
    for letter in LETTERS:
        b, o, t = base.get(letter), ours.get(letter), theirs.get(letter)
        expected = "same" if o == t else "take" if o == b else "keep" if t == b else "conflict"
        found = (
            "take" if letter in merged.taken
            else "keep" if letter in merged.kept
            else "conflict" if letter in {c.where for c in merged.conflicts}
            else "same"
        )  # fmt: skip
        assert found == expected


# ------------------------------------------------------------------------------------------------------- fuzz

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from([*Entry.model_fields, "base", "question", "allowed", "nonsense"])
fields = st.dictionaries(
    field_names, trees | st.sampled_from(["yes", "no", "2026-01-01", "A. Meyer"]), max_size=6
)
control_names = st.sampled_from(["GDPR.6.1", "GDPR.31", "GDPR.99", "", "x" * 200]) | st.text(max_size=10)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    answers=st.dictionaries(control_names, fields | trees, max_size=3),
    scope=st.dictionaries(control_names, fields, max_size=2),
)
def test_any_yaml_tree_is_taken_in_or_refused_with_words(fuzzed: Workspace, answers: Any, scope: Any) -> None:
    text = yaml.safe_dump(
        {"schema": "fedvox.answers/1", "answers": answers, "scope": scope}, allow_unicode=True
    )
    with suppress(ComplianceError):  # anything else is a traceback to the user
        import_sheet(
            fuzzed,
            parse_yaml(text.encode("utf-8", "surrogatepass"), source="a.yaml"),
            author="C",
            prefer="theirs",
        )
    verify_history(fuzzed.folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_as_a_sheet_or_refused_with_words(data: bytes) -> None:
    for parse in (parse_csv, parse_yaml):
        with suppress(ComplianceError):
            parse(data, source="a")


SHEET_COLUMNS = (
    "id", "answer", "reason", "maturity", "due", "author", "answered_on", "owner", "documents", "base",
)  # fmt: skip
cells = st.sampled_from(
    ["", "yes", "no", "2026-11-24", "3", "a | 2026-01-01", "=1", "x" * 5000, "\x00", "\x1b[31m"]
) | st.text(max_size=12)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"id": control_names | st.just("scope.third_country")},
            optional=dict.fromkeys(SHEET_COLUMNS[1:], cells),
        ),
        max_size=4,
    )
)
def test_any_sheet_is_taken_in_or_refused_with_words(fuzzed: Workspace, rows: list[dict[str, str]]) -> None:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, SHEET_COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(rows)
    with suppress(ComplianceError):  # anything else is a traceback to the user
        import_sheet(
            fuzzed,
            parse_csv(out.getvalue().encode("utf-8", "replace"), source="a.csv"),
            author="C",
            prefer="theirs",
        )
    verify_history(fuzzed.folder)


@pytest.fixture
def fuzzed(new_space: NewSpace) -> Workspace:
    """One assessment for all examples of a fuzz test: what one leaves behind, the next one meets."""
    return new_space("fuzzed")


def test_document_shared_between_sheet_and_folder_keeps_its_hash(new_space: NewSpace, document: Path) -> None:
    space = filled(new_space(), document)
    sheet = parse_csv(write_csv(space.assessment, space.catalogue).encode(), source="a.csv")
    assert sheet.documents["GDPR.6.1"][0].title == "Record, „Art. 30“ | v2"
    assert isinstance(space.entry("GDPR.6.1").evidence[0], Evidence)
