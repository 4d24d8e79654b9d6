"""The catalogue: what is asked, why, and how much it weighs.

Frameworks are YAML files beside this module, written by hand in the order of the law's clauses:

    frameworks/catalogue.yaml     version, legal state, themes, profiles, scope questions
    frameworks/<file>.yaml        the controls of (a part of) one framework
    frameworks/crosswalk.yaml     which controls of different frameworks ask for the same thing
    frameworks/overlay_*.yaml     changes that are off by default, such as a proposed rule

`load_catalogue("combined")` reads what a profile needs. Its `sha256` covers everything that can change a
question's meaning or a score, so an attestation that names it cannot be carried over to another catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from functools import cached_property, lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import yaml

from fedvox_compliance.canonical import sha256_of
from fedvox_compliance.errors import CatalogueError

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Obligation(StrEnum):
    """How binding a control is in its own framework."""

    REQUIRED = "required"
    ADDRESSABLE = "addressable"
    """HIPAA, 45 CFR 164.306(d)(3): do it, or document why not and do an equivalent alternative."""
    APPLICABILITY = "applicability"
    """ISO/IEC 27001 Annex A: may be excluded in the statement of applicability, with a reason."""
    RECOMMENDED = "recommended"


class Gate(StrEnum):
    """What follows when a gate is not passed."""

    CAP = "cap"
    """The overall score is capped."""
    ELIGIBILITY = "eligibility"
    """The score is capped, and the clinic is not eligible for the study."""


class Protection(StrEnum):
    """The two things without which no answer set is ever eligible."""

    ENCRYPTION = "encryption"
    LEGAL_BASIS = "legal_basis"


@dataclass(frozen=True, slots=True)
class Control:
    """One question of one framework.

    Attributes:
        only_if: scope statements; the control applies if one of them holds or is unanswered. Empty: always.
        effort: person-days to put it in place in a small clinic, as a rough class (1, 2, 3, 5, 8, 13).
        informative: reported, never scored (data quality, voluntary codes).
        maps_to: controls of other frameworks that ask for something similar, symmetric.
    """

    id: str
    framework: str
    citation: str
    title: str
    question: str
    guidance: str
    evidence: tuple[str, ...]
    kind: str
    obligation: Obligation
    theme: str
    severity: str
    weight: int
    effort: int
    gate: Gate | None = None
    protects: Protection | None = None
    only_if: tuple[str, ...] = ()
    informative: bool = False
    maps_to: tuple[str, ...] = ()

    @property
    def na_allowed(self) -> bool:
        """Whether `not applicable` may be answered (a scope statement also leaves controls out).

        Only Annex A controls can be excluded by a justification; critical ones and gates never.
        """
        return (
            self.obligation is Obligation.APPLICABILITY and self.severity != "critical" and self.gate is None
        )

    @property
    def alternative_allowed(self) -> bool:
        """Whether an equivalent alternative with a written reason is an answer (HIPAA's addressable rule)."""
        return self.obligation is Obligation.ADDRESSABLE


@dataclass(frozen=True, slots=True)
class ScopeQuestion:
    """A statement about the clinic that switches controls on or off.

    Attributes:
        after: the statement under which this one is put; where that is false, so is this.
    """

    id: str
    question: str
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Framework:
    """A law, a standard, or the platform's own rules."""

    id: str
    title: str
    edition: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Overlay:
    """A change of a framework that is off unless named. `status` says whether it is law (`in force`, `proposed`)."""

    id: str
    title: str
    status: str


@dataclass(frozen=True, eq=False)  # one object a profile, see load_catalogue; hashed by identity for caches
class Catalogue:
    """All controls of one profile, in order.

    Attributes:
        version: the catalogue's own version.
        law_as_of: the day up to which law was considered.
        controls: by id, ordered by framework and clause.
        scope_questions: those that at least one control of this profile refers to (or another question comes
            after).
    """

    version: str
    law_as_of: date
    profile: str
    overlays: tuple[str, ...]
    frameworks: Mapping[str, Framework]
    themes: tuple[str, ...]
    scope_questions: Mapping[str, ScopeQuestion]
    controls: Mapping[str, Control]
    crosswalk_by_nist: frozenset[tuple[str, str]] = field(default=frozenset(), repr=False)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of everything here that can change a meaning or a score."""
        return sha256_of(
            {
                "version": self.version,
                "profile": self.profile,
                "overlays": list(self.overlays),
                "frameworks": {f.id: f.sha256 for f in self.frameworks.values()},
                "scope": {q.id: [q.question, q.after] for q in self.scope_questions.values()},
                "weights": {c.id: c.weight for c in self.controls.values()},
            }
        )

    @cached_property
    def scored(self) -> tuple[Control, ...]:
        """The controls that count in the score."""
        return tuple(c for c in self.controls.values() if not c.informative)

    @cached_property
    def gates(self) -> tuple[Control, ...]:
        """The controls that are gates."""
        return tuple(c for c in self.controls.values() if c.gate is not None)

    def control(self, control_id: str) -> Control:
        """Look a control up.

        Raises:
            CatalogueError: this profile has no such control; the nearest ids are named.
        """
        found = self.controls.get(control_id)
        if found is not None:
            return found
        from difflib import get_close_matches

        near = get_close_matches(control_id, self.controls, n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else "List the ids with `frameworks --controls`."
        raise CatalogueError(f"the profile {self.profile!r} has no control {control_id!r}", hint)


def list_profiles() -> Mapping[str, tuple[str, ...]]:
    """The profiles, each with its frameworks."""
    return MappingProxyType({k: tuple(v) for k, v in _index()["profiles"].items()})


def list_overlays() -> Mapping[str, Overlay]:
    """The overlays that can be switched on, by id."""
    return MappingProxyType(
        {i: Overlay(i, raw["title"], raw["status"]) for i, raw in _index()["overlays"].items()}
    )


@lru_cache(maxsize=32)
def load_catalogue(profile: str = "combined", overlays: tuple[str, ...] = ()) -> Catalogue:
    """Read the catalogue of a profile.

    Args:
        profile: a name of `list_profiles`.
        overlays: names of `list_overlays`, applied in this order.

    Raises:
        CatalogueError: an unknown profile or overlay, or a framework file that contradicts itself.
    """
    index = _index()
    if profile not in index["profiles"]:
        raise CatalogueError(
            f"there is no profile {profile!r}", f"Choose one of {', '.join(index['profiles'])}."
        )
    unknown = [name for name in overlays if name not in index["overlays"]]
    if unknown:
        raise CatalogueError(
            f"there is no overlay {unknown[0]!r}", f"Known: {', '.join(index['overlays']) or 'none'}."
        )
    from fedvox_compliance.catalogue_loader import build_catalogue

    return build_catalogue(index, profile, overlays)


def read_framework_file(name: str) -> Any:
    """Parse one YAML file of the `frameworks` folder."""
    text = (
        resources.files("fedvox_compliance")
        .joinpath("frameworks", f"{name}.yaml")
        .read_text(encoding="utf-8")
    )
    return yaml.load(text, Loader=_Loader)


@lru_cache(maxsize=1)
def _index() -> dict[str, Any]:
    found: dict[str, Any] = read_framework_file("catalogue")
    return found
