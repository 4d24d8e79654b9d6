"""`fedvox plan`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from fedvox.errors import ConfigError

if TYPE_CHECKING:
    from fedvox.planning.backbones import BackbonePlan
    from fedvox.planning.plan import ExperimentPlan
    from fedvox.planning.splits import Fold


def plan(
    data: Annotated[
        str,
        typer.Argument(help="Brick store, preprocessed nnU-Net folder, or raw data set (measured first)."),
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Folder for the plan, splits and training configurations."),
    ] = None,
    preset: Annotated[str, typer.Option(help="unet, resenc, resenc-m, resenc-l or resenc-xl.")] = "resenc-l",
    memory_gib: Annotated[
        float | None, typer.Option(help="GPU memory to plan for; default: the preset's.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="D,H,W in mm of full resolution; default: nnU-Net's rule.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Backbone to train (`fedvox models`); default: the preset's U-Net.")
    ] = None,
    configuration: Annotated[str, typer.Option(help="Of the plan, for the training.")] = "3d_fullres",
    plans: Annotated[
        str | None,
        typer.Option(help="Take this nnU-Net plans file instead of planning; it must fit the data."),
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation; 0 for none.")] = 5,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with its reasons, write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Plans spacing, patch, batch and topology for a data set and a GPU memory, by nnU-Net's rules.

    Writes nnU-Net's own plans file, the reasons, splits_final.json, and a configuration for `fedvox pretrain`
    of the whole data set and of each fold.

    Examples:
        fedvox plan stores/liver --preset resenc-l --dry-run

        fedvox plan stores/liver -o plans/liver --model mednext-v2-base --memory-gib 80

        fedvox plan stores/liver -o plans/liver --plans nnUNet_preprocessed/Dataset003_Liver/nnUNetPlans.json
    """
    from fedvox.planning.backbones import plan_backbone  # torch
    from fedvox.planning.facts import load_facts
    from fedvox.planning.nnunet_plans import read_plans
    from fedvox.planning.planner import plan_experiment
    from fedvox.planning.presets import PRESETS
    from fedvox.planning.report import describe, to_json

    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}", f"Known: {', '.join(PRESETS)}.")
    if output is None and not dry_run:
        raise ConfigError("--output is missing", "Name a folder for the plan, or give --dry-run.")
    if memory_gib is not None and memory_gib <= 0:
        raise ConfigError(
            f"--memory-gib {memory_gib:g} is not positive", "Give the memory of one GPU in GiB."
        )
    facts = load_facts(data)
    if plans is not None:
        found = read_plans(plans)
        found.check_channels(facts.channel_names)
    else:
        found = plan_experiment(facts, PRESETS[preset], memory_gib=memory_gib, spacing_mm=_spacing(spacing))
    trained = plan_backbone(
        found,
        configuration,
        model=model,
        classes=facts.num_labels,
        memory_gib=memory_gib or PRESETS[preset].memory_gib,
    )
    parts = _folds(data, facts.case_ids, folds)
    print(json.dumps(to_json(found, trained, parts)) if as_json else describe(found, trained, parts))
    if not dry_run and output is not None:
        _write(output, data, found, trained, parts, quiet=as_json)


def _write(
    output: str,
    data: str,
    found: ExperimentPlan,
    trained: BackbonePlan,
    parts: tuple[Fold, ...],
    *,
    quiet: bool,
) -> None:
    from fedvox.planning.report import write_plan
    from fedvox.storage import exists, locate

    source = locate(data)
    store = source.uri if exists(source.child("store.json")) else None
    written = write_plan(locate(output), found, trained, parts, store=store)
    if not quiet:
        print("\nwritten    " + "\n           ".join(location.uri for location in written))


def _folds(data: str, case_ids: tuple[str, ...], count: int) -> tuple[Fold, ...]:
    """The data set's own splits, where it came with some; nnU-Net's otherwise."""
    from fedvox.planning.splits import kfold, read_splits
    from fedvox.storage import exists, locate

    if count == 0 or not case_ids:
        return ()
    for name in ("splits.json", "splits_final.json"):
        if exists(locate(data).child(name)):
            return read_splits(locate(data).child(name).uri, case_ids)
    return kfold(case_ids, folds=count) if len(case_ids) >= max(2, count) else ()


def _spacing(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        parts = [float(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 3) or min(parts) <= 0:
        raise ConfigError(
            f"--spacing {text!r} is no spacing", "Give D,H,W in mm (3,1,1), or one number for all axes."
        )
    d, h, w = parts * 3 if len(parts) == 1 else parts
    return d, h, w
