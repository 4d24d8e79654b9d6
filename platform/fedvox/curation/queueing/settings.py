"""How a round's queue is filled. Imports neither numpy nor torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvox.config import Config


class QueueSection(Config):
    """How a round's queue is filled."""

    budget: float = Field(0.05, gt=0, le=1)
    """Share of all cases that people look at in a round, the audit included."""
    audit_share: float = Field(0.2, ge=0, lt=1)
    """Share of the budget that is drawn at random from the cases which the queue leaves out."""
    double_share: float = Field(0.1, ge=0, le=1)
    """Share of the items that a second person reads too, not knowing the first one's answer; on top of the budget."""
    blind_share: float = Field(0.05, ge=0, le=1)
    """Share of the earlier rounds' reviews that are shown again; on top of the budget."""
    look_minutes: float = Field(0.5, gt=0)
    """To look at a case and accept it, until reviewers have shown how long they take."""
    repair_minutes: float = Field(3.0, gt=0)
    """To repair one structure, on top; each further one of the case takes a quarter of it."""
    order: Literal["priority", "random"] = "priority"
    """`random` ignores what was found: what a curation without checks would do, for comparisons."""
