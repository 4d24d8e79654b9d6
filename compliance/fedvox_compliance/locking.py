"""One writer at a time in an assessment's folder, across the terminal and the web form."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedvox_compliance.errors import ComplianceError, UsageError

_WAIT_S = 10.0


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it when the process dies, however it dies.

    Raises:
        ComplianceError: another program holds it for longer than ten seconds.
        UsageError: the folder cannot be written to. Nothing has been tried yet: a history file that can be written in
            a folder that cannot would otherwise take a change whose command then reports failure.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: cannot be written to", "Check your rights on the folder.")
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as wrong:
        raise UsageError(
            f"{folder}: cannot be locked: {wrong.strerror}", "Check your rights on the folder."
        ) from None
    try:
        deadline = time.monotonic() + _WAIT_S
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                raise ComplianceError(
                    f"{folder}: in use by another program", "Close it there, then try again."
                )
            time.sleep(0.02)
        yield
    finally:
        os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
