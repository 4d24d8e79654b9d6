"""`fedvox models`: which backbones there are, and what scaled ones cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from fedvox.config import load_config
from fedvox.training.config import PretrainConfig


@dataclass(frozen=True)
class Scaled:
    """One training configuration and its cost.

    Attributes:
        name: of the configuration.
        model: backbone.
        patch_size: (D, H, W).
        parameters: trainable numbers.
        tflop_per_patch: forward and backward.
        activations_gib: kept from forward to backward for one patch, with bf16 autocast.
        memory_gib: weights, gradients, AdamW's state and the activations of the batch on one device.
    """

    name: str
    model: str
    patch_size: tuple[int, int, int]
    parameters: int
    tflop_per_patch: float
    activations_gib: float
    memory_gib: float


def models(
    configs: Annotated[
        list[Path] | None, typer.Argument(help="Training configurations whose cost is to be counted.")
    ] = None,
    channels: Annotated[int, typer.Option(help="Input channels to count for.")] = 1,
    classes: Annotated[int, typer.Option(help="Structures with background to count for.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Lists the backbones with their parameter counts, or what training configurations cost.

    Costs are counted on a network without memory: no GPU, no data and no second of training is needed.

    Examples:
        fedvox models --classes 168

        fedvox models jobs/configs/scaling/*.yaml --classes 168
    """
    if configs:
        found = [scaled(load_config(PretrainConfig, path), channels, classes) for path in configs]
        value = {"schema": "fedvox.models.cost/1", "configurations": [asdict(row) for row in found]}
        print(json.dumps(value) if as_json else table(found))
        return
    rows = _counted(channels, classes)
    if as_json:
        print(json.dumps({"schema": "fedvox.models/1", "parameters": rows}))
    else:
        for name, count in rows.items():
            print(f"{name:<24} {count:>13,}")


def _counted(channels: int, classes: int) -> dict[str, int]:
    import torch

    from fedvox.models.registry import build_model, list_models

    rows = {}
    for name in list_models():
        with torch.device("meta"):
            network = build_model(name, in_channels=channels, classes=classes)
        rows[name] = sum(p.numel() for p in network.parameters())
    return rows


def scaled(config: PretrainConfig, channels: int, classes: int) -> Scaled:
    """Counts what one training configuration costs.

    Raises:
        ConfigError: its network cannot be built, or its patch does not fit.
    """
    import torch

    from fedvox.training.estimate import GIB, cost_of
    from fedvox.training.session import new_network

    with torch.device("meta"):
        network = new_network(config, channels, classes)
    cost = cost_of(network, channels, config.data.patch_size, bf16=True)
    per_device = -(-config.global_batch_size // config.compute.max_workers)
    memory = cost.parameters * 16 + per_device * cost.activation_bytes
    return Scaled(
        config.name, config.model.name, config.data.patch_size, cost.parameters, cost.flops / 1e12,
        cost.activation_bytes / GIB, memory / GIB,
    )  # fmt: skip


def table(rows: Sequence[Scaled]) -> str:
    """The rows in Markdown."""
    lines = [
        "| configuration | patch | parameters | TFLOP a patch | activations a patch (GiB) | memory (GiB) |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row.name}` | {'×'.join(map(str, row.patch_size))} | {row.parameters / 1e6:.1f} M "
        f"| {row.tflop_per_patch:.2f} | {row.activations_gib:.1f} | {row.memory_gib:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)
