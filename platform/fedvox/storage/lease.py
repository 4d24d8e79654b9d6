"""One process at a time in a folder that several machines reach, on a local disk or S3.

S3 has no locks. The holder therefore keeps a small file alive by counting it up, and whoever finds such a file
watches whether it still counts: no clocks are compared. A holder that died on this machine is known to be dead at
once; one that died elsewhere is waited out.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedvox.errors import FedvoxError, StorageError
from fedvox.storage.files import delete, exists, read_bytes, write_atomic
from fedvox.storage.location import Location
from fedvox.storage.retry import RetryPolicy

log = logging.getLogger(__name__)

BEAT_S = 5.0
"""Seconds between two beats of a holder."""
STALE_S = 45.0
"""A holder whose file has not changed for so long is taken to be dead: nine beats, so that a slow store or a busy
machine does not look like death."""
_SHORT = RetryPolicy(deadline_s=5.0)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        token: of this holding.
        machine: host, boot and process namespace, within which `pid` means something.
        host: for people.
        pid: of the holding process.
        beats: counted up while it lives.
    """

    token: str
    machine: str
    host: str
    pid: int
    beats: int = 0

    @classmethod
    def this_process(cls) -> Holder:
        """A new holding by this process."""
        return cls(uuid.uuid4().hex, _machine(), platform.node(), os.getpid())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_dead(self) -> bool:
        """Whether it certainly lives no more; only a process of this machine can be known to."""
        if self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's, which lives
            return False
        return _is_zombie(self.pid)


class Held(Exception):
    """Somebody else is at work here.

    Args:
        holder: who.
    """

    def __init__(self, holder: Holder) -> None:
        super().__init__(str(holder))
        self.holder = holder


@contextmanager
def lease(
    location: Location, on_loss: Callable[[Holder], None], *, beat_s: float = BEAT_S, stale_s: float = STALE_S
) -> Iterator[None]:
    """Holds a lease while the block runs.

    Two processes that take over from a dead holder in the same instant both believe to have the lease until the
    next beat, when one of them learns by `on_loss` that it has not.

    Args:
        location: the lease's file.
        on_loss: called once, from a thread, when somebody else has taken the lease, because this process had stood
            still for too long.
        beat_s: seconds between two beats.
        stale_s: seconds without a beat after which a holder is dead.

    Raises:
        Held: a living process has it.
        StorageError: the file cannot be read or written.
    """
    _wait_for_the_dead(location, stale_s)
    mine = Holder.this_process()
    _write(location, mine)
    done = threading.Event()
    beating = threading.Thread(
        target=_beat, args=(location, mine, on_loss, done, beat_s), name="lease", daemon=True
    )
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        _leave(location, mine)


def _wait_for_the_dead(location: Location, stale_s: float) -> None:
    """Returns when nobody holds the lease, or its holder has shown no sign of life for `stale_s`.

    Raises:
        Held: its holder lives.
    """
    first = _read(location)
    if first is None or first.is_dead:
        return
    log.warning(
        "%s was at work here; looking for up to %.0f s whether it still is",
        first,
        stale_s,
    )
    end = time.monotonic() + stale_s
    while time.monotonic() < end:
        time.sleep(min(0.5, stale_s / 10))
        now = _read(location)
        if now is None or now.is_dead:
            return
        if now != first:
            raise Held(now)


def _beat(
    location: Location,
    mine: Holder,
    on_loss: Callable[[Holder], None],
    done: threading.Event,
    beat_s: float,
) -> None:
    while not done.wait(beat_s):
        try:
            found = _read(location)
            if found is not None and found.token != mine.token:
                on_loss(found)
                return
            mine = replace(mine, beats=mine.beats + 1)
            _write(location, mine)
        except (FedvoxError, OSError) as error:  # out of reach for now: work must not stop for its lease
            log.warning("the lease could not be renewed: %s", error)


def _leave(location: Location, mine: Holder) -> None:
    try:
        found = _read(location)
        if found is not None and found.token == mine.token:
            delete(location, retry=_SHORT)
    except (FedvoxError, OSError) as error:  # the next one will find this process dead
        log.warning("the lease could not be given back: %s", error)


def _read(location: Location) -> Holder | None:
    """Who holds it; None for nobody, or for a file that no holder wrote."""
    if not exists(location, retry=_SHORT):
        return None
    try:
        return Holder(**json.loads(read_bytes(location, retry=_SHORT)))
    except StorageError:
        if exists(location, retry=_SHORT):
            raise
        return None  # given back between the two looks
    except (ValueError, TypeError):
        log.warning("%s: is no lease and is written anew", location.uri)
        return None


def _write(location: Location, holder: Holder) -> None:
    write_atomic(location, f"{json.dumps(asdict(holder))}\n".encode(), retry=_SHORT)


def _machine() -> str:
    """Names the machine, its boot and the process namespace: what a process id is relative to."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [platform.node()]
    if boot.exists() and namespace.is_symlink():
        parts += [boot.read_text().strip(), str(namespace.readlink())]
    return "|".join(parts)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits for its parent to look; Linux only, elsewhere False."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False
