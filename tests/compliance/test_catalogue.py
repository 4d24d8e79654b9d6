"""The catalogue against the law's own tables, and against itself."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections import Counter
from importlib import resources
from typing import Any

import pytest
import yaml

from fedvox_compliance import catalogue as module
from fedvox_compliance.catalogue import (
    Catalogue,
    Gate,
    Obligation,
    Protection,
    list_overlays,
    list_profiles,
    load_catalogue,
)
from fedvox_compliance.catalogue_loader import build_catalogue
from fedvox_compliance.errors import CatalogueError

# Appendix A to Subpart C of 45 CFR Part 164 ("Security Standards: Matrix"), typed from the regulation: standard, its
# section, and its implementation specifications with (R)equired or (A)ddressable, in the order of the matrix.
APPENDIX_A = """
308(a)(1) R Risk Analysis, R Risk Management, R Sanction Policy, R Information System Activity Review
308(a)(2)
308(a)(3) A Authorization and/or Supervision, A Workforce Clearance Procedure, A Termination Procedures
308(a)(4) R Isolating Clearinghouse Function, A Access Authorization, A Access Establishment and Modification
308(a)(5) A Security Reminders, A Protection from Malicious Software, A Log-in Monitoring, A Password Management
308(a)(6) R Response and Reporting
308(a)(7) R Data Backup Plan, R Disaster Recovery Plan, R Emergency Mode, A Testing and Revision, A Criticality
308(a)(8)
308(b)(1) R Written Contract or Other Arrangement
310(a)(1) A Contingency Operations, A Facility Security Plan, A Access Control and Validation, A Maintenance Records
310(b)
310(c)
310(d)(1) R Disposal, R Media Re-use, A Accountability, A Data Backup and Storage
312(a)(1) R Unique User Identification, R Emergency Access Procedure, A Automatic Logoff, A Encryption and Decryption
312(b)
312(c)(1) A Mechanism to Authenticate ePHI
312(d)
312(e)(1) A Integrity Controls, A Encryption
""".strip()
ISO_COUNTS = {5: 37, 6: 8, 7: 14, 8: 34}
GDPR_ARTICLES = {*range(5, 10), *range(11, 23), *range(24, 41), *range(44, 50), 89}
GATES = {
    "HIPAA.164.308.a.1.ii.A", "HIPAA.164.308.a.6.ii", "HIPAA.164.308.b.3", "HIPAA.164.312.a.2.i",
    "HIPAA.164.312.a.2.iv", "HIPAA.164.312.b", "HIPAA.164.312.d", "HIPAA.164.312.e.2.ii", "HIPAA.164.502.a",
    "GDPR.6.1", "GDPR.9.2", "GDPR.26", "GDPR.28.3", "GDPR.32.1.a", "GDPR.33.1", "GDPR.35.1",
    "ISO27001.A.5.34", "ISO27001.A.8.24", "PLATFORM.FL.1", "PLATFORM.FL.3", "PLATFORM.FL.5",
}  # fmt: skip


@pytest.fixture(scope="module")
def combined() -> Catalogue:
    return load_catalogue("combined")


def matrix() -> list[tuple[str, list[str]]]:
    rows = []
    for line in APPENDIX_A.splitlines():
        section, _, specs = line.partition(" ")
        rows.append((section, [s.strip()[0] for s in specs.split(",") if s.strip()]))
    return rows


def security(catalogue: Catalogue, kind: str) -> list[Any]:
    return [
        c
        for c in catalogue.controls.values()
        if re.match(r"HIPAA\.164\.(308|310|312)\.", c.id) and c.kind == kind
    ]


def test_security_rule_has_18_standards_and_36_specifications_14_required_22_addressable(
    combined: Catalogue,
) -> None:
    assert len(security(combined, "standard")) == 18 == len(matrix())
    by_obligation = Counter(c.obligation for c in security(combined, "specification"))
    assert by_obligation == {Obligation.REQUIRED: 14, Obligation.ADDRESSABLE: 22}
    assert Counter(mark for _, marks in matrix() for mark in marks) == {"R": 14, "A": 22}


def test_every_standard_has_the_specifications_that_appendix_a_lists_with_the_same_marks(
    combined: Catalogue,
) -> None:
    for section, marks in matrix():
        stem = "HIPAA.164." + re.sub(r"[()]+", ".", section).strip(".")
        # 308(a)(1) has its standard at (i) and its specifications below (ii); 310(a)(1) has them below 310(a)(2).
        head = stem.removesuffix(".1") if re.search(r"(310|312)\.[a-e]\.1$|308\.b\.1$", stem) else stem
        found = [
            "A" if c.obligation is Obligation.ADDRESSABLE else "R"
            for c in security(combined, "specification")
            if c.id.startswith(head + ".")
        ]
        assert found == marks, section


def test_iso_annex_a_has_all_93_controls_without_a_hole(combined: Catalogue) -> None:
    ids = [c.id for c in combined.controls.values() if c.framework == "ISO27001:2022"]
    assert ids == [
        f"ISO27001.A.{part}.{n}" for part, count in ISO_COUNTS.items() for n in range(1, count + 1)
    ]


def test_gdpr_covers_each_article_that_puts_a_duty_on_a_clinic(combined: Catalogue) -> None:
    found = {
        int(n)
        for c in combined.controls.values()
        if c.framework == "GDPR"
        for n in re.findall(r"Art\. (\d+)", c.citation)
    }
    assert found == GDPR_ARTICLES


def test_there_are_283_controls_and_hipaa_parts_are_complete(combined: Catalogue) -> None:
    assert Counter(c.framework for c in combined.controls.values()) == {
        "HIPAA": 109, "GDPR": 69, "ISO27001:2022": 93, "PLATFORM": 12,
    }  # fmt: skip
    sections = Counter(c.id.split(".")[2] for c in combined.controls.values() if c.framework == "HIPAA")
    assert sum(n for s, n in sections.items() if 402 <= int(s) <= 414) == 9
    assert sum(n for s, n in sections.items() if int(s) >= 502) == 28


@pytest.mark.parametrize("prefix", ["HIPAA", "ISO27001", "PLATFORM"])
def test_citation_and_id_say_the_same(combined: Catalogue, prefix: str) -> None:
    for control in combined.controls.values():
        if control.id.startswith(prefix + "."):
            cited = re.sub(r"[()\s]+", ".", control.citation.replace("45 CFR", "")).strip(".")
            assert cited.endswith(control.id.removeprefix(prefix + ".")), control.id


def test_gdpr_citation_begins_with_the_article_in_its_id(combined: Catalogue) -> None:
    for control in combined.controls.values():
        if control.framework == "GDPR" and control.id != "GDPR.R26":
            article = re.fullmatch(r"GDPR\.(\d+).*", control.id)
            assert article is not None
            assert control.citation.startswith(f"GDPR Art. {article[1]}"), control.id


def test_clauses_stand_in_the_order_of_the_law(combined: Catalogue) -> None:
    for framework in ("HIPAA", "GDPR"):
        numbers = [
            int(m[0])
            for c in combined.controls.values()
            if c.framework == framework and (m := re.findall(r"(?:164\.|Art\. )(\d+)", c.citation))
        ]
        assert numbers == sorted(numbers)


def test_gates_are_the_21_that_were_decided_on(combined: Catalogue) -> None:
    assert {c.id for c in combined.gates} == GATES
    caps = {c.id for c in combined.gates if c.gate is Gate.CAP}
    assert len(caps) == 6
    assert all(c.severity == "critical" for c in combined.gates)


@pytest.mark.parametrize("profile", list_profiles())
def test_every_profile_asks_for_encryption_and_a_legal_basis_and_nothing_can_leave_them_out(
    profile: str,
) -> None:
    protecting = [c for c in load_catalogue(profile).controls.values() if c.protects]
    assert {c.protects for c in protecting} == set(Protection)
    for control in protecting:
        assert control.gate is Gate.ELIGIBILITY
        assert not control.only_if
        assert not control.na_allowed


def test_not_applicable_is_for_the_statement_of_applicability_alone(combined: Catalogue) -> None:
    allowed = [c for c in combined.controls.values() if c.na_allowed]
    assert {c.framework for c in allowed} == {"ISO27001:2022"}
    assert not [c for c in allowed if c.severity == "critical" or c.gate]


def test_alternatives_are_for_the_22_addressable_specifications_alone(combined: Catalogue) -> None:
    assert sum(c.alternative_allowed for c in combined.controls.values()) == 22


def test_weights_follow_severity_and_not_the_obligation(combined: Catalogue) -> None:
    for control in combined.scored:
        assert control.weight == {"critical": 8, "high": 4, "medium": 2, "low": 1}[control.severity]
    assert {c.id for c in combined.controls.values() if c.informative} == {"GDPR.40", "PLATFORM.FL.12"}


def test_data_quality_is_never_in_the_score(combined: Catalogue) -> None:
    assert all(c.informative for c in combined.controls.values() if c.theme == "quality")


def test_every_control_can_be_answered_from_its_text_alone(combined: Catalogue) -> None:
    for control in combined.controls.values():
        assert control.question.endswith("?"), control.id
        assert 25 < len(control.question) < 320, control.id
        assert control.guidance.endswith((".", "?")), control.id
        assert control.evidence, control.id
        assert control.effort in (1, 2, 3, 5, 8, 13), control.id
    assert len({c.question for c in combined.controls.values()}) == 283


def test_crosswalk_is_symmetric_stays_between_frameworks_and_names_only_what_exists(
    combined: Catalogue,
) -> None:
    for control in combined.controls.values():
        for target in control.maps_to:
            assert control.id in combined.controls[target].maps_to
    raw = module.read_framework_file("crosswalk")["pairs"]
    named = {*raw, *(t for groups in raw.values() for names in groups.values() for t in names)}
    assert named <= set(combined.controls)
    assert len(combined.crosswalk_by_nist) == 2 * 111
    ours = sum(len(c.maps_to) for c in combined.controls.values()) // 2
    assert ours == 424


def test_every_scope_question_leaves_something_out(combined: Catalogue) -> None:
    used = {s for c in combined.controls.values() for s in c.only_if}
    parents = {q.after for q in combined.scope_questions.values() if q.after}
    assert set(combined.scope_questions) == used | parents
    order = list(combined.scope_questions)
    for question in combined.scope_questions.values():
        assert question.after is None or order.index(question.after) < order.index(question.id)


def test_consistency_rules_name_only_what_exists() -> None:
    everything = load_catalogue("combined", ("hipaa-nprm-2025", "iso-clauses"))
    rules = module.read_framework_file("consistency")
    named = {*rules["implies"], *(t for ts in rules["implies"].values() for t in ts)}
    named |= {i for group in rules["same"] for i in group}
    named |= {r["while_yes"] for r in rules["scope"] if "while_yes" in r}
    assert named <= set(everything.controls)
    scope = {n for r in rules["scope"] for k in ("needs", "all_false", "conflicts") for n in r.get(k, ())}
    scope |= {r["true"] for r in rules["scope"] if "true" in r}
    assert scope <= set(everything.scope_questions)


def test_proposed_rule_is_off_by_default_and_makes_every_addressable_specification_required(
    combined: Catalogue,
) -> None:
    proposed = load_catalogue("combined", ("hipaa-nprm-2025",))
    added = set(proposed.controls) - set(combined.controls)
    assert len(added) == 13
    assert all("90 FR 898, proposed" in proposed.controls[i].citation for i in added)
    assert not [c for c in proposed.controls.values() if c.alternative_allowed]
    assert list_overlays()["hipaa-nprm-2025"].status == "proposed"
    assert proposed.sha256 != combined.sha256


def test_iso_clauses_overlay_holds_clauses_4_to_10() -> None:
    plain, full = load_catalogue("iso"), load_catalogue("iso", ("iso-clauses",))
    added = [i.removeprefix("ISO27001.") for i in full.controls if i not in plain.controls]
    assert sorted({int(i.split(".")[0]) for i in added}) == [4, 5, 6, 7, 8, 9, 10]
    assert len(added) == 25


def test_overlay_of_a_framework_that_the_profile_lacks_is_refused() -> None:
    with pytest.raises(CatalogueError, match="does not hold"):
        load_catalogue("gdpr", ("hipaa-nprm-2025",))


def test_unknown_profile_overlay_and_control_are_refused_by_name(combined: Catalogue) -> None:
    with pytest.raises(CatalogueError, match="'hippa'"):
        load_catalogue("hippa")
    with pytest.raises(CatalogueError, match="'nprm'"):
        load_catalogue("hipaa", ("nprm",))
    with pytest.raises(CatalogueError, match=r"Did you mean .*GDPR\.32\.1\.a"):
        combined.control("GDPR.32.1a")


def test_hash_is_the_same_in_another_process_and_differs_by_profile(combined: Catalogue) -> None:
    code = "from fedvox_compliance.catalogue import load_catalogue as l; print(l('combined').sha256)"
    fresh = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "17"}
    )
    assert fresh.stdout.strip() == combined.sha256
    assert len({load_catalogue(p).sha256 for p in list_profiles()}) == 4


def rebuilt(monkeypatch: pytest.MonkeyPatch, change: Any, file: str = "gdpr_principles_rights") -> Catalogue:
    """The gdpr profile from files of which one was changed in memory."""

    def read(name: str) -> Any:
        text = resources.files("fedvox_compliance").joinpath("frameworks", f"{name}.yaml").read_text("utf-8")
        tree = yaml.safe_load(text)
        if name == file:
            change(tree)
        return tree

    monkeypatch.setattr("fedvox_compliance.catalogue_loader.read_framework_file", read)
    return build_catalogue(read("catalogue"), "gdpr", ())


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["controls"][0].update(question="Is it?"),
        lambda t: t["controls"][0]["class"].update(severity="low"),
        lambda t: t["controls"][0]["class"].update(gate="cap"),
        lambda t: t["controls"][0]["class"].update(only_if=["cloud_services"]),
        lambda t: t["controls"].pop(),
    ],
    ids=["question", "severity", "gate", "scope", "missing control"],
)
def test_hash_changes_with_anything_that_changes_a_meaning_or_a_score(
    monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    assert rebuilt(monkeypatch, change).sha256 != load_catalogue("gdpr").sha256


def test_unchanged_files_give_the_same_hash_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rebuilt(monkeypatch, lambda _tree: None).sha256 == load_catalogue("gdpr").sha256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["controls"][0].update(questoin="?"), "questoin"),
        (lambda t: t["controls"][0].pop("guidance"), "guidance"),
        (lambda t: t["controls"][0]["class"].update(theme="magic"), "theme"),
        (lambda t: t["controls"][0]["class"].update(only_if=["moon"]), "scope question"),
        (lambda t: t["controls"][0]["class"].update(severity="huge"), "huge"),
        (lambda t: t["controls"][0]["class"].update(obligation="maybe"), "maybe"),
        (lambda t: t["controls"].append(t["controls"][0]), "twice"),
    ],
)
def test_framework_file_that_contradicts_itself_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    with pytest.raises(CatalogueError, match=said):
        rebuilt(monkeypatch, change)


def test_framework_files_stay_short_enough_to_be_reviewed() -> None:
    folder = resources.files("fedvox_compliance").joinpath("frameworks")
    for file in folder.iterdir():
        if file.name.endswith(".yaml"):
            assert len(file.read_text("utf-8").splitlines()) < 600, file.name


def test_catalogue_cannot_be_changed_in_place(combined: Catalogue) -> None:
    with pytest.raises(TypeError):
        combined.controls["GDPR.6.1"] = None  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        combined.controls["GDPR.6.1"].weight = 0  # type: ignore[misc]


def test_files_read_the_same_without_the_c_library() -> None:
    for folder in ("frameworks", "messages"):
        for file in resources.files("fedvox_compliance").joinpath(folder).iterdir():
            if file.name.endswith(".yaml"):
                text = file.read_text("utf-8")
                assert yaml.load(text, Loader=yaml.SafeLoader) == yaml.load(text, Loader=yaml.CSafeLoader), (
                    file.name
                )
