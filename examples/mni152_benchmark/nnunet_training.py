"""nnU-Net trained by nnU-Net itself: its fingerprint, plan, preprocessing, augmentation, loss, schedule and trainer.

Two things are changed, both where nnU-Net means them to be: `plans.json` gets the patch, the batch and fewer features
(its own are for GPUs), and the trainer the number of iterations.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from settings import BATCH, DATASET, FEATURES, PATCH, SPACING_MM

_EPOCHS = 4


def train_nnunet(raw: Path, folder: Path, steps: int) -> tuple[int, list[float]]:
    """Train with nnU-Net.

    Args:
        raw: folder that holds the training cases as `DATASET`.
        folder: takes everything; `folder/model` is the trained model.
        steps: iterations in all.

    Returns:
        Number of parameters, and the mean loss of every epoch.
    """
    places = {"raw": raw, "preprocessed": folder / "preprocessed", "results": folder / "results"}
    os.environ.update({f"nnUNet_{name}": str(path) for name, path in places.items()})
    os.environ.update({"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"})
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    extract_fingerprints([1], num_processes=1, show_progress_bar=False)
    plan_experiments([1], overwrite_target_spacing=(SPACING_MM,) * 3)
    plans_file = places["preprocessed"] / DATASET / "nnUNetPlans.json"
    plans_file.write_text(json.dumps(_smaller(json.loads(plans_file.read_text()))))
    preprocess([1], configurations=("3d_fullres",), num_processes=(1,), show_progress_bar=False)
    os.environ.update(nnUNet_n_proc_DA="0")  # augments in this process; its planner refuses that number
    trainer = _trainer(plans_file, places["raw"] / DATASET / "dataset.json", steps)
    trainer.run_training()
    found = places["results"] / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    shutil.copytree(found, folder / "model", ignore=shutil.ignore_patterns("*.pdf", "*best*"))
    losses = trainer.logger.local_logger.my_fantastic_logging["train_losses"]
    return sum(p.numel() for p in trainer.network.parameters()), [float(loss) for loss in losses]


def _smaller(plans: dict[str, Any]) -> dict[str, Any]:
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"], configuration["batch_size"] = list(PATCH), BATCH
    network = configuration["architecture"]["arch_kwargs"]
    stages = min(network["n_stages"], 4)  # 32 voxels are halved three times, to 4
    network["n_stages"] = stages
    network["features_per_stage"] = list(FEATURES[:stages])
    network["kernel_sizes"] = [[3, 3, 3]] * stages
    network["strides"] = [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1)
    network["n_conv_per_stage"] = network["n_conv_per_stage"][:stages]
    network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][: stages - 1]
    return plans


def _trainer(plans_file: Path, dataset_file: Path, steps: int) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = json.loads(plans_file.read_text()) | {"continue_training": False}
    trainer = nnUNetTrainer(
        plans, "3d_fullres", "all", json.loads(dataset_file.read_text()), torch.device("cpu")
    )
    trainer.num_epochs = min(_EPOCHS, steps)
    trainer.num_iterations_per_epoch = steps // trainer.num_epochs
    trainer.num_val_iterations_per_epoch = 1  # it chooses a checkpoint that is not used
    return trainer
