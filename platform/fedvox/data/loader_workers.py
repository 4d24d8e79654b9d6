"""Background threads that load samples; daemons, so that a thread stuck in a read never keeps a process alive."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import torch

log = logging.getLogger(__name__)

Job = Callable[[], None]


class Workers:
    """Runs jobs in their order of submission on a number of threads, each of which computes single-threaded.

    Args:
        threads: how many.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str = "fedvox-loader") -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._stopping = threading.Event()
        ready = threading.Barrier(threads + 1)
        self._threads = [
            threading.Thread(target=self._run, args=(ready,), name=f"{name}-{n}", daemon=True)
            for n in range(threads)
        ]
        # torch's number of threads is per thread, but newly started threads copy the value that was set last.
        intra_op = torch.get_num_threads()
        for thread in self._threads:
            thread.start()
        ready.wait()
        torch.set_num_threads(intra_op)

    def submit(self, job: Job) -> None:
        """Queues a job, which must not raise."""
        self._jobs.put(job)

    def stop(self) -> None:
        """Drops queued jobs and lets each thread end after its running one; does not wait for that."""
        self._stopping.set()
        for _ in self._threads:
            self._jobs.put(None)

    def close(self, timeout_s: float) -> None:
        """Stops, and waits for the running jobs; threads whose job takes longer end by themselves later."""
        self.stop()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        busy = [thread.name for thread in self._threads if thread.is_alive()]
        if busy:
            log.warning(
                "%s still read after %.0f s; they end when the storage answers", ", ".join(busy), timeout_s
            )

    def _run(self, ready: threading.Barrier) -> None:
        torch.get_num_threads()  # makes torch set this thread up, or it would undo the next line later
        torch.set_num_threads(1)
        ready.wait()
        while (job := self._jobs.get()) is not None:
            if not self._stopping.is_set():
                job()
