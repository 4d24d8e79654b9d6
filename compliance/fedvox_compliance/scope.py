"""Which controls a clinic's own statements leave out.

A statement that is not made leaves nothing out: an unanswered scope question keeps its controls, so silence
never makes an assessment shorter.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedvox_compliance.catalogue import Catalogue, Control, ScopeQuestion


def holds(question: ScopeQuestion, stated: Mapping[str, bool]) -> bool | None:
    """Whether a scope statement holds; None when it is open."""
    if question.after is not None and stated.get(question.after) is False:
        return False
    return stated.get(question.id)


def in_scope(control: Control, catalogue: Catalogue, stated: Mapping[str, bool]) -> bool:
    """Whether a control applies, given the clinic's scope statements."""
    if not control.only_if:
        return True
    return any(holds(catalogue.scope_questions[s], stated) is not False for s in control.only_if)


def out_of_scope(catalogue: Catalogue, stated: Mapping[str, bool]) -> frozenset[str]:
    """The ids of all controls that the clinic's scope statements leave out."""
    return frozenset(c.id for c in catalogue.controls.values() if not in_scope(c, catalogue, stated))


def open_scope_questions(catalogue: Catalogue, stated: Mapping[str, bool]) -> tuple[ScopeQuestion, ...]:
    """The scope questions still to be put, in order."""
    return tuple(q for q in catalogue.scope_questions.values() if holds(q, stated) is None)
