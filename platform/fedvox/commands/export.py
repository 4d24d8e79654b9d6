"""`fedvox export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from fedvox.commands.predict import parse_sizes


class Target(StrEnum):
    """Whose format."""

    onnx = "onnx"
    monai_bundle = "monai-bundle"


def export(
    model: Annotated[str, typer.Option("--model", "-m", help="Run directory or its `final` folder.")],
    to: Annotated[Target, typer.Option("--to", help="What to write.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write.")],
    patch_size: Annotated[
        str | None, typer.Option(help="D,H,W of the exported network's input; default: of training.")
    ] = None,
    opset: Annotated[int, typer.Option(min=18, help="Of the ONNX graph.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Writes a released model for other programs, and checks it where it will run.

    Examples:
        fedvox export --model runs/liver --to onnx --output liver-onnx

        fedvox export --model runs/liver --to monai-bundle --output liver-bundle
    """
    from fedvox.export.network import read_network  # torch
    from fedvox.storage import locate

    size = parse_sizes(patch_size)
    source = read_network(model, None if size is None else (size[0], size[1], size[2]))
    folder = locate(output)
    found: dict[str, object] = {"schema": "fedvox.export/1", "format": to.value, "folder": folder.uri}
    if to is Target.onnx:
        from fedvox.export.onnx_model import export_onnx

        check = export_onnx(source, folder, opset=opset)
        found["check"] = asdict(check)
        told = (
            f"checked in ONNX Runtime {check.onnxruntime}: logits within {check.largest_difference:.1g} of the "
            f"largest, {check.agreement:.4%} of the labels equal"
        )
    else:
        from fedvox.export.monai_bundle import export_monai_bundle

        export_monai_bundle(source, folder)
        told = "python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES, in that folder"
    print(json.dumps(found) if as_json else f"written    {folder.uri}\n{told}")
