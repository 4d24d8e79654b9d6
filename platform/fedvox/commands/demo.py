"""`fedvox demo`, which is what `make pretrain` runs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fedvox.errors import InputError
from fedvox.training.config import expand

CONFIG = "jobs/configs/demo.yaml"


def demo(
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override of the pretraining's configuration (repeatable)."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Prepare the data again and start under a new run name.")
    ] = False,
) -> None:
    """Pretrains on the embedded MNI152 brain through a local Ray, and shows what came out.

    Writes below $FEDVOX_HOME (default ~/.fedvox). Run it again to resume, or with --fresh to start over.

    Example:
        FEDVOX_HOME=/tmp/fedvox fedvox demo
    """
    root = Path.cwd()
    if not (root / CONFIG).is_file():
        raise InputError(
            f"{root} is no checkout of fedvox ({CONFIG} is missing)", "Run `make pretrain` in the checkout."
        )
    started = time.monotonic()
    # The job has another working directory.
    os.environ["FEDVOX_HOME"] = str(Path(expand("$FEDVOX_HOME")).absolute())
    store = Path(expand("$FEDVOX_HOME/stores/mni152-sites"))
    prepare(store, fresh=fresh)
    overrides = list(set_ or [])
    if fresh:
        overrides.append(f"name=demo-{time.strftime('%Y%m%d-%H%M%S')}")
    code, run = train(root, overrides)
    if code != 0:
        raise typer.Exit(code)
    print(f"\n{summary(run)}\n\nall of it took {(time.monotonic() - started) / 60:.1f} minutes")


def prepare(store: Path, *, fresh: bool) -> None:
    """Writes the embedded data set as a nnU-Net raw folder and ingests it, unless that was done before."""
    from fedvox.data.demo import write_demo  # numpy, nibabel
    from fedvox.data.ingest import ingest
    from fedvox.data.ingest_config import IngestConfig, SourceConfig

    if (store / "store.json").is_file() and not fresh:  # written last: without it the ingest was cut short
        print(f"data: {store} is there already", file=sys.stderr)
        return
    raw = Path(expand("$FEDVOX_HOME/raw"))
    print(f"data: writing the MNI152 brain and its simulated acquisitions to {raw}", file=sys.stderr)
    dataset = write_demo(raw)
    print(f"data: ingesting {dataset} into {store}", file=sys.stderr)
    ingest(IngestConfig(sources=(SourceConfig(path=str(dataset)),), output=str(store), workers=0))


def train(root: Path, overrides: list[str]) -> tuple[int, Path]:
    """Starts a local Ray and submits the job as a cluster user would; returns exit code and run directory."""
    from fedvox.commands.submit import submit_and_follow
    from fedvox.config import load_config
    from fedvox.local_cluster import local_cluster
    from fedvox.training.config import PretrainConfig

    config = load_config(PretrainConfig, root / CONFIG, overrides)
    entrypoint = ["python", "jobs/pretrain.py", "--config", CONFIG]
    entrypoint += [part for override in overrides for part in ("--set", override)]
    home = {"FEDVOX_HOME": os.environ["FEDVOX_HOME"]}
    print("ray: starting a head node of our own", file=sys.stderr)
    with local_cluster(os.cpu_count() or 1, environment=home) as cluster:
        code = submit_and_follow(entrypoint, cluster.jobs_address, Path())
        print("ray: stopping it", file=sys.stderr)
    return code, Path(expand(config.storage)) / config.name


def summary(run: Path) -> str:
    """Where everything is, the Dice per structure, and what the untrained network had."""
    outcome = json.loads((run / "outcome.json").read_text())
    lines = [
        json.loads(line) for line in sorted((run / "metrics").glob("*.jsonl"))[0].read_text().splitlines()
    ]
    untrained = next((line for line in lines if line["kind"] == "validation" and line["step"] == 0), None)
    rows = [f"Dice on the held-out brain after {outcome['step']} steps (untrained):"]
    for name, value in {**outcome["dice"], "mean of structures": outcome["mean_foreground_dice"]}.items():
        key = "dice" if name == "mean of structures" else f"dice/{name}"
        before = f"({untrained[key]:.3f})" if untrained and untrained.get(key) is not None else ""
        rows.append(f"  {name:<24} {value:.3f}  {before}")
    rows += [
        f"checkpoint  {run / 'final' / 'model.safetensors'}",
        f"curves      {run / 'figures' / 'curves.png'}",
        *(f"overlay     {path}" for path in sorted((run / "figures").glob("overlay-*.png"))),
    ]
    return "\n".join(rows)
