"""`fedvox-federation certificates` and `node-key`: what SuperLink and SuperNodes show each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvox_federation.cli_common import JsonOption, emit


def certificates(
    folder: Annotated[Path, typer.Argument(help="For the files.", show_default=False)],
    host: Annotated[
        list[str],
        typer.Option("--host", help="Name or IP of the SuperLink (repeatable).", show_default=False),
    ],
    days: Annotated[int, typer.Option("--days", min=1, help="Until they expire.")] = 365,
    study: Annotated[str, typer.Option("--study", help="Names the authority.")] = "fedvox",
    as_json: JsonOption = False,
) -> None:
    """Make the study's certificate authority and the SuperLink's certificate, for TLS."""
    from fedvox_federation.credentials import make_certificates

    authority, certificate, key = make_certificates(folder, host, days=days, study=study)
    value = {"authority": str(authority), "certificate": str(certificate), "key": str(key), "hosts": host}
    text = (
        f"for every clinic   {authority}\nfor the SuperLink  {certificate}, {key}\n"
        f"keep offline       {folder / 'ca.key'}"
    )
    emit(value, text, as_json=as_json)


def node_key(
    path: Annotated[Path, typer.Argument(help="Of the private key.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Make the key pair with which a clinic's SuperNode shows who it is. Only the .pub leaves the clinic."""
    from fedvox_compliance.keys import node_key_fingerprint
    from fedvox_federation.credentials import make_node_key

    public = make_node_key(path)
    fingerprint = node_key_fingerprint(public.read_bytes())
    value = {"private": str(path), "public": str(public), "fingerprint": fingerprint}
    emit(value, f"{path}\n{public}\nfingerprint {fingerprint}", as_json=as_json)
