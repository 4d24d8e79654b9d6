"""A node's disk cache of the parts of remote case files that were read.

One sparse file stands for each case file: the bytes that were fetched, at their own offsets, then one byte
for each page of 64 KiB that tells whether the page is there. All processes of a node map the same files.
Nothing is locked on the way of a read, because every step is harmless at any time:

- a page is written before its byte is set, so a process killed in between leaves a page that counts as
  missing;
- two processes that fetch the same page write the same bytes;
- an evicted file is unlinked, which leaves it to those who have it open;
- what a power cut may have lost is found by the checksums of the blocks, and fetched again (`refresh`).

The least recently used files go when the budget is passed; whoever notices does it, one process at a time. A
full disk ends the writing, with one warning; what is cached stays readable and the rest comes from the store.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import mmap
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from fedvox.data.ranges import Array, ByteRange, Part, RemoteFile
from fedvox.errors import FedvoxError
from fedvox.storage import storage_error

logger = logging.getLogger(__name__)

PAGE_BYTES = 64 << 10
_EVICT_LOCK = ".evict.lock"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM})
_ALIGN = mmap.ALLOCATIONGRANULARITY
_TOUCH_EVERY_S = 10.0
_STALE_TEMPORARY_S = 3600.0


@dataclass(frozen=True)
class CacheConfig:
    """Where and how much a node keeps.

    Args:
        folder: on a local disk; shared by all processes of the node.
        budget_gib: bytes kept, in GiB; the least recently used cases go first.
        prefetch_threads: threads of each process that fetch ahead; 0 for none.
    """

    folder: str
    budget_gib: float
    prefetch_threads: int = 2


class NodeCache:
    """The cache folder, as one process sees it.

    Args:
        config: see `CacheConfig`.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.folder = Path(config.folder).expanduser().absolute()
        self.budget_bytes = int(config.budget_gib * 2**30)
        self._check_every = min(max(self.budget_bytes // 64, PAGE_BYTES), 256 << 20)
        self._written = 0
        self._writable = True
        self._lock = threading.Lock()
        self._prefetcher = ThreadPoolExecutor(
            max(1, config.prefetch_threads), thread_name_prefix="fedvox-prefetch"
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _EVICT_LOCK).touch()
        except OSError as error:
            raise storage_error(error, str(self.folder)) from error

    @property
    def writable(self) -> bool:
        """False once the disk was found full."""
        return self._writable

    def open(self, remote: RemoteFile, version: str) -> CachedFile | RemoteFile:
        """A remote file, read through the cache; itself where its place in the cache cannot be made.

        Args:
            remote: the file.
            version: changes with the content (a checksum, say).
        """
        key = hashlib.sha256(f"{remote.uri}\0{version}\0{remote.size()}".encode()).hexdigest()[:40]
        try:
            return CachedFile(self, remote, _open_sparse(self.folder / f"{key}.pages", remote.size()))
        except OSError as error:
            self.give_up(error)
            return remote

    def submit(self, task: Callable[[], None]) -> None:
        """Run a task in the background, unless this process is at the end of its life."""
        with contextlib.suppress(RuntimeError):
            self._prefetcher.submit(_quietly, task)

    def give_up(self, error: OSError) -> None:
        """Write no more, after an error that tells the disk is full or broken; other errors are raised."""
        if error.errno not in _FULL:
            raise error
        with self._lock:
            first, self._writable = self._writable, False
        if first:
            logger.warning(
                "%s: the cache is not written any more (%s); reading goes on", self.folder, error.strerror
            )

    def wrote(self, num_bytes: int) -> None:
        """Count what was written, and look at the budget from time to time."""
        with self._lock:
            self._written += num_bytes
            due = self._written >= self._check_every
            if due:
                self._written = 0
        if due:
            self.evict()

    def evict(self) -> None:
        """Remove the least recently used files beyond the budget, unless another process is at it."""
        with (self.folder / _EVICT_LOCK).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            files = self._files()
            excess = sum(size for _, size, _ in files) - self.budget_bytes
            for _, size, path in sorted(files):
                if excess <= 0:
                    break
                path.unlink(missing_ok=True)
                excess -= size

    def used_bytes(self) -> int:
        """Bytes that the cached files take on the disk."""
        return sum(size for _, size, _ in self._files())

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes on the disk, path) of each cached file; left-overs of killed processes are removed."""
        files = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process has evicted it
                status = entry.stat()
                if entry.name.endswith(".pages"):
                    files.append((status.st_mtime, status.st_blocks * 512, Path(entry.path)))
                elif entry.name.endswith(".tmp") and time.time() - status.st_mtime > _STALE_TEMPORARY_S:
                    Path(entry.path).unlink(missing_ok=True)
        return files


@cache
def node_cache(config: CacheConfig) -> NodeCache:
    """The process's one view of a cache folder."""
    return NodeCache(config)


class CachedFile:
    """A remote file, of which what was read before is on the local disk.

    Args:
        owner: the cache.
        remote: the file.
        descriptor: of the sparse file, which this object closes.
    """

    def __init__(self, owner: NodeCache, remote: RemoteFile, descriptor: int) -> None:
        self._owner = owner
        self._remote = remote
        self._descriptor = descriptor
        self._size = remote.size()
        self._marks_begin = _marks_begin(self._size)
        # The map is only looked at where a page is marked: a hole of a full tmpfs, read through it, is a
        # SIGBUS.
        self._bytes = np.frombuffer(
            mmap.mmap(descriptor, self._size, mmap.MAP_SHARED, mmap.PROT_READ), np.uint8
        )
        self._marks = np.zeros(-(-self._size // PAGE_BYTES), np.uint8)
        self._fetching: dict[int, threading.Event] = {}
        self._lock = threading.Lock()
        self._touched = 0.0

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def size(self) -> int:
        """Bytes in the file."""
        return self._size

    def read(self, ranges: Sequence[ByteRange]) -> Iterator[Part]:
        """The ranges: first what is on the disk, then what had to be fetched."""
        self._touch()
        here, away = self._split(ranges, range(len(ranges)))
        if here:
            yield Part(self._bytes, 0, here)
        if not away:
            return
        self.bring([ranges[i] for i in away])
        stored, missing = self._split(ranges, away)
        if stored:
            yield Part(self._bytes, 0, stored)
        if missing:  # the disk is full
            for part in self._remote.read([ranges[i] for i in missing]):
                yield Part(part.data, part.offset, [missing[i] for i in part.positions])

    def _split(self, ranges: Sequence[ByteRange], positions: Sequence[int]) -> tuple[list[int], list[int]]:
        """Which of the ranges are on the disk, and which are not."""
        marks = self._marks
        if not all(
            marks[_pages(ranges[i])].all() for i in positions
        ):  # another process may have fetched them
            os.preadv(self._descriptor, [marks.data], self._marks_begin)
        split: tuple[list[int], list[int]] = [], []
        for i in positions:
            split[0 if marks[_pages(ranges[i])].all() else 1].append(i)
        return split

    def bring(self, ranges: Sequence[ByteRange]) -> None:
        """Bring ranges to the disk; what another thread is fetching is waited for."""
        if not self._owner.writable:
            return
        needed = {page for one in ranges for page in range(*_pages(one).indices(self._marks.size))}
        with self._lock:
            os.preadv(self._descriptor, [self._marks.data], self._marks_begin)
            absent = [page for page in sorted(needed) if not self._marks[page]]
            awaited = {self._fetching[page] for page in absent if page in self._fetching}
            claimed = [page for page in absent if page not in self._fetching]
            done = threading.Event()
            self._fetching.update(dict.fromkeys(claimed, done))
        try:
            self._store_pages(claimed)
        finally:
            with self._lock:
                for page in claimed:
                    del self._fetching[page]
            done.set()
        for event in awaited:
            event.wait()

    def refresh(self, one: ByteRange) -> Array:
        """The bytes of a range from the store itself, after those on the disk were found damaged."""
        logger.warning("%s: damaged in the cache; fetched again", self._remote.uri)
        (part,) = self._remote.read([one])
        data = part.cut(one)
        if self._owner.writable:
            self._write(data, one.offset)
        return data

    def close(self) -> None:
        """Let go of the remote file; the cached one is closed with the last view of it."""
        self._remote.close()

    def _store_pages(self, pages: Sequence[int]) -> None:
        wanted = [
            ByteRange(page * PAGE_BYTES, min(PAGE_BYTES, self._size - page * PAGE_BYTES)) for page in pages
        ]
        for part in self._remote.read(wanted):
            for position in part.positions:
                data = part.cut(wanted[position])
                if data.size == wanted[position].size and self._write(data, wanted[position].offset):
                    self._mark(pages[position])

    def _write(self, data: Array, offset: int) -> bool:
        # Never through the map: on a full disk that would end the process with SIGBUS.
        try:
            written = os.pwrite(self._descriptor, data.data, offset)
        except OSError as error:
            self._owner.give_up(error)
            return False
        self._owner.wrote(written)
        return written == data.size

    def _mark(self, page: int) -> None:
        try:
            os.pwrite(self._descriptor, b"\1", self._marks_begin + page)
        except OSError as error:
            self._owner.give_up(error)

    def _touch(self) -> None:
        """Tell the other processes that the file is in use."""
        now = time.monotonic()
        if now - self._touched > _TOUCH_EVERY_S or not self._touched:
            self._touched = now
            os.utime(self._descriptor)


def _pages(one: ByteRange) -> slice:
    return slice(one.offset // PAGE_BYTES, -(-one.end // PAGE_BYTES))


def _marks_begin(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _open_sparse(path: Path, size: int) -> int:
    """A descriptor of the sparse file, which is made where it is missing."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
        with temporary.open("xb") as file:
            file.truncate(_marks_begin(size) + -(-size // PAGE_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # unlike a rename, never replaces what another process has just made
        temporary.unlink(missing_ok=True)


def _quietly(task: Callable[[], None]) -> None:
    """What fails ahead of time will fail again, and be told, when it is needed."""
    with contextlib.suppress(FedvoxError):
        task()
