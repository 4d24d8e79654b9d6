"""`fedvox doctor`: is this machine ready, and what do the environment variables do here?"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from fedvox.errors import FedvoxError
from fedvox.training.config import expand

PACKAGES = ("torch", "ray", "pyarrow", "blosc2", "nibabel", "numpy", "safetensors", "s3fs", "nilearn")
VARIABLES = {
    "FEDVOX_HOME": "stores, runs and the node's cache (default ~/.fedvox)",
    "RAY_ADDRESS": "the cluster that jobs join",
    "RAY_API_SERVER_ADDRESS": "the job server that `fedvox submit` uses",
    "FEDVOX_MAX_VOLUME_GIB": "the largest image that is read, decompressed (default 16)",
    "AWS_ENDPOINT_URL": "an S3 server other than Amazon's",
    "AWS_ACCESS_KEY_ID": "S3 credentials",
    "CUDA_VISIBLE_DEVICES": "the GPUs that may be used",
    "OMP_NUM_THREADS": "CPU threads of each process",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        ok: whether it is as it should be.
        found: what was found.
        remedy: what to do if it is not ok.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""


def doctor(
    storage: Annotated[
        str | None, typer.Option(help="A folder or s3:// address to write a test file to.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Checks this machine: versions, devices, disk, storage, environment variables. Leaves with 1 if one fails.

    Example:
        fedvox doctor --storage s3://bucket/runs
    """
    checks = [_python(), *(_package(name) for name in PACKAGES), _device(), _disk()]
    if storage is not None:
        checks.append(_storage(storage))
    if as_json:
        print(json.dumps({"schema": "fedvox.doctor/1", "checks": [asdict(check) for check in checks]}))
    else:
        for check in checks:
            print(f"{'ok ' if check.ok else 'NO '} {check.name:<12} {check.found}")
            if not check.ok:
                print(f"    -> {check.remedy}")
        print("\nenvironment variables")
        for name, meaning in VARIABLES.items():
            shown = "set" if "KEY" in name and name in os.environ else os.environ.get(name, "not set")
            print(f"    {name:<24} {shown:<24} {meaning}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _python() -> Check:
    found = sys.version.split()[0]
    return Check("python", (3, 11) <= sys.version_info[:2] < (3, 14), found, "Use Python 3.11, 3.12 or 3.13.")


def _package(name: str) -> Check:
    try:
        return Check(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed", "pip install -c constraints.txt 'fedvox[all]'")


def _device() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("device", False, str(error), "pip install -c constraints.txt 'fedvox[train]'")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check(
            "device",
            True,
            f"{len(names)} GPU: {', '.join(sorted(set(names)))}, bf16 {torch.cuda.is_bf16_supported()}",
        )
    return Check("device", True, f"CPU, {torch.get_num_threads()} threads; no GPU")


def _disk() -> Check:
    home = Path(expand("$FEDVOX_HOME"))
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 2**30
    return Check(
        "disk", free > 5, f"{free:.0f} GiB free below {home}", "Free some space or set FEDVOX_HOME elsewhere."
    )


def _storage(uri: str) -> Check:
    from fedvox import storage

    try:
        location = storage.locate(uri).child(".fedvox-doctor")
        storage.write_atomic(location, b"ok")
        content = storage.read_bytes(location)
        storage.delete(location)
    except FedvoxError as error:
        return Check("storage", False, error.message, error.remedy)
    return Check("storage", content == b"ok", f"{uri} can be written, read and deleted")
