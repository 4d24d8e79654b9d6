"""How far a prediction is: two bars on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedvox.inference.predictor import CaseOutcome

_LINE_EVERY_S = 30.0

OnOutcome = Callable[[CaseOutcome], None]
OnWindows = Callable[[int, int], None]


@contextmanager
def followed(total: int) -> Iterator[tuple[OnOutcome, OnWindows | None]]:
    """Shows progress on stderr; `FEDVOX_PROGRESS=0` turns it off.

    Args:
        total: number of cases.

    Yields:
        what is to be told of every case, and of windows.
    """
    if os.environ.get("FEDVOX_PROGRESS") == "0":
        yield lambda _: None, None
    elif sys.stderr.isatty():
        with _bars(total) as told:
            yield told
    else:
        yield _lines(total), None


@contextmanager
def _bars(total: int) -> Iterator[tuple[OnOutcome, OnWindows]]:
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        cases, windows = progress.add_task("cases", total=total), progress.add_task("windows", total=None)

        def on_outcome(_: CaseOutcome) -> None:
            progress.update(cases, advance=1)

        def on_windows(done: int, of: int) -> None:
            progress.update(windows, completed=done, total=of)

        yield on_outcome, on_windows


def _lines(total: int) -> OnOutcome:
    begin = last = time.monotonic()
    done = 0

    def on_outcome(outcome: CaseOutcome) -> None:
        nonlocal last, done
        done += 1
        now = time.monotonic()
        if outcome.message:
            print(f"{outcome.case_id}: {outcome.status}: {outcome.message}", file=sys.stderr)  # noqa: T201
        if now - last >= _LINE_EVERY_S or done == total:
            last = now
            left = (now - begin) / done * (total - done)
            print(f"predicting {done}/{total}, {left:.0f} s left", file=sys.stderr)  # noqa: T201

    return on_outcome
