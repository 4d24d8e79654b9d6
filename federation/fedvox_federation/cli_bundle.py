"""`fedvox-federation bundle`: the code that a clinic answers to. Needs neither torch nor Flower."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from fedvox_federation.bundle import approve, bundle_sha256, is_approved
from fedvox_federation.cli_common import JsonOption, emit, new_app

app = new_app("The app bundle that may run in this clinic.")

RootArgument = Annotated[Path, typer.Argument(help="A checkout, or an app that Flower unpacked.")]
ListOption = Annotated[
    Path, typer.Option("--list", help="The clinic's list of approved bundles.", show_default=False)
]


@app.command("hash")
def _hash(
    root: RootArgument = Path(),
    approved: Annotated[
        Path | None, typer.Option("--list", help="Also say whether it is on this list.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the hash of an app: the same for a checkout and for what Flower makes of it."""
    sha256 = bundle_sha256(root)
    value: dict[str, object] = {"sha256": sha256}
    text = sha256
    if approved is not None:
        value["approved"] = is_approved(approved, sha256)
        text += "  approved" if value["approved"] else "  NOT approved"
    emit(value, text, as_json=as_json)


@app.command("approve")
def _approve(
    path: ListOption,
    root: RootArgument = Path(),
    by: Annotated[str, typer.Option("--by", help="Who has read it; the login name if left out.")] = "",
    note: Annotated[str, typer.Option("--note", help="Why, or which version.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Let an app run here from now on: this version of it, and no other."""
    new = approve(path, root, by=by or getpass.getuser(), note=note)
    emit(vars(new), f"{path}: {new.sha256} approved by {new.by}", as_json=as_json)
