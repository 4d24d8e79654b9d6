"""From the YAML files of `frameworks/` to a `Catalogue`, refusing what contradicts itself."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fedvox_compliance.canonical import sha256_of
from fedvox_compliance.catalogue import (
    Catalogue,
    Control,
    Framework,
    Gate,
    Obligation,
    Protection,
    ScopeQuestion,
    read_framework_file,
)
from fedvox_compliance.errors import CatalogueError

_KEYS = {"id", "citation", "title", "class", "question", "guidance", "evidence"}
_CLASS_KEYS = {
    "kind", "obligation", "theme", "severity", "effort", "gate", "protects", "only_if", "informative",
}  # fmt: skip


def build_catalogue(index: dict[str, Any], profile: str, overlays: tuple[str, ...]) -> Catalogue:
    """Assemble the catalogue of a profile from the index and the framework files.

    Raises:
        CatalogueError: see `load_catalogue`.
    """
    by_framework = {
        name: [
            _control(raw, name, index)
            for file in index["frameworks"][name]["files"]
            for raw in _raw_controls(file)
        ]
        for name in index["profiles"][profile]
    }
    for overlay in overlays:
        _apply_overlay(by_framework, index, overlay)
    controls = {c.id: c for group in by_framework.values() for c in group}
    if len(controls) != sum(map(len, by_framework.values())):
        raise CatalogueError(f"a control id occurs twice in the profile {profile!r}")
    pairs, by_nist = _crosswalk(controls)
    controls = {
        i: dataclasses.replace(c, maps_to=tuple(t for t in controls if t in pairs[i]))
        for i, c in controls.items()
    }
    return Catalogue(
        version=index["version"],
        law_as_of=index["law_as_of"],
        profile=profile,
        overlays=overlays,
        frameworks=MappingProxyType({n: _framework(n, index, by_framework[n]) for n in by_framework}),
        themes=tuple(t for t in index["themes"] if any(c.theme == t for c in controls.values())),
        scope_questions=MappingProxyType(_scope_questions(index["scope"], controls)),
        controls=MappingProxyType(controls),
        crosswalk_by_nist=frozenset(by_nist),
    )


def _raw_controls(file: str) -> list[dict[str, Any]]:
    raw: list[dict[str, Any]] = read_framework_file(file)["controls"]
    return raw


def _control(raw: dict[str, Any], framework: str, index: dict[str, Any]) -> Control:
    name = raw.get("id", "(a control without an id)")
    classes = raw.get("class", {})
    odd = (set(raw) ^ _KEYS) | (set(classes) - _CLASS_KEYS)
    if odd:
        raise CatalogueError(f"{framework}: {name} has missing or unknown keys: {', '.join(sorted(odd))}")
    unknown = [s for s in classes.get("only_if", []) if s not in index["scope"]]
    if unknown or classes["theme"] not in index["themes"]:
        raise CatalogueError(f"{framework}: {name} names an unknown scope question or theme")
    try:
        return Control(
            id=name,
            framework=framework,
            citation=raw["citation"],
            title=raw["title"],
            question=raw["question"].strip(),
            guidance=raw["guidance"].strip(),
            evidence=tuple(raw["evidence"]),
            kind=classes["kind"],
            obligation=Obligation(classes["obligation"]),
            theme=classes["theme"],
            severity=classes["severity"],
            weight=0 if classes.get("informative") else index["severities"][classes["severity"]],
            effort=classes["effort"],
            gate=Gate(classes["gate"]) if "gate" in classes else None,
            protects=Protection(classes["protects"]) if "protects" in classes else None,
            only_if=tuple(classes.get("only_if", ())),
            informative=bool(classes.get("informative", False)),
        )
    except (KeyError, ValueError) as wrong:
        raise CatalogueError(f"{framework}: {name} has a class that cannot be read: {wrong}") from wrong


def _framework(name: str, index: dict[str, Any], controls: list[Control]) -> Framework:
    meta = index["frameworks"][name]
    content = [dataclasses.astuple(dataclasses.replace(c, maps_to=())) for c in controls]
    sha256 = sha256_of([name, meta["edition"], content])
    return Framework(name, meta["title"], meta["edition"], sha256)


def _scope_questions(raw: dict[str, Any], controls: Mapping[str, Control]) -> dict[str, ScopeQuestion]:
    used = {s for c in controls.values() for s in c.only_if}
    used |= {raw[s]["after"] for s in used if "after" in raw[s]}
    return {s: ScopeQuestion(s, raw[s]["question"], raw[s].get("after")) for s in raw if s in used}


def _crosswalk(controls: Mapping[str, Control]) -> tuple[dict[str, set[str]], set[tuple[str, str]]]:
    pairs: dict[str, set[str]] = defaultdict(set)
    by_nist: set[tuple[str, str]] = set()
    for source, targets in read_framework_file("crosswalk")["pairs"].items():
        for way, names in targets.items():
            for target in names:
                if source in controls and target in controls:
                    pairs[source].add(target)
                    pairs[target].add(source)
                    if way == "nist":
                        by_nist |= {(source, target), (target, source)}
    return pairs, by_nist


def _apply_overlay(by_framework: dict[str, list[Control]], index: dict[str, Any], overlay: str) -> None:
    raw = read_framework_file(index["overlays"][overlay]["file"])
    framework = raw["framework"]
    if framework not in by_framework:
        raise CatalogueError(
            f"the overlay {overlay!r} changes {framework}, which this profile does not hold",
            "Choose a profile with that framework, or leave the overlay out.",
        )
    promote = {Obligation(k): Obligation(v) for k, v in raw.get("obligations", {}).items()}
    changed = [
        dataclasses.replace(c, obligation=promote.get(c.obligation, c.obligation))
        for c in by_framework[framework]
    ]
    by_framework[framework] = changed + [_control(c, framework, index) for c in raw["controls"]]
