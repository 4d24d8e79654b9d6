"""`fedvox-federation dp-preflight`: is this model safe to train privately, before any patient is touched?"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from fedvox_federation.cli_common import JsonOption, emit


def dp_preflight(
    model: Annotated[str, typer.Option("--model", help="Name of a backbone; see `fedvox models`.")],
    in_channels: Annotated[int, typer.Option("--in-channels", help="Image channels.")] = 1,
    classes: Annotated[int, typer.Option("--classes", help="Structures, background included.")] = 2,
    patch: Annotated[
        int, typer.Option("--patch", min=1, help="Edge of the made-up patches, in voxels.")
    ] = 32,
    scope: Annotated[str, typer.Option("--scope", help="full, decoder, norm+head or lora.")] = "full",
    mode: Annotated[str, typer.Option("--mode", help="loop or hooks.")] = "loop",
    batch_dice: Annotated[
        bool, typer.Option("--batch-dice", help="Check with Dice over the batch (it is not safe).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check model, loss and trained scope on made-up images. Leaves with 4 if they are not safe."""
    from fedvox.errors import ConfigError
    from fedvox.models.registry import build_model
    from fedvox_federation.dp_sgd.preflight import preflight
    from fedvox_federation.dp_sgd.trainable import select_trainable

    if mode not in ("loop", "hooks"):
        raise ConfigError(f"there is no mode {mode!r}", "Use loop, or hooks.")
    backbone = build_model(model, in_channels=in_channels, classes=classes, deep_supervision=False)
    select_trainable(backbone, scope)  # type: ignore[arg-type]  # checked there
    report = preflight(
        backbone,
        _loss(batch_dice, classes),
        _example(in_channels, classes, patch),
        mode=mode,  # type: ignore[arg-type]  # checked above
    )
    worst = max(report.errors.values(), default=0.0)
    told = f"safe in mode {mode}: {report.trained} trained parameters"
    if report.errors:
        told += f", {len(report.errors)} checked against a loop over samples, largest difference {worst:.1e}"
    if as_json or report.safe:
        emit({**dataclasses.asdict(report), "safe": report.safe, "worst_error": worst}, told, as_json=as_json)
    report.require()


def _loss(batch_dice: bool, classes: int) -> Any:
    import torch

    from fedvox.training.loss import DiceCrossEntropy

    criterion = DiceCrossEntropy(batch_dice=batch_dice)

    def loss(model: Any, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        images, labels = tensors
        annotated = torch.ones(len(images), classes, dtype=torch.bool)
        value: torch.Tensor = criterion(model(images), labels, annotated)
        return value

    return loss


def _example(in_channels: int, classes: int, patch: int) -> Any:
    """Three made-up samples with different shares of the structures."""
    import torch

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, in_channels, patch, patch, patch, generator=generator)
    labels = torch.randint(0, classes, (3, 1, patch, patch, patch), generator=generator)
    labels[0] = 0
    return images, labels
