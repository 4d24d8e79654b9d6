"""`fedvox-federation status`: where a federation is. Needs neither torch nor Flower."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from fedvox.errors import StorageError
from fedvox_federation.cli_common import JsonOption, emit

_WANTED = {"phase": str, "name": str, "rounds": int, "updated": float}


def status(
    run: Annotated[
        str, typer.Argument(help="Run directory: a folder or an s3:// address.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Where a federation is: round, who took part, what was refused and why, ε of every clinic."""
    from fedvox import storage
    from fedvox_federation.server.journal import Journal
    from fedvox_federation.server.table import round_table

    journal = Journal(storage.locate(run))
    found = journal.run.read_json("status.json")
    if not isinstance(found, dict) or any(not isinstance(found.get(k), kind) for k, kind in _WANTED.items()):
        raise StorageError(
            f"{run} is no federation's run directory (status.json is missing or another)",
            "Name the folder that the server's log printed.",
        )
    last = journal.rounds[-1] if journal.rounds else None
    now = f"{found['phase']} (round {found['round']})" if "round" in found else found["phase"]
    if "answered" in found:
        now += f", {found['answered']} of {found.get('clinics', '?')} have answered"
    lines = [
        f"{found['name']}: {now}, {found.get('rounds_done', 0)} of {found['rounds']} rounds done, "
        f"{time.time() - found['updated']:.0f} s ago"
    ]
    lines += [f"{found['error']}\n  -> {found.get('remedy', '')}"] if "error" in found else []
    if last is not None:
        lines += ["", round_table(journal.last_round(), last)]
    value = {
        "schema": "fedvox.federation-status/1",
        **found,
        "round_lines": journal.rounds,
        "clinics": journal.last_round(),
    }
    emit(value, "\n".join(lines), as_json=as_json)
