"""Everything one worker holds while it trains, and how it is put together."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fedvox.data.cache import CacheConfig
from fedvox.data.loader import BatchStream, LoaderConfig
from fedvox.data.sampler import SamplerConfig
from fedvox.data.split import Split, split_cases
from fedvox.data.store import BrickStore
from fedvox.errors import CheckpointError, ConfigError
from fedvox.inference.sliding_window import SlidingWindow
from fedvox.models.backbone import Backbone
from fedvox.models.depth import layer_distance
from fedvox.models.registry import build_model
from fedvox.training.checkpoint import CheckpointStore, Snapshot, Writer, load, load_latest, step_name
from fedvox.training.config import DataSection, ExpectedStore, PretrainConfig, TrainingConfig, expand
from fedvox.training.finetune import Transferred, initialise
from fedvox.training.finetune_config import FinetuneConfig
from fedvox.training.freezing import Freezer
from fedvox.training.loss import DeepSupervision, DiceCrossEntropy
from fedvox.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from fedvox.training.phases import phase_at
from fedvox.training.release import ModelInfo, load_release
from fedvox.training.release_facts import data_facts, published
from fedvox.training.run_directory import MetricsLog, RunDirectory
from fedvox.training.state import check_fits, restore, state_tensors
from fedvox.training.world import World

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Scalars of a run that a checkpoint carries.

    Attributes:
        step: optimiser steps done.
        ema_dice: moving average of the mean foreground Dice; None before the first validation.
        best_ema_dice: largest `ema_dice` so far.
        nonfinite_in_a_row: steps just skipped for a non-finite gradient.
        validated_at: step of the last validation that counts; a checkpoint may be older than that of its step.
        trained_s: seconds of training over all attempts, as far as checkpoints know.
        damaged: cases skipped because their file is damaged, with the reason.
    """

    step: int = 0
    ema_dice: float | None = None
    best_ema_dice: float | None = None
    nonfinite_in_a_row: int = 0
    validated_at: int | None = None
    trained_s: float = 0.0
    damaged: dict[str, str] = field(default_factory=dict)


@dataclass
class Session:
    """One worker's training: data, network, optimiser, files.

    Attributes:
        network: the bare network; `model` is the same one, wrapped in DDP if there are several workers.
        freezer: knows which parts of it are trained.
        metrics: the log of this attempt, on worker 0 only.
    """

    config: PretrainConfig
    world: World
    run: RunDirectory
    store: BrickStore
    split: Split
    network: nn.Module
    model: nn.Module
    freezer: Freezer
    optimizer: Optimizer
    loss_fn: nn.Module
    checkpoints: CheckpointStore
    progress: Progress
    attempt: int
    metrics: MetricsLog | None
    autocast: torch.dtype | None

    @property
    def window(self) -> SlidingWindow:
        """How validation covers a volume."""
        validation = self.config.validation
        return SlidingWindow(self.config.data.patch_size, validation.overlap, validation.mirror)

    def begin_step(self) -> float:
        """Trains the parts that the current step is to train, at its learning rate, which is returned."""
        phase = phase_at(self.config.phases(), self.progress.step)
        if self.freezer.train_only(phase.parts):
            log.info("step %d: %s are trained from here on", self.progress.step, ", ".join(phase.parts))
            self.model = self.network  # lets go of the old wrapper, whose hooks are on the parameters
            self.model = distributed(self.network, self.world)
        lr = learning_rate(phase, self.progress.step - phase.start, phase.steps)
        set_learning_rate(self.optimizer, lr)
        return lr

    def batches(self) -> BatchStream:
        """The stream of this worker's batches from the current step to the end of the run."""
        data = self.config.data
        return BatchStream(
            self.store,
            sampler_config(self.config),
            self.config.augment,
            LoaderConfig(
                global_batch_size=self.config.global_batch_size,
                threads=data.loader_threads,
                prefetch_batches=data.prefetch_batches,
                augment_on=data.augment_on,
            ),
            rows=self.split.training,
            rank=self.world.rank,
            world_size=self.world.size,
            start_step=self.progress.step,
            num_steps=self.config.steps - self.progress.step,
            device=self.world.device,
        )

    def snapshot(self) -> Snapshot:
        """The state to write into a checkpoint."""
        meta = {
            "progress": asdict(self.progress),
            "architecture": architecture(self.config, self.store),
            "cases": self.store.cases_digest,
        }
        return Snapshot(self.progress.step, state_tensors(self.network, self.optimizer), meta)

    def close(self) -> None:
        """Ends background threads and stores what is still in memory."""
        self.checkpoints.close()
        if self.metrics is not None:
            self.metrics.close()


def open_session(config: PretrainConfig, world: World) -> Session:
    """Opens the store, builds or restores the network, and joins the workers.

    Raises:
        FedvoxError: the store, the configuration or a checkpoint cannot be used.
    """
    run = RunDirectory.of(config)
    store, split = open_data(config.data)
    torch.manual_seed(config.seed)
    network = new_network(config, len(store.meta.channel_names), len(store.meta.structures)).to(world.device)
    scales = layer_scales(network, config.layer_decay)
    optimizer = build_optimizer(config.optimizer, network, scales)
    progress = restore_newest(
        run, network, optimizer, world, lambda meta: check_architecture(config, store, meta, run)
    )
    if progress is None:
        progress = Progress()
        fill_network(config, network, store)
    freezer = Freezer(network)
    freezer.train_only(phase_at(config.phases(), progress.step).parts)
    model = distributed(network, world)
    loss = DeepSupervision(DiceCrossEntropy(config.loss.smooth, config.loss.batch_dice))
    attempt, checkpoints, metrics = begin_attempt(config, run, world)
    return Session(
        config, world, run, store, split, network, model, freezer, optimizer, loss, checkpoints, progress,
        attempt, metrics, autocast_dtype(config, world.device),
    )  # fmt: skip


def begin_attempt(
    config: TrainingConfig, run: RunDirectory, world: World
) -> tuple[int, CheckpointStore, MetricsLog | None]:
    """Opens what a new attempt writes: its number, its checkpoints, and on worker 0 its log."""
    attempt = world.from_first(run.next_attempt() if world.rank == 0 else 0)
    checkpoints = CheckpointStore(
        run.checkpoints,
        Writer(world.rank, world.size, attempt),
        keep=config.checkpoint.keep,
        commit_timeout_s=config.checkpoint.commit_timeout_s,
    )
    return attempt, checkpoints, MetricsLog(run, attempt) if world.rank == 0 else None


def open_data(config: DataSection) -> tuple[BrickStore, Split]:
    """Opens the brick store and splits its cases.

    Raises:
        FedvoxError: the store cannot be opened, or the split leaves nothing to train on.
    """
    cache = None
    if config.cache is not None:
        folder = expand(config.cache.folder)
        cache = CacheConfig(folder, config.cache.budget_gib, config.cache.prefetch_threads)
    store = BrickStore.open(expand(config.store), cache=cache)
    if config.expect is not None:
        check_expected(config.expect, store)
    split = split_cases(
        store.case_ids,
        store.sources,
        named=config.validation_cases,
        fraction=config.validation_fraction,
        at_most=config.max_validation_cases,
    )
    return store, Split(split.training, _judgeable(config, store, split.validation))


def _judgeable(config: DataSection, store: BrickStore, rows: np.ndarray) -> np.ndarray:
    """The held-out cases without those that nobody labelled.

    Raises:
        ConfigError: such a case was held out by name.
    """
    judged = np.array([store.annotated(int(row))[1:].any() for row in rows], bool)
    if config.validation_cases is not None and not judged.all():
        raise ConfigError(
            f"data.validation_cases: {store.case_ids[int(rows[~judged][0])]!r} has no label to be judged by",
            "Name labelled cases, or leave data.validation_cases out.",
        )
    kept: np.ndarray = rows[judged]
    return kept


def check_expected(expect: ExpectedStore, store: BrickStore) -> None:
    """Compares a store with what the configuration expects of it.

    Raises:
        ConfigError: channels or structures differ, or there are fewer cases.
    """
    channels, structures = len(store.meta.channel_names), len(store.meta.structures)
    problems = []
    if channels != expect.channels:
        problems.append(f"{channels} channels, expected {expect.channels}")
    if structures != expect.structures:
        problems.append(f"{structures} structures, expected {expect.structures}")
    if len(store) < expect.cases:
        problems.append(f"{len(store):,} cases, expected {expect.cases:,}")
    if problems:
        raise ConfigError(
            f"the store has {'; '.join(problems)}", "Name the right data.store, or mend data.expect."
        )


def distributed(network: nn.Module, world: World) -> nn.Module:
    """The network, wrapped in DDP for what of it is trained now, if there are several workers."""
    if world.size == 1:
        return network
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)


def layer_scales(network: nn.Module, decay: float) -> dict[str, float]:
    """Factors of the learning rate by parameter name: `decay` to the power of the distance from the heads."""
    if decay == 1.0 or not isinstance(network, Backbone):
        return {}
    return {name: decay**distance for name, distance in layer_distance(network).items()}


def fill_network(config: PretrainConfig, network: nn.Module, store: BrickStore) -> Transferred | None:
    """Puts the weights that `init_from` names into a new network; None where it names none.

    Pretraining continues a release as it is; fine-tuning adapts any weights, and tells how.

    Raises:
        CheckpointError: the weights cannot be read, or do not fit.
        ConfigError: see `fedvox.training.finetune.transfer`.
    """
    if config.init_from is None:
        return None
    if isinstance(config, FinetuneConfig):
        return initialise(config, network, store.meta)
    released, info = load_release(expand(config.init_from))
    if info.structures != tuple(store.meta.structures):
        raise CheckpointError(
            f"init_from: {config.init_from} segments {len(info.structures)} structures, the store has "
            f"{len(store.meta.structures)} (or others)",
            "Pretraining continues on the same structures only; fedvox finetune adapts weights to others.",
        )
    try:
        check_fits(network, released.state_dict())
    except CheckpointError as error:
        raise CheckpointError(
            f"init_from: {config.init_from} ({info.name}): {error.message}",
            "Use its model section, or fedvox finetune, which adapts what it can.",
        ) from error
    network.load_state_dict(released.state_dict())
    return None


def new_network(config: PretrainConfig, in_channels: int, classes: int) -> nn.Module:
    """The configured network, freshly initialised.

    Raises:
        ConfigError: the patch does not fit the network's strides.
    """
    network = build_model(
        config.model.name,
        in_channels=in_channels,
        classes=classes,
        deep_supervision=config.model.deep_supervision,
        **config.model.options,
    )
    patch, divisor = config.data.patch_size, network.divisor
    if any(size % step for size, step in zip(patch, divisor, strict=True)):
        fitting = [max(step, round(size / step) * step) for size, step in zip(patch, divisor, strict=True)]
        raise ConfigError(
            f"data.patch_size {patch} is not divisible by {divisor}, as {config.model.name} needs",
            f"Nearest size that fits: --set data.patch_size={fitting}",
        )
    return network


def sampler_config(config: PretrainConfig) -> SamplerConfig:
    """How samples are drawn, from the run's configuration."""
    return SamplerConfig(
        seed=config.seed,
        patch_size=config.data.patch_size,
        foreground_fraction=config.data.foreground_fraction,
        source_temperature=config.data.source_temperature,
    )


def architecture(config: PretrainConfig, store: BrickStore) -> dict[str, Any]:
    """What must be equal for a checkpoint to fit."""
    return {
        "name": config.model.name,
        "options": dict(config.model.options),
        "deep_supervision": config.model.deep_supervision,
        "in_channels": len(store.meta.channel_names),
        "structures": list(store.meta.structures),
    }


def model_info(
    config: PretrainConfig, store: BrickStore, split: Split, provenance: dict[str, Any]
) -> ModelInfo:
    """The description that goes with released weights."""
    meta = store.meta
    return ModelInfo(
        name=config.model.name,
        options={**config.model.options, "deep_supervision": config.model.deep_supervision},
        structures=tuple(meta.structures),
        channel_names=tuple(meta.channel_names),
        patch_size=config.data.patch_size,
        spacing_mm=meta.spacing_mm,
        normalization=meta.normalization,
        intensity=meta.intensity,
        provenance=provenance,
        modality=meta.modality,
        crop_to_nonzero=meta.crop_to_nonzero,
        training=published(config),
        data=data_facts(store, split),
    )


def restore_newest(
    run: RunDirectory,
    network: nn.Module,
    optimizer: Optimizer,
    world: World,
    check: Callable[[dict[str, Any]], None],
) -> Progress | None:
    """Restores the newest intact checkpoint into network and optimiser; None if there is none.

    Worker 0 chooses the checkpoint for all: a worker of a dying attempt might still commit one meanwhile.

    Args:
        run: whose checkpoints.
        network: is filled.
        optimizer: is filled.
        world: the workers.
        check: refuses, by raising, a checkpoint whose notes do not fit the run.
    """
    snapshot = load_latest(run.checkpoints) if world.rank == 0 else None
    step = world.from_first(snapshot.step if snapshot is not None else -1)
    if step < 0:
        return None
    if snapshot is None:
        snapshot = load(run.checkpoints.child(step_name(step)))
    check(snapshot.meta)
    restore(network, optimizer, snapshot.tensors)
    return Progress(**snapshot.meta["progress"])


def check_architecture(
    config: PretrainConfig, store: BrickStore, meta: dict[str, Any], run: RunDirectory
) -> None:
    """Compares a checkpoint's architecture, and the cases it learnt from, with the configuration's.

    Raises:
        CheckpointError: they differ; the fields are named.
    """
    if meta.get("cases", store.cases_digest) != store.cases_digest:  # earlier versions did not write it
        raise CheckpointError(
            f"{store.location.uri} holds other cases than when {run.checkpoints.uri} was written, so that its samples "
            "would be others",
            "Bring back that store, or start a run of another name from these weights (--set init_from=…).",
        )
    now, before = json.loads(json.dumps(architecture(config, store))), meta["architecture"]
    different = [f"{key}: {before.get(key)!r} -> {now[key]!r}" for key in now if before.get(key) != now[key]]
    if different:
        raise CheckpointError(
            f"the checkpoints in {run.checkpoints.uri} are of another architecture: " + "; ".join(different),
            "Resume with the old settings, or give the run another name (--set name=…).",
        )


def autocast_dtype(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    """bf16 where the configuration asks for it, or by itself on a GPU; None for full precision."""
    precision = config.compute.precision
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and device.type == "cuda") else None
