"""A SuperNode that opens nothing but what its clinic approved.

Flower unpacks the app of whoever starts a run and imports it; a check *inside* the app is one that a hostile app leaves
out. Here the archive itself is examined in the SuperNode, before it is stored, unpacked or imported:

    the hash over its code is on the clinic's list; there is nothing in it besides that code and what cannot run; and
    what Flower is told to load is the approved entry

Flower has a place for this, its verification of signed apps, which asks for a signature of Flower's own hub. The guard
puts the clinic's list in that place. Where a version of Flower has no such place, it refuses to start.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import logging
import sys
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from fedvox.errors import ConfigError
from fedvox_federation.bundle import ENTRY, hash_of_files, is_approved, is_hashed, read_approvals

log = logging.getLogger(__name__)

_HARMLESS = frozenset({"pyproject.toml", ".info/CONTENT", "LICENSE", "README.md"})
_COMPONENTS = {
    "serverapp": "federation.flower_entry:server",
    "clientapp": "federation.flower_entry:client",
}
_LARGEST_BYTES = 200 * 2**20  # of an app, unpacked


def objection(content: bytes, approvals: Path) -> str:
    """Why an archive must not be opened here; empty if it may.

    Args:
        content: the archive as it came.
        approvals: the clinic's list.

    Raises:
        DataError: the list is damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _objection(archive, approvals)
    except (zipfile.BadZipFile, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        return f"it is no app of Flower's: {error!r}"


def _objection(archive: zipfile.ZipFile, approvals: Path) -> str:
    members = [one for one in archive.infolist() if not one.is_dir()]
    names = [one.filename for one in members]
    if len({name.casefold() for name in names}) != len(names) or not all(map(_is_plain, names)):
        return "it holds a name twice, or one that leads out of its folder"
    if sum(one.file_size for one in members) > _LARGEST_BYTES:
        return "it is too large"
    if foreign := sorted(name for name in names if not is_hashed(name) and name not in _HARMLESS):
        return f"it holds {len(foreign)} files that no hash is over, such as {foreign[0]!r}"
    app = tomllib.loads(archive.read("pyproject.toml").decode())["tool"]["flwr"]["app"]
    if app["components"] != _COMPONENTS or ENTRY not in names:
        return f"it wants something else loaded: {app['components']}"
    sha256 = hash_of_files((name, archive.read(name)) for name in sorted(names) if is_hashed(name))
    if is_approved(approvals, sha256):
        return ""
    known = ", ".join(one.sha256 for one in read_approvals(approvals)) or "none"
    return f"its hash is {sha256}; this clinic approved {known}"


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def install(internals: ModuleType, approvals: Path) -> None:
    """Put the clinic's list in the place of Flower's verification.

    Args:
        internals: `flwr.supernode.start_client_internal`.
        approvals: the clinic's list.

    Raises:
        ConfigError: this version of Flower has no such place.
    """
    pull = getattr(internals, "_pull_and_store_message", None)
    if pull is None or not _has_the_place(pull) or not hasattr(internals, "_verify_fab"):
        raise ConfigError(
            "this version of Flower verifies apps in another way, which the guard does not know",
            "Use the version in constraints.txt, or start flower-supernode without the guard.",
        )

    def verify(fab: Any, _trusted: dict[str, str]) -> bool:
        if why := objection(fab.content, approvals):
            log.error("an app was refused before it was opened: %s", why)
        return not why

    def marked(get_fab: Callable[..., Any], *arguments: Any) -> Any:
        """As if the hub had looked at it, so that Flower goes on to ask `verify`."""
        fab = get_fab(*arguments)
        return dataclasses.replace(fab, verifications={"valid_license": "see the clinic's list"})

    @functools.wraps(pull)
    def guarded(**given: Any) -> Any:
        get_fab = functools.partial(marked, given["get_fab"])
        return pull(**{**given, "get_fab": get_fab, "trusted_entities": {"clinic": "its own list"}})

    internals._verify_fab = verify  # type: ignore[attr-defined]
    internals._pull_and_store_message = guarded  # type: ignore[attr-defined]


def _has_the_place(pull: Callable[..., Any]) -> bool:
    known = {"get_fab", "trusted_entities"} <= set(inspect.signature(pull).parameters)
    source = inspect.getsource(pull)
    verified, stored = source.find("_verify_fab(fab, trusted_entities)"), source.find("state.store_fab(fab)")
    return known and 0 < verified < stored


def run_supernode(approvals: Path, arguments: Sequence[str]) -> None:
    """`flower-supernode`, guarded, in this process.

    Args:
        approvals: the clinic's list.
        arguments: of `flower-supernode`.

    Raises:
        ConfigError: see `install`; or Flower is asked to install what an app names, which nobody approved.
    """
    if any(argument.startswith("--allow-r") for argument in arguments):  # Flower takes abbreviations
        raise ConfigError(
            "--allow-runtime-dependency-installation installs whatever an app's pyproject.toml names, which is no part "
            "of what was approved",
            "Leave it out; the packages are installed with fedvox[federation].",
        )
    import flwr.supernode.start_client_internal as internals
    from flwr.supernode.cli import flower_supernode

    install(internals, approvals)
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()
