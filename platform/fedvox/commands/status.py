"""`fedvox status`: where a run is."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from fedvox.errors import StorageError


def status(
    run: Annotated[str, typer.Argument(help="Run directory: a folder or an s3:// address.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Shows where a run is: step, loss, Dice, time left.

    Example:
        fedvox status s3://bucket/runs/mednext-v2-18k
    """
    from fedvox import storage  # pyarrow
    from fedvox.training.run_directory import RunDirectory

    directory = RunDirectory(storage.locate(run))
    found = directory.read_json("status.json")
    if found is None:
        raise StorageError(
            f"{run} is no run directory (status.json is missing)", "Name the folder that a run printed."
        )
    if not isinstance(found, dict) or not {"phase", "step", "steps", "attempt", "updated"} <= found.keys():
        raise StorageError(
            f"{run}/status.json was not written by a run: {str(found)[:80]}",
            "Name the folder that a run printed.",
        )
    ended = directory.read_json("outcome.json")  # a failed run could write no other status
    if as_json:
        print(json.dumps({"schema": "fedvox.status/1", **found, "outcome": ended}))
        return
    age = time.time() - found["updated"]
    phase = found["phase"] if ended is None else ended["state"]
    print(
        f"{phase}: step {found['step']:,} of {found['steps']:,}, attempt {found['attempt']}, {age:.0f} s ago"
    )
    if ended is not None and ended["state"] == "failed":
        print(f"  {ended['message']}\n  {ended['remedy']}")
    for name, key, pattern in (
        ("loss", "loss", "{:.4f}"), ("Dice (moving average)", "ema_dice", "{:.4f}"),
        ("seconds a step", "seconds_per_step", "{:.2f}"), ("seconds left", "seconds_left", "{:.0f}"),
        ("damaged cases", "damaged_cases", "{}"),
    ):  # fmt: skip
        if found.get(key) is not None:
            print(f"  {name:<22} {pattern.format(found[key])}")
