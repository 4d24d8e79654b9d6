"""Being asked to stop: SIGTERM on a worker (spot preemption, node drain), or a request in the run directory.

Signal handlers can only be installed in a process's main thread, while Ray Train runs the training function
in another one. Ray unpickles that function in the main thread, though: so the watch installs its handler when
it is unpickled, and travels to the worker as an argument of the training function.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_terminated = threading.Event()


def _on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    _terminated.set()


class PreemptionWatch:
    """Tells the training loop when to stop.

    Args:
        poll_s: seconds between two looks at the stop request, which may lie on S3.
    """

    def __init__(self, poll_s: float = 1.0) -> None:
        self.poll_s = poll_s
        self._asked = False
        self._next_poll = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {"poll_s": self.poll_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
        self.install()

    def install(self) -> None:
        """Replaces the process's reaction to SIGTERM: note it, and let the loop write a checkpoint first."""
        if threading.current_thread() is threading.main_thread():
            _terminated.clear()
            signal.signal(signal.SIGTERM, _on_sigterm)

    def should_stop(self, stop_requested: Callable[[], bool]) -> bool:
        """Whether this process was told to stop.

        Args:
            stop_requested: looks for a stop request; called at most every `poll_s` seconds.
        """
        if _terminated.is_set() or self._asked:
            return True
        if time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + self.poll_s
            self._asked = stop_requested()
        return self._asked
