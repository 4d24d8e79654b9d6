"""Answers as YAML: strict about structure, kind about spelling (`yes` may be written without quotes)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import Any

import yaml

from fedvox_compliance.assessment import Assessment, to_jsonable
from fedvox_compliance.catalogue import Catalogue
from fedvox_compliance.errors import AssessmentError
from fedvox_compliance.exchange import Sheet, parts_of
from fedvox_compliance.merge import fingerprint
from fedvox_compliance.messages import load_messages
from fedvox_compliance.rules import allowed_answers

SCHEMA = "fedvox.answers/1"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_TOP_KEYS = {"schema", "clinic", "profile", "overlays", "catalogue", "disclaimer", "scope", "answers"}
_SHOWN_ONLY = {"title", "question", "allowed", "citation"}
_MAX_DEPTH = 20


def write_yaml(
    assessment: Assessment,
    catalogue: Catalogue,
    *,
    only: Collection[str] | None = None,
    language: str = "en",
) -> str:
    """An assessment, or some of its controls, as YAML with the questions beside the answers."""
    say = load_messages(language)
    questions, controls = parts_of(catalogue, only)
    scope = {}
    for name in questions:
        said = assessment.scope.get(name)
        scope[name] = {
            "question": say.scope_question(catalogue.scope_questions[name]),
            "base": fingerprint(said),
            **(to_jsonable(said) if said else {}),
        }
    answers = {}
    for control_id in controls:
        control, entry = catalogue.controls[control_id], assessment.entries.get(control_id)
        answers[control_id] = {
            "citation": control.citation,
            "question": say.question(control),
            "allowed": [a.value for a in allowed_answers(control)],
            "base": fingerprint(entry),
            **(to_jsonable(entry) if entry else {}),
        }
    tree = {
        "schema": SCHEMA,
        "disclaimer": say("disclaimer"),
        "clinic": assessment.clinic,
        "profile": assessment.profile,
        "overlays": list(assessment.overlays),
        "catalogue": {"version": catalogue.version, "sha256": catalogue.sha256},
        "scope": scope,
        "answers": answers,
    }
    text: str = yaml.dump(tree, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=110)
    return text


def parse_yaml(data: bytes, *, source: str) -> Sheet:
    """Read such a file back.

    Raises:
        AssessmentError: not YAML, or not of this form.
    """
    tree = _load(data, source)
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        raise AssessmentError(f"{source}: is no file of answers ({SCHEMA})", "Make one with `export`.")
    unknown = sorted(map(str, set(tree) - _TOP_KEYS))
    if unknown:
        raise AssessmentError(f"{source}: unknown keys: {', '.join(unknown[:5])}", "Remove or correct them.")
    catalogue = tree.get("catalogue") or {}
    scope, bases = _section(tree.get("scope"), "scope", source)
    entries, entry_bases = _section(tree.get("answers"), "answers", source)
    return Sheet(
        source=source,
        catalogue_sha256=_text_or_none(catalogue.get("sha256") if isinstance(catalogue, dict) else None),
        scope={i: raw for i, raw in scope.items() if "applies" in raw},
        entries={i: _entry_fields(raw) for i, raw in entries.items() if raw},
        bases=bases | entry_bases,
    )


def _entry_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """YAML reads an unquoted yes or no as true or false; here they are answers."""
    answer = raw.get("answer")
    return raw | {"answer": {True: "yes", False: "no"}[answer]} if isinstance(answer, bool) else raw


def _section(tree: Any, name: str, source: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict) or not all(isinstance(v, dict) for v in tree.values()):
        raise AssessmentError(
            f"{source}: {name} must map ids to their fields", "Compare it with a fresh export."
        )
    bases = {str(i): str(raw.get("base", "")) for i, raw in tree.items()}
    fields = {
        str(i): {str(k): _plain(v) for k, v in raw.items() if k not in _SHOWN_ONLY | {"base"}}
        for i, raw in tree.items()
    }
    return fields, bases


def _plain(value: Any) -> Any:
    """YAML's dates as text, so that everything is a JSON value."""
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def _load(data: bytes, source: str) -> Any:
    try:
        loader = _Loader(data.decode("utf-8-sig"))
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_tricks(node, set(), 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as wrong:
        raise AssessmentError(
            f"{source}: not readable as YAML: {_first_line(wrong)}", "Correct the file."
        ) from None


def _refuse_tricks(node: Any, seen: set[int], depth: int) -> None:
    """No aliases (they can blow a small file up), no repeated keys (readers would differ), no bottomless nesting.

    Raises:
        ValueError: one of these was found.
    """
    if id(node) in seen:
        raise ValueError("anchors and aliases are not accepted")
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys = [key.value if isinstance(key, yaml.ScalarNode) else None for key, _ in node.value]
        if None in keys or len(set(keys)) != len(keys):
            raise ValueError(f"a key is repeated or is no text, near line {node.start_mark.line + 1}")
        for key, value in node.value:
            seen.add(id(key))
            _refuse_tricks(value, seen, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_tricks(item, seen, depth + 1)


def _first_line(wrong: Exception) -> str:
    return " ".join(str(wrong).split())[:200]
