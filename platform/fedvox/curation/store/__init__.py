"""The label store: versions, decisions, findings, queue, rounds and the log of it all."""

from fedvox.curation.store.label_store import LabelStore
from fedvox.curation.store.records import (
    AuditEntry,
    Case,
    Decision,
    Finding,
    NewCase,
    NewItem,
    NewVersion,
    Person,
    Purpose,
    QueueItem,
    Review,
    Role,
    Source,
    Verdict,
    Version,
)
from fedvox.curation.store.rounds import Round

__all__ = [
    "AuditEntry",
    "Case",
    "Decision",
    "Finding",
    "LabelStore",
    "NewCase",
    "NewItem",
    "NewVersion",
    "Person",
    "Purpose",
    "QueueItem",
    "Review",
    "Role",
    "Round",
    "Source",
    "Verdict",
    "Version",
]
