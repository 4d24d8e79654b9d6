"""Pieces of work by name, each of which leaves its result behind by itself; run here one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedvox.errors import FedvoxError

Task = Callable[[], dict[str, Any]]
Told = Callable[[str, str], None]
"""Told of a task by name: `started`, `done` or `failed`; and now and then, with an empty name, that time passes."""


def run_here(tasks: Mapping[str, Task], told: Told) -> dict[str, FedvoxError]:
    """Runs tasks in this process; one that fails does not stop the others.

    Returns:
        Why tasks failed, by name; empty if none did.
    """
    failures: dict[str, FedvoxError] = {}
    for name, task in tasks.items():
        told(name, "started")
        try:
            task()
        except FedvoxError as error:
            failures[name] = error
        told(name, "failed" if name in failures else "done")
    return failures
