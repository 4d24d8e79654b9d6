"""`fedvox-federation supernode`: Flower's SuperNode, which opens nothing but what the clinic approved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def supernode(
    context: typer.Context,
    clinic: Annotated[Path, typer.Option("--clinic", help="The clinic's own file.", show_default=False)],
) -> None:
    """Start Flower's SuperNode for a clinic. All further options are those of `flower-supernode`.

    Before Flower unpacks an app that was sent, its hash must be on the clinic's list (`bundle approve`).
    """
    from fedvox.config import load_config
    from fedvox_federation.config import ClinicConfig, approvals_file
    from fedvox_federation.guard import run_supernode
    from fedvox_federation.quiet import QUIET

    own = load_config(ClinicConfig, clinic)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    told = ["--node-config", f'clinic="{clinic.resolve()}"', *context.args]
    run_supernode(approvals_file(own), told)
