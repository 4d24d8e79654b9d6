"""Both languages say everything, with the same blanks to fill in, and the code asks for nothing that they lack."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest
import yaml

import fedvox_compliance
from fedvox_compliance.assessment import Answer
from fedvox_compliance.catalogue import list_overlays, load_catalogue
from fedvox_compliance.checks import Level
from fedvox_compliance.errors import UsageError
from fedvox_compliance.gaps import Action
from fedvox_compliance.interface import load_interface
from fedvox_compliance.judgement import Assurance, Note, Status
from fedvox_compliance.messages import load_messages
from fedvox_compliance.rules import Rule
from fedvox_compliance.score_report import GateState

ACTIONS = [
    "create", "answer", "clear", "scope", "assign", "evidence", "confirm", "verify", "import", "merge", "upgrade",
]  # fmt: skip
PACKAGE = Path(fedvox_compliance.__file__).parent


def flat(name: str) -> dict[str, str]:
    found: dict[str, str] = {}

    def walk(tree: dict[str, object], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                found[f"{prefix}{key}"] = str(value)

    walk(yaml.safe_load((PACKAGE / "messages" / f"{name}.yaml").read_text("utf-8")), "")
    return found


def blanks(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("file", ["", "interface."])
def test_languages_have_the_same_messages_with_the_same_blanks(file: str) -> None:
    english, german = flat(f"{file}en"), flat(f"{file}de")
    assert set(english) == set(german)
    for key, text in english.items():
        assert blanks(text) == blanks(german[key]), key


def test_every_message_that_the_code_names_exists() -> None:
    known = {*flat("en"), *flat("interface.en")}
    named: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        named |= set(re.findall(r"""\bsay\(\s*"([a-z_]+\.[a-z_0-9.]+)\"""", file.read_text("utf-8")))
    assert len(named) > 100, "the search finds nothing any more"
    assert named <= known, named - known


def test_every_value_that_is_shown_has_a_word() -> None:
    say = load_interface("de")
    keys = [
        *(f"answer.{a}" for a in Answer), *(f"answer_hint.{a}" for a in Answer),
        *(f"assurance.{a.label}" for a in Assurance), *(f"note.{n}" for n in Note), *(f"rule.{r}" for r in Rule),
        *(f"gate.{g}" for g in GateState), *(f"gap.{a}" for a in Action), *(f"status.{s}" for s in Status),
        *(f"finding.level_{v}" for v in Level), *(f"tier.{t}" for t in range(5)),
        *(f"theme.{t}" for t in load_catalogue("combined").themes),
        *(f"action.{a}" for a in ACTIONS),
    ]  # fmt: skip
    assert [k for k in keys if not say.has(k)] == []


def test_all_questions_titles_and_guidance_are_in_german_and_differ_from_the_english() -> None:
    say, english = load_messages("de"), load_messages("en")
    catalogue = load_catalogue("combined", ("hipaa-nprm-2025", "iso-clauses"))
    assert len(catalogue.controls) == 321
    for control in catalogue.controls.values():
        for text in (say.question, say.title, say.guidance):
            assert not text(control).startswith("[en]"), control.id
        assert say.question(control) != english.question(control)
        assert say.question(control).endswith("?"), control.id
        assert say.guidance(control).endswith((".", "?")), control.id
        assert not re.search(r"\b(the|your|are|with)\b", say.question(control)), control.id
    for question in catalogue.scope_questions.values():
        assert not say.scope_question(question).startswith("[en]"), question.id
        assert say.scope_question(question).endswith("?")


def test_everything_else_that_the_catalogue_shows_is_in_german_too() -> None:
    """What an assessor would expect, the names of laws and overlays: nothing English is left in a German form."""
    say = load_interface("de")
    catalogue = load_catalogue("combined", ("hipaa-nprm-2025", "iso-clauses"))
    wanted: set[str] = set()
    for control in catalogue.controls.values():
        wanted |= set(control.evidence)
        for item, english in zip(say.expected(control), control.evidence, strict=True):
            assert not item.startswith("[en]"), (control.id, item)
            assert not re.search(r"\b(the|of|with|list|record|last|and)\b", item), (control.id, item)
            assert item != english or english in {"Baseline"}, (control.id, item)
    tree = yaml.safe_load((PACKAGE / "messages" / "catalogue.de.yaml").read_text("utf-8"))
    assert set(tree["evidence"]) == wanted
    for framework in catalogue.frameworks.values():
        assert not any(text.startswith("[en]") for text in say.framework(framework))
        assert say.has(f"framework.{framework.id}")
    for overlay in list_overlays().values():
        assert not any(text.startswith("[en]") for text in say.overlay(overlay))


def test_no_german_message_is_the_english_one() -> None:
    same = {"HIPAA", "ISO/IEC 27001", "{points}", "Stand"}
    for file in ("", "interface."):
        english, german = flat(f"{file}en"), flat(f"{file}de")
        left = {
            k: t
            for k, t in german.items()
            if t == english[k] and re.search(r"[a-z]{4}", re.sub(r"{.*?}", "", t))
        }
        assert {k: t for k, t in left.items() if t not in same} == {}


def test_german_files_name_no_control_that_does_not_exist_and_ask_nothing_twice() -> None:
    catalogue = load_catalogue("combined", ("hipaa-nprm-2025", "iso-clauses"))
    seen: list[str] = []
    for file in sorted((PACKAGE / "messages").glob("controls_*.de.yaml")):
        tree = yaml.safe_load(file.read_text("utf-8"))
        seen += [*tree.get("controls", {}), *(f"scope.{s}" for s in tree.get("scope", {}))]
        for texts in tree.get("controls", {}).values():
            assert set(texts) == {"title", "question", "guidance"}
    assert len(seen) == len(set(seen))
    assert set(seen) == {*catalogue.controls, *(f"scope.{s}" for s in catalogue.scope_questions)}
    say = load_messages("de")
    questions = [say.question(c) for c in catalogue.controls.values()]
    assert len(questions) == len(set(questions))


def test_missing_translation_is_marked_and_not_guessed() -> None:
    say = load_messages("de")
    bare = type(say)("de", {}, say._english, {}, {})
    control = load_catalogue("gdpr").control("GDPR.6.1")
    assert bare.question(control) == "[en] " + control.question
    assert bare("disclaimer").startswith("[en] Self-assessment aid")


def test_unknown_language_is_refused() -> None:
    with pytest.raises(UsageError, match="'fr'"):
        load_messages("fr")


def test_no_message_calls_anybody_compliant_or_certified() -> None:
    for name in ("en", "de", "interface.en", "interface.de"):
        for key, text in flat(name).items():
            assert not re.search(r"\b(compliant|certified|konform|zertifiziert)\b", text, re.I), key
