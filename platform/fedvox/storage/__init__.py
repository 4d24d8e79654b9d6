"""One door to local disks and S3: locations, atomic writes, range reads, retries.

    location = locate("s3://bucket/store")
    write_atomic(location.child("store.json"), b"{}")

Everything here raises `StorageError` with a remedy when a bucket or folder is missing, forbidden or full, and
keeps trying (two minutes by default) while a server refuses or times out.
"""

from fedvox.storage.files import (
    RangeReader,
    delete,
    delete_folder,
    exists,
    list_files,
    open_file,
    read_bytes,
    read_range,
    sync_folder,
    upload_file,
    write_atomic,
)
from fedvox.storage.lease import Held, Holder, lease
from fedvox.storage.location import Backend, Location, locate, s3_path
from fedvox.storage.retry import DEFAULT_RETRY, RetryPolicy, call_with_retry, is_transient, storage_error

__all__ = [
    "DEFAULT_RETRY",
    "Backend",
    "Held",
    "Holder",
    "Location",
    "RangeReader",
    "RetryPolicy",
    "call_with_retry",
    "delete",
    "delete_folder",
    "exists",
    "is_transient",
    "lease",
    "list_files",
    "locate",
    "open_file",
    "read_bytes",
    "read_range",
    "s3_path",
    "storage_error",
    "sync_folder",
    "upload_file",
    "write_atomic",
]
