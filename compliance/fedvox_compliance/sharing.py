"""Evidence that may serve more than one question.

The cross-walk says which controls of different frameworks ask for something similar. Where one has documents, they are
suggested for the other, best match first. A suggestion earns nothing: only when a person says that the document shows
this too is it attached, and `shared_from` keeps where it came from.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from dataclasses import dataclass

from fedvox_compliance.assessment import Assessment, Evidence
from fedvox_compliance.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A document of a related control.

    Attributes:
        source: the control that has it.
        by_nist: whether NIST's published mappings link the two as well.
    """

    document: Evidence
    source: str
    by_nist: bool

    def taken_over(self) -> Evidence:
        """The document as it is attached here, once a person has decided so."""
        fields = {n: getattr(self.document, n) for n in Evidence.model_fields}
        return Evidence(**(fields | {"shared_from": self.source}))


def suggest_documents(
    assessment: Assessment, catalogue: Catalogue, control_id: str, *, on: dt.date, limit: int = 5
) -> tuple[Suggestion, ...]:
    """Current documents of related controls that this control does not have, best match first.

    Raises:
        CatalogueError: the profile has no such control.
    """
    control = catalogue.control(control_id)
    entry = assessment.entries.get(control_id)
    present = {e.sha256 for e in entry.evidence} if entry else set()
    found: dict[str, Suggestion] = {}
    for source in control.maps_to:
        related = assessment.entries.get(source)
        by_nist = (control_id, source) in catalogue.crosswalk_by_nist
        for document in related.evidence if related else ():
            if document.sha256 in present or not document.effective <= on <= document.last_day:
                continue
            known = found.get(document.sha256)
            if known is None:
                found[document.sha256] = Suggestion(document, source, by_nist)
            elif by_nist and not known.by_nist:
                found[document.sha256] = dataclasses.replace(known, source=source, by_nist=True)

    def rank(suggestion: Suggestion) -> tuple[bool, bool, str]:
        same_theme = catalogue.controls[suggestion.source].theme == control.theme
        return not suggestion.by_nist, not same_theme, suggestion.document.path

    return tuple(sorted(found.values(), key=rank)[:limit])
