"""A node's disk cache of what was read from a remote store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheConfig:
    """Where and how much a node keeps.

    Args:
        folder: on a local disk; shared by all processes of the node.
        budget_gib: bytes kept, in GiB; the least recently used go first.
        prefetch_threads: threads that fetch ahead.
    """

    folder: str
    budget_gib: float
    prefetch_threads: int = 2
