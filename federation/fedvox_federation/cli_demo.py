"""`fedvox-federation demo-data`: made-up hospitals for `flower-simulation`, in seconds."""

from __future__ import annotations

from typing import Annotated

import typer

from fedvox_federation.cli_common import JsonOption, emit


def demo_data(
    store: Annotated[
        str, typer.Option("--store", help="Folder or s3:// address.")
    ] = "$FEDVOX_HOME/stores/mni152-hospitals",
    cases_per_site: Annotated[
        int, typer.Option("--cases-per-site", min=2, help="Heads that each scans.")
    ] = 8,
    resolution_mm: Annotated[
        float, typer.Option("--resolution-mm", min=1.0, help="In-plane voxel size.")
    ] = 3.0,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Simulate scanners that the demo's pretraining (`make pretrain`) has never seen, into a brick store."""
    from fedvox.data.demo_sites import NEW_SCANNERS, write_new_sites
    from fedvox.training.config import expand

    written = write_new_sites(
        expand(store), NEW_SCANNERS, cases_per_site=cases_per_site, resolution_mm=resolution_mm, seed=seed
    )
    value = {"store": written.location.uri, "cases": len(written), "scanners": list(written.source_names)}
    emit(
        value,
        f"{written.location.uri}: {len(written)} cases of {', '.join(written.source_names)}",
        as_json=as_json,
    )
