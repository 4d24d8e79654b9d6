"""`fedvox models`: which backbones there are."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def models(
    channels: Annotated[int, typer.Option(help="Input channels to count parameters for.")] = 1,
    classes: Annotated[int, typer.Option(help="Structures with background to count parameters for.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Lists the backbones with their parameter counts.

    Example:
        fedvox models --classes 168
    """
    import torch

    from fedvox.models.registry import build_model, list_models

    rows = {}
    for name in list_models():
        with torch.device("meta"):
            network = build_model(name, in_channels=channels, classes=classes)
        rows[name] = sum(p.numel() for p in network.parameters())
    if as_json:
        print(json.dumps({"schema": "fedvox.models/1", "parameters": rows}))
    else:
        for name, count in rows.items():
            print(f"{name:<24} {count:>13,}")
