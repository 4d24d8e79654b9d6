"""One training of the worked example, in a process of its own: `python train.py OUTPUT NAME SEED`.

Networks of MONAI and ours see the same patches of the same brick store in the same order with the same augmentation,
loss and optimiser; only the network differs. nnU-Net's is trained by nnU-Net, see `nnunet_training`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from settings import BATCH, LEARNING_RATE, METHODS, PATCH, SPACING_MM, STRUCTURES, THREADS, Budget, Method
from torch import nn

from fedvox.data.augment_config import AugmentConfig
from fedvox.data.loader import BatchStream, LoaderConfig
from fedvox.data.sampler import SamplerConfig
from fedvox.data.store import BrickStore
from fedvox.models.registry import build_model
from fedvox.storage import locate
from fedvox.training.config import OptimizerSection
from fedvox.training.loss import DeepSupervision, DiceCrossEntropy
from fedvox.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from fedvox.training.release import ModelInfo, write_release
from fedvox.training.step import train_step

CLASSES = len(STRUCTURES) + 1


def build(method: Method) -> nn.Module:
    """The untrained network."""
    if method.origin == "fedvox":
        return build_model(method.network, in_channels=1, classes=CLASSES, **method.arguments)
    from monai.networks import nets

    network: nn.Module = getattr(nets, method.network)(**method.arguments)
    return network


def train(network: nn.Module, store: BrickStore, steps: int, seed: int) -> list[float]:
    """Train a network in place; returns the losses."""
    section = OptimizerSection(lr=LEARNING_RATE, warmup_steps=min(10, steps - 1))
    optimizer = build_optimizer(section, network)
    loss = DeepSupervision(DiceCrossEntropy())
    stream = BatchStream(
        store,
        SamplerConfig(seed=seed, patch_size=PATCH),
        AugmentConfig(),
        LoaderConfig(global_batch_size=BATCH, threads=1),
        num_steps=steps,
    )
    losses = []
    with stream:
        for step, batch in enumerate(stream):
            set_learning_rate(optimizer, learning_rate(section, step, steps))
            result = train_step(network, batch, loss, optimizer, grad_clip=section.grad_clip)
            losses.append(float(result.loss))
            if step % 20 == 0:
                print(f"step {step} loss {losses[-1]:.3f}", flush=True)  # noqa: T201
    return losses


def save(method: Method, network: nn.Module, folder: Path) -> None:
    """What an adapter reads: a release of ours, or a state dict."""
    if method.origin == "monai":
        torch.save(network.state_dict(), folder / "weights.pt")
        return
    info = ModelInfo(
        method.network, method.arguments, ("background", *STRUCTURES), ("T1",), PATCH, (SPACING_MM,) * 3, "zscore",
        None, modality="MR",
    )  # fmt: skip
    write_release(network, info, locate(str(folder / "model")))


def main(output: Path, name: str, seed: int, budget: Budget) -> None:
    """Train a method and note what it cost, unless that is done."""
    method, folder = METHODS[name], output / "models" / f"{name}-{seed}"
    if (folder / "training.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    if method.origin == "nnunet":
        from nnunet_training import train_nnunet

        parameters, losses = train_nnunet(output / "raw", folder, budget.steps)
    else:
        network = build(method)
        losses = train(network, BrickStore.open(str(output / "store")), budget.steps, seed)
        save(method, network, folder)
        parameters = sum(p.numel() for p in network.parameters())
    cost: dict[str, Any] = {
        "parameters_millions": round(parameters / 1e6, 3),
        "cpu_hours": round((time.process_time() - cpu) / 3600, 4),
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "losses": [round(loss, 4) for loss in losses],
    }
    (folder / "training.json").write_text(json.dumps(cost, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    given = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Budget(**given))
