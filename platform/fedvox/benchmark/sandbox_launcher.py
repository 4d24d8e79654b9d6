"""Restricts itself to the folders that it was given, for good, and becomes the command. See `fedvox.benchmark.sandbox`.

A script of its own, run as `python -I sandbox_launcher.py RULES COMMAND …`: it imports nothing of Fedvox, so that a
command starts in milliseconds and nothing that was imported could be asked for secrets.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PR_SET_NO_NEW_PRIVS = 38
_RULE_PATH_BENEATH = 1
_READ = 0b1101  # execute, read files, list folders
_OF_FILES = (
    0b111 | 1 << 14 | 1 << 15
)  # execute, write, read, truncate, ioctl: what a file (not a folder) can be granted
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many of the file-system rights a version of the interface knows."""
_NET_SINCE, _SCOPE_SINCE = 4, 6


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("access", ctypes.c_uint64), ("folder", ctypes.c_int32))


def restrict(read: list[str], write: list[str]) -> None:
    """Give up every file outside of the lists, TCP connections, and signals to processes outside."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = _call(libc, _CREATE_RULESET, None, 0, 1)
    everything = (1 << _RIGHTS_BY_VERSION[min(version, 5)]) - 1
    rules = _Ruleset(everything, 0b11 if version >= _NET_SINCE else 0, 0b11 if version >= _SCOPE_SINCE else 0)
    size = 8 if version < _NET_SINCE else 16 if version < _SCOPE_SINCE else 24
    ruleset = _call(libc, _CREATE_RULESET, ctypes.byref(rules), size, 0)
    for paths, rights in ((read, _READ), (write, everything)):
        for path in filter(os.path.exists, paths):
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
            granted = rights if Path(path).is_dir() else rights & _OF_FILES & everything
            _call(
                libc, _ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(_PathBeneath(granted, folder)), 0
            )
            os.close(folder)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    _call(libc, _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _call(libc: ctypes.CDLL, number: int, *arguments: object) -> int:
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result


def main() -> None:
    """Restrict this process and become the command."""
    allowed = json.loads(sys.argv[1])
    restrict(allowed["read"], allowed["write"])
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
