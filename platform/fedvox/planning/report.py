"""A plan in words, and as files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from fedvox.planning.backbones import BackbonePlan
from fedvox.planning.nnunet_plans import to_nnunet, write_plans
from fedvox.planning.plan import Decision, ExperimentPlan
from fedvox.planning.splits import Fold, write_splits
from fedvox.storage import Location, write_atomic

SCHEMA = "fedvox.plan.experiment/1"
_WIDTH = 100


def describe(plan: ExperimentPlan, backbone: BackbonePlan, folds: Sequence[Fold]) -> str:
    """Every decision with its reason, for people."""
    lines = [f"{plan.dataset_name}, as {plan.plans_name}", *_decisions(plan.decisions)]
    for configuration in plan.configurations.values():
        if configuration.decisions:
            lines += [f"\n{configuration.name}", *_decisions(configuration.decisions)]
    patch = " × ".join(map(str, backbone.patch_size))
    lines += [f"\n{backbone.model}: patch {patch} (D × H × W), batch {backbone.batch_size}"]
    lines += _decisions(backbone.decisions)
    if folds:
        lines.append(
            f"\n{len(folds)} folds of {', '.join(str(len(fold.validation)) for fold in folds)} held-out cases"
        )
    return "\n".join(lines)


def _decisions(decisions: Iterable[Decision]) -> list[str]:
    lines = []
    for decision in decisions:
        lines.append(f"  {decision.field:<14} {decision.value}")
        lines += [f"  {'':<14}   {line}" for line in _wrapped(f"because: {decision.reason}")]
    return lines


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= _WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines


def to_json(plan: ExperimentPlan, backbone: BackbonePlan, folds: Sequence[Fold]) -> dict[str, Any]:
    """The plan with its reasons, for programs."""
    return {
        "schema": SCHEMA,
        "nnunet_plans": to_nnunet(plan),
        "decisions": [asdict(decision) for decision in plan.decisions],
        "configurations": {
            name: [asdict(decision) for decision in configuration.decisions]
            for name, configuration in plan.configurations.items()
        },
        "backbone": asdict(backbone),
        "folds": [asdict(fold) for fold in folds],
    }


def write_plan(
    folder: Location,
    plan: ExperimentPlan,
    backbone: BackbonePlan,
    folds: Sequence[Fold],
    *,
    store: str | None = None,
) -> list[Location]:
    """Writes nnU-Net's plans, the reasons, the splits, and a configuration of each training.

    Args:
        folder: for the files.
        plan: of the data set.
        backbone: how one is trained by it.
        folds: of a cross-validation.
        store: the brick store to train on, where there is one already.

    Returns:
        What was written.
    """
    values = backbone.training_values()
    if store is not None:
        values["data"] = {"store": store, **values["data"]}
    name = f"{plan.dataset_name}-{backbone.model}".lower()
    written = [folder.child(f"{plan.plans_name}.json"), folder.child("plan.json"), folder.child("train.yaml")]
    write_plans(plan, written[0])
    write_atomic(written[1], (json.dumps(to_json(plan, backbone, folds), indent=1) + "\n").encode())
    write_atomic(written[2], _yaml({"name": name, **values}))
    if folds:
        written.append(folder.child("splits_final.json"))
        write_splits(folds, written[-1])
    for number, fold in enumerate(folds):
        data = {**values["data"], "validation_cases": list(fold.validation)}
        written.append(folder.child(f"train_fold{number}.yaml"))
        write_atomic(written[-1], _yaml({"name": f"{name}-fold{number}", **values, "data": data}))
    return written


def _yaml(value: dict[str, Any]) -> bytes:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None)).encode()
