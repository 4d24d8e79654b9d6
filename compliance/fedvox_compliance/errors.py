"""Every error that the compliance package raises on purpose, with its exit code.

    ComplianceError             what went wrong, and what to do about it; exit code 1
    ├── UsageError              a command, an option or an input file cannot be used; 2
    │   ├── CatalogueError      a framework file, a profile or an overlay
    │   ├── AssessmentError     an assessment, an answer or an imported sheet
    │   └── EvidenceError       an evidence file
    ├── ConflictError           somebody else changed the same thing meanwhile; 1
    ├── IncompleteError         questions are still open; 3
    ├── BelowThresholdError     the score is below what was asked for; 4
    ├── GateError               an eligibility gate is not passed; 5
    ├── IntegrityError          a signature, hash or history does not hold; 6
    └── ExpiredError            an answer, a document or an attestation is out of date; 7

The package stands alone (a clinic's office PC has neither torch nor the core library), hence a tree of its
own. Commands print `message` and `remedy` and leave with `exit_code`; there is no traceback without
`--debug`.
"""

from __future__ import annotations

from collections.abc import Callable


class ComplianceError(Exception):
    """An expected failure, told in words that a clinic can act on.

    Args:
        message: names the thing (file, control, field), what was found and what was expected.
        remedy: what to do about it, as an instruction.
        translate: gives the message in a language, for what people meet in a form or a conversation.
    """

    exit_code = 1

    def __init__(
        self, message: str, remedy: str = "", *, translate: Callable[[str], str] | None = None
    ) -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy
        self._translate = translate

    def told_in(self, language: str) -> str:
        """The message in a language; in English where nobody translated it."""
        return self.message if self._translate is None else self._translate(language)

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}" if self.remedy else self.message


class UsageError(ComplianceError):
    """The input is at fault, not the program."""

    exit_code = 2


class CatalogueError(UsageError):
    """A framework file, a profile or an overlay cannot be used."""


class AssessmentError(UsageError):
    """An assessment, an answer or an imported sheet cannot be used."""


class EvidenceError(UsageError):
    """An evidence file is missing, outside the assessment's folder, or not a file."""


class ConflictError(ComplianceError):
    """Somebody else changed the same thing in the meantime; nothing was written."""


class IncompleteError(ComplianceError):
    """Questions are still open."""

    exit_code = 3


class BelowThresholdError(ComplianceError):
    """The score is below the threshold that the caller asked for."""

    exit_code = 4


class GateError(ComplianceError):
    """At least one eligibility gate is not passed."""

    exit_code = 5


class IntegrityError(ComplianceError):
    """A signature, a hash or a history does not hold."""

    exit_code = 6


class ExpiredError(ComplianceError):
    """An answer, a document or an attestation is out of date."""

    exit_code = 7
