"""`fedvox crossval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvox.config import load_config
from fedvox.errors import ConfigError

if TYPE_CHECKING:
    from fedvox.inference.selection import Selection


def crossval(
    data: Annotated[
        str | None, typer.Option("--data", help="The raw data set with its labels, as given to the ingest.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder for predictions and decision.")
    ] = None,
    configuration: Annotated[
        list[str] | None,
        typer.Option("--configuration", "-c", help="NAME=RUN0,RUN1,…: the run of each fold (repeatable)."),
    ] = None,
    splits: Annotated[
        str | None, typer.Option(help="splits_final.json; default: the data set's own, or nnU-Net's 5 folds.")
    ] = None,
    pairs: Annotated[
        bool | None, typer.Option("--pairs/--no-pairs", help="Try pairs of configurations too.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file; what it leaves out has its default.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override, e.g. --set predict.mirror=false (repeatable)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Predicts each case with the fold that has not seen it, and chooses configuration and postprocessing.

    Run again, it goes on where it stopped. The decision is used by `fedvox predict --selection`.

    Example:
        fedvox crossval --data nnUNet_raw/Dataset003_Liver -o cv/liver
            -c resenc=runs/resenc-fold0,runs/resenc-fold1,… -c mednext=runs/mednext-fold0,…
    """
    from fedvox.inference.crossval import CrossvalConfig, cross_validate  # torch

    named = {} if configuration is None else dict(_named(text) for text in configuration)
    flags = {
        "data": data, "output": output, "splits": splits, "pairs": pairs, "configurations": named or None,
    }  # fmt: skip
    given = [f"{name}={json.dumps(value)}" for name, value in flags.items() if value is not None]
    selection = cross_validate(load_config(CrossvalConfig, config, [*(set_ or []), *given]))
    print(json.dumps(selection.to_dict()) if as_json else _summary(selection))


def _named(text: str) -> tuple[str, list[str]]:
    name, separator, runs = text.partition("=")
    if not separator or not name or not runs:
        raise ConfigError(
            f"--configuration {text!r} is not of the form NAME=RUN0,RUN1",
            "For example: -c resenc=runs/fold0,runs/fold1",
        )
    return name, [run.strip() for run in runs.split(",") if run.strip()]


def _summary(selection: Selection) -> str:
    lines = [f"mean Dice of structures over {selection.num_cases} held-out cases"]
    for candidate in selection.candidates:
        mark = "*" if candidate.name == selection.best else " "
        lines.append(f"{mark} {candidate.name:<32} {candidate.dice:.4f}")
    if selection.postprocessing is None:
        lines.append("postprocessing: none, no largest component raises the Dice")
    else:
        lines.append(f"  with {selection.postprocessing}: {selection.dice_postprocessed:.4f}")
    return "\n".join(lines)
