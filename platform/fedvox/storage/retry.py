"""Which storage errors pass by themselves, and how long to wait for that.

A run of days must survive an object store that refuses connections for a minute, and must not wait two
minutes to say that a bucket's name is misspelt. So every error is sorted into *transient* (retried until a
deadline, with exponential back-off and full jitter) or *permanent* (raised at once as a `StorageError` with a
remedy).

pyarrow reports S3 errors as `OSError` with the AWS error's name in the text, so the sorting reads names; the
names are those of the AWS SDK for C++ (`AWS Error NETWORK_CONNECTION during ...`) and of botocore
(`SlowDown`).
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fedvox.errors import StorageError, StorageRefused
from fedvox.storage.location import s3_path

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How long to keep trying when storage fails in a way that may pass.

    Args:
        deadline_s: give up when this many seconds have passed since the first attempt.
        first_delay_s: upper bound of the first wait; it doubles with each attempt.
        max_delay_s: upper bound of any wait. Waits are drawn uniformly below the bound (full jitter), so that
            the workers of a cluster do not come back all at once.
    """

    deadline_s: float = 120.0
    first_delay_s: float = 0.2
    max_delay_s: float = 5.0

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 0)."""
        bound = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(attempt, 30))
        return random.uniform(bound / 2, bound)


DEFAULT_RETRY = RetryPolicy()

_TRANSIENT_NAMES = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|ServiceUnavailable|INTERNAL_FAILURE|InternalError"
    r"|REQUEST_TIMEOUT|RequestTimeout|THROTTLING|Throttl|TooManyRequests|RequestTimeTooSkewed"
    r"|HTTP status 50\d|HTTP status 429|curlCode: (?:6|7|18|28|35|52|55|56)\b"
    r"|Connection (?:refused|reset)|Remote end closed|timed? ?out|EndpointConnectionError|IncompleteRead",
)
_PERMANENT_NAMES = re.compile(
    r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist|NO_SUCH_KEY|NoSuchKey"
    r"|ACCESS_DENIED|AccessDenied|Forbidden"
    r"|INVALID_ACCESS_KEY_ID|InvalidAccessKeyId|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|NoCredentials"
    r"|Unable to locate credentials|HTTP status 40[0134]",
)
_TRANSIENT_ERRNOS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EPIPE,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
    }
)
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    if isinstance(error, (FileNotFoundError, PermissionError, StorageError)):
        return False
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return True
    if _PERMANENT_NAMES.search(text):
        return False
    return _TRANSIENT_NAMES.search(text) is not None


def _is_storage_failure(error: Exception) -> bool:
    """Errors that come from storage rather than from a mistake in the program."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in {"botocore", "aiohttp"}


def storage_error(error: Exception, uri: str) -> StorageError:
    """The `StorageError` that tells a user what `error` on `uri` means and what to do."""
    if isinstance(error, StorageError):
        return error
    text = str(error)
    if isinstance(error, OSError) and error.errno in _FULL_ERRNOS:
        return StorageError(
            f"{uri}: no space left on the device", "Free some space there or name another folder."
        )
    if re.search(r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist", text, re.IGNORECASE):
        bucket = (s3_path(uri) or uri).split("/", 1)[0]
        return StorageRefused(
            f"{uri}: there is no bucket {bucket!r}", f"Create the bucket {bucket!r} or correct its name."
        )
    if re.search(r"NoCredentials|Unable to locate credentials|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES", text):
        return StorageRefused(f"{uri}: the credentials are missing or wrong ({text})", _credentials_remedy())
    denied = r"ACCESS_DENIED|AccessDenied|Forbidden|status 403"
    if isinstance(error, PermissionError) or re.search(denied, text):
        return StorageRefused(f"{uri}: access is denied ({text})", _permission_remedy(uri))
    if isinstance(error, FileNotFoundError):
        return StorageError(f"{uri}: does not exist", "Check the path, or write it first.")
    return StorageError(f"{uri}: {text}", "Check that it can be reached (network, AWS_ENDPOINT_URL, mount).")


def _credentials_remedy() -> str:
    return "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN if they are temporary)."


def _permission_remedy(uri: str) -> str:
    if s3_path(uri) is None:
        return "Grant this user read and write access to the folder, or name another."
    if "AWS_ACCESS_KEY_ID" not in os.environ and "AWS_PROFILE" not in os.environ:
        return f"AWS_ACCESS_KEY_ID is not set. {_credentials_remedy()}"
    return "Grant these credentials read and write access to the bucket, or use others."


def call_with_retry(action: Callable[[], T], uri: str, retry: RetryPolicy = DEFAULT_RETRY) -> T:
    """Run `action` until it succeeds, fails permanently, or the deadline has passed.

    Args:
        action: idempotent; it may run several times.
        uri: what the action works on, for messages.
        retry: how long to keep trying.

    Raises:
        StorageError: the failure is permanent, or transient beyond the deadline.
    """
    started = time.monotonic()
    attempt = 0
    while True:
        try:
            return action()
        except Exception as error:
            if not _is_storage_failure(error):
                raise
            waited = time.monotonic() - started
            if not is_transient(error):
                raise storage_error(error, uri) from error
            if waited >= retry.deadline_s:
                raise StorageError(
                    f"{uri}: unreachable for {waited:.0f} s ({error})",
                    "Check that the storage is up and reachable from this machine; the work can be resumed.",
                ) from error
            delay = min(retry.delay_s(attempt), max(0.0, retry.deadline_s - waited))
            if attempt == 0:
                logger.warning("%s: %s; trying again for up to %.0f s", uri, error, retry.deadline_s)
        time.sleep(delay)
        attempt += 1
