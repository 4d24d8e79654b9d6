"""How far an ingest is: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedvox.data.ingest_case import CaseOutcome

_LINE_EVERY_S = 30.0


class Follow(Protocol):
    """Told of every outcome."""

    def __call__(self, outcome: CaseOutcome) -> None: ...  # noqa: D102


@contextmanager
def followed(task: str, total: int) -> Iterator[Follow]:
    """Shows the progress of one pass on stderr; `FEDVOX_PROGRESS=0` turns it off.

    Args:
        task: "measuring" or "writing".
        total: number of cases.
    """
    counts: Counter[str] = Counter()
    if os.environ.get("FEDVOX_PROGRESS") == "0":
        yield lambda outcome: counts.update([outcome.status])
    elif sys.stderr.isatty():
        with _bar(task, total, counts) as follow:
            yield follow
    else:
        yield _lines(task, total, counts)


@contextmanager
def _bar(task: str, total: int, counts: Counter[str]) -> Iterator[Follow]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rejected]} rejected"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(task, total=total, rejected=0)

        def follow(outcome: CaseOutcome) -> None:
            counts.update([outcome.status])
            progress.update(bar, advance=1, rejected=counts.total() - counts["accepted"])

        yield follow


def _lines(task: str, total: int, counts: Counter[str]) -> Follow:
    begin = last = time.monotonic()

    def follow(outcome: CaseOutcome) -> None:
        nonlocal last
        counts.update([outcome.status])
        now = time.monotonic()
        if now - last < _LINE_EVERY_S and counts.total() < total:
            return
        last = now
        left = (now - begin) / counts.total() * (total - counts.total())
        rejected = counts.total() - counts["accepted"]
        print(f"{task} {counts.total()}/{total}, {rejected} rejected, {left:.0f} s left", file=sys.stderr)  # noqa: T201

    return follow
