"""The words that people read, kept out of the code: `messages/<language>.yaml`, `controls_*.<language>.yaml`.

Ids and answers in files are never translated; only what is shown is. What a language lacks is shown in
English and marked, so a missing translation is seen rather than guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from fedvox_compliance.catalogue import Control, Framework, Overlay, ScopeQuestion
from fedvox_compliance.errors import UsageError
from fedvox_compliance.rules import Broken

LANGUAGES = ("en", "de")
_PARTS = ("scope", "hipaa", "gdpr", "iso27001", "platform", "overlays")  # controls_<part>.<language>.yaml
_UNTRANSLATED = "[en] "
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Messages:
    """All wording of one language.

    Attributes:
        language: `en` or `de`.
    """

    language: str
    _texts: Mapping[str, str]
    _english: Mapping[str, str]
    _controls: Mapping[str, Mapping[str, str]]
    _scope: Mapping[str, str]
    _catalogue: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, key: str, **values: object) -> str:
        """The text of a key, with its placeholders filled in.

        Raises:
            KeyError: there is no such message; a test makes sure that the code names none.
        """
        text = self._texts.get(key)
        if text is None:
            text = (_UNTRANSLATED if self.language != "en" else "") + self._english[key]
        return text.format(**values) if values else text

    def has(self, key: str) -> bool:
        """Whether there is such a message in any language."""
        return key in self._texts or key in self._english

    def question(self, control: Control) -> str:
        """A control's question."""
        return self._of_control(control, "question", control.question)

    def title(self, control: Control) -> str:
        """A control's title."""
        return self._of_control(control, "title", control.title)

    def guidance(self, control: Control) -> str:
        """What helps to answer."""
        return self._of_control(control, "guidance", control.guidance)

    def scope_question(self, question: ScopeQuestion) -> str:
        """A scope question."""
        if self.language == "en":
            return question.question
        return self._scope.get(question.id) or _UNTRANSLATED + question.question

    def expected(self, control: Control) -> tuple[str, ...]:
        """What an assessor would expect to be shown."""
        return tuple(self._of_catalogue(item, "evidence", item) for item in control.evidence)

    def framework(self, framework: Framework) -> tuple[str, str]:
        """Title and edition of a framework."""
        kept = ("frameworks", framework.id)
        return (
            self._of_catalogue(framework.title, *kept, "title"),
            self._of_catalogue(framework.edition, *kept, "edition"),
        )

    def overlay(self, overlay: Overlay) -> tuple[str, str]:
        """Title and status of an overlay."""
        kept = ("overlays", overlay.id)
        return (
            self._of_catalogue(overlay.title, *kept, "title"),
            self._of_catalogue(overlay.status, *kept, "status"),
        )

    def _of_catalogue(self, english: str, *path: str) -> str:
        if self.language == "en":
            return english
        found: Any = self._catalogue
        for key in path:
            found = found.get(key, {})
        return found or _UNTRANSLATED + english

    def _of_control(self, control: Control, what: str, english: str) -> str:
        if self.language == "en" or not english:
            return english
        return self._controls.get(control.id, {}).get(what) or _UNTRANSLATED + english


@lru_cache(maxsize=4)
def load_messages(language: str = "en") -> Messages:
    """The wording of a language.

    Raises:
        UsageError: there is no such language.
    """
    if language not in LANGUAGES:
        raise UsageError(f"there is no language {language!r}", f"Choose one of {', '.join(LANGUAGES)}.")
    english = _flatten(_read("en"))
    overlays = [_read(f"controls_{part}.{language}") for part in _PARTS] if language != "en" else []
    listed = _read(f"catalogue.{language}") if language != "en" else {}
    return Messages(
        language=language,
        _catalogue=listed,
        _texts=english if language == "en" else _flatten(_read(language)),
        _english=english,
        _controls={i: texts for o in overlays for i, texts in o.get("controls", {}).items()},
        _scope={i: text for o in overlays for i, text in o.get("scope", {}).items()},
    )


def describe_broken(broken: Broken, language: str = "en") -> str:
    """One broken rule in words."""
    return load_messages(language)(f"rule.{broken.rule}", control=broken.control, **broken.details)


def read_texts(name: str) -> Mapping[str, str]:
    """The texts of one message file, by dotted key."""
    return _flatten(_read(name))


def _read(name: str) -> dict[str, Any]:
    text = (
        resources.files("fedvox_compliance").joinpath("messages", f"{name}.yaml").read_text(encoding="utf-8")
    )
    found: dict[str, Any] = yaml.load(text, Loader=_Loader) or {}
    return found


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested sections as dotted keys."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= _flatten(value, f"{name}.")
        else:
            found[name] = str(value)
    return found
