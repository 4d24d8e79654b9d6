"""Reading and writing whole files and byte ranges, on disk and on S3 alike.

Writes are atomic: on disk a temporary name in the same folder, fsync, rename; on S3 an object appears when
its upload is complete. All calls retry what may pass (see `retry.py`) and raise `StorageError` for what will
not.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from fedvox.errors import StorageError
from fedvox.storage.location import Location
from fedvox.storage.retry import DEFAULT_RETRY, RetryPolicy, call_with_retry, storage_error

T = TypeVar("T")

_UPLOAD_CHUNK_BYTES = 8 << 20


def read_bytes(location: Location, *, retry: RetryPolicy = DEFAULT_RETRY) -> bytes:
    """The whole content of a file.

    Raises:
        StorageError: missing, forbidden, or unreachable beyond the retry deadline.
    """

    def attempt() -> bytes:
        client = _fsspec_client(location)
        if client is not None:
            return bytes(client.cat_file(location.path))
        with location.filesystem.open_input_file(location.path) as file:
            data: bytes = file.readall()
        return data

    return _call(attempt, location, retry)


def open_file(location: Location, *, retry: RetryPolicy = DEFAULT_RETRY) -> pa.NativeFile:
    """A file for a library that seeks and reads by itself, such as pyarrow's Parquet reader.

    Raises:
        StorageError: missing, forbidden, or unreachable beyond the retry deadline.
    """

    def attempt() -> pa.NativeFile:
        client = _fsspec_client(location)
        if client is not None:
            return pa.PythonFile(client.open(location.path, "rb"), mode="r")
        return location.filesystem.open_input_file(location.path)

    return _call(attempt, location, retry)


def _fsspec_client(location: Location) -> Any:
    """The fsspec file system behind a location, or None.

    pyarrow asks it `isfile` before it opens, and s3fs answers no where it cannot connect: a server that is
    down for a moment would look like a missing file. So reads go to it directly.
    """
    handler = getattr(location.filesystem, "handler", None)
    return handler.fs if isinstance(handler, pafs.FSSpecHandler) else None


def _call(action: Callable[[], T], location: Location, retry: RetryPolicy) -> T:
    """`call_with_retry`, which also tells a missing bucket from a missing file."""
    try:
        return call_with_retry(action, location.uri, retry)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            _require_bucket(location, retry)
        raise


_buckets_seen: set[str] = set()


def _require_bucket(location: Location, retry: RetryPolicy) -> None:
    """Raise where the bucket of an S3 location is missing: S3 answers only that the object is not there."""
    bucket = location.path.split("/", 1)[0]
    if location.is_local or bucket in _buckets_seen:
        return
    try:
        info = call_with_retry(lambda: location.filesystem.get_file_info(bucket), location.uri, retry)
    except StorageError:  # who may not look at the bucket may still use what is in it
        return
    if info.type == pafs.FileType.NotFound:
        raise storage_error(FileNotFoundError(f"NoSuchBucket: {bucket}"), location.uri)
    _buckets_seen.add(bucket)


def read_range(location: Location, offset: int, length: int, *, retry: RetryPolicy = DEFAULT_RETRY) -> bytes:
    """`length` bytes from `offset`; fewer where the file ends before.

    Raises:
        StorageError: missing, forbidden, or unreachable beyond the retry deadline.
    """
    with RangeReader(location, retry=retry) as reader:
        return reader.read_at(offset, length)


class RangeReader:
    """Byte ranges of one file, from many threads at once.

    The handle is opened by the first read and kept, so that S3 sees one HEAD a file and not one a range.
    """

    def __init__(self, location: Location, *, retry: RetryPolicy = DEFAULT_RETRY) -> None:
        self.location = location
        self._retry = retry
        self._file: Any = None
        # fsspec's own file objects read ahead by megabytes and seek under a lock; its range call does
        # neither.
        self._fsspec = _fsspec_client(location)

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def size(self) -> int:
        """Bytes in the file."""
        client = self._fsspec
        measure = self._open_size if client is None else lambda: client.info(self.location.path)["size"]
        return int(_call(measure, self.location, self._retry))

    def read_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer where the file ends before."""
        return _call(lambda: self._read(offset, length), self.location, self._retry)

    def _open_size(self) -> int:
        return int(self._handle().size())

    def _handle(self) -> Any:
        if self._file is None:
            self._file = self.location.filesystem.open_input_file(self.location.path)
        return self._file

    def _read(self, offset: int, length: int) -> bytes:
        if self._fsspec is not None:
            return _cat_range(self._fsspec, self.location.path, offset, length)
        handle = self._handle()
        if offset >= handle.size():
            return b""
        data: bytes = handle.read_at(length, offset)
        return data


def _cat_range(client: Any, path: str, offset: int, length: int) -> bytes:
    try:
        data: bytes = client.cat_file(path, start=offset, end=offset + length)
    except OSError as error:
        if re.search(r"InvalidRange|not satisfiable", str(error)):  # the object ends before
            return b""
        raise
    return data


def write_atomic(location: Location, data: bytes | memoryview, *, retry: RetryPolicy = DEFAULT_RETRY) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Raises:
        StorageError: no space, forbidden, no such bucket, or unreachable beyond the retry deadline.
    """
    if location.is_local:
        call_with_retry(lambda: _replace_local(Path(location.path), data), location.uri, retry)
    else:
        _call(lambda: _put(location, memoryview(data)), location, retry)


def upload_file(local_path: Path, location: Location, *, retry: RetryPolicy = DEFAULT_RETRY) -> None:
    """Copy a local file to `location`, atomically.

    Raises:
        StorageError: see `write_atomic`.
    """
    with local_path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            write_atomic(location, b"", retry=retry)
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            write_atomic(location, view, retry=retry)


def exists(location: Location, *, retry: RetryPolicy = DEFAULT_RETRY) -> bool:
    """Whether a file or folder is there.

    Raises:
        StorageError: forbidden, no such bucket, or unreachable beyond the retry deadline.
    """
    info = call_with_retry(lambda: location.filesystem.get_file_info(location.path), location.uri, retry)
    if info.type == pafs.FileType.NotFound:
        _require_bucket(location, retry)
        return False
    return True


def list_files(
    location: Location, recursive: bool = True, *, retry: RetryPolicy = DEFAULT_RETRY
) -> list[Location]:
    """The files below a folder, by name; none where the folder is missing.

    Raises:
        StorageError: forbidden, no such bucket, or unreachable beyond the retry deadline.
    """
    selector = pafs.FileSelector(location.path, recursive=recursive, allow_not_found=True)

    def attempt() -> list[pafs.FileInfo]:
        try:
            return list(location.filesystem.get_file_info(selector))
        except FileNotFoundError:  # the folder was made between pyarrow's two looks at it, and is empty still
            return []

    infos = call_with_retry(attempt, location.uri, retry)
    if not infos:
        _require_bucket(location, retry)
    below = len(location.path.rstrip("/")) + 1
    names = sorted(info.path[below:] for info in infos if info.type == pafs.FileType.File)
    return [location.child(name) for name in names]


def delete(location: Location, *, retry: RetryPolicy = DEFAULT_RETRY) -> None:
    """Remove a file; nothing happens where there is none."""

    def attempt() -> None:
        with contextlib.suppress(FileNotFoundError):
            location.filesystem.delete_file(location.path)

    call_with_retry(attempt, location.uri, retry)


def delete_folder(location: Location, *, retry: RetryPolicy = DEFAULT_RETRY) -> None:
    """Remove a folder and all that is below it; nothing happens where there is none."""

    def attempt() -> None:
        with contextlib.suppress(FileNotFoundError):
            location.filesystem.delete_dir(location.path)

    call_with_retry(attempt, location.uri, retry)


def _replace_local(path: Path, data: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(location: Location, data: memoryview) -> None:
    # without `compression=None` pyarrow gzips what is called *.gz, a second time
    with location.filesystem.open_output_stream(location.path, compression=None) as stream:
        for begin in range(0, len(data), _UPLOAD_CHUNK_BYTES):
            stream.write(data[begin : begin + _UPLOAD_CHUNK_BYTES])
