"""What a run will cost, before it is started: `--dry-run`.

Parameters, activations and floating-point operations are counted, not guessed: the network runs forward and
backward once on the meta device, where tensors have shapes but no memory. Hours follow from a published
training time of MedNeXt, scaled to other hardware; the throughput assumed is stated beside the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedvox import storage
from fedvox.errors import ConfigError, DataError, StorageError
from fedvox.training.config import DataSection, PretrainConfig, expand
from fedvox.training.fused_attention import fused_attention_on_meta
from fedvox.training.run_directory import RunDirectory
from fedvox.training.session import new_network, open_data

GIB = 2**30

CPU_CORE_TFLOP_PER_S = 0.03
"""Measured with `mednext-v2-tiny` on two cores of a server CPU with AVX-512: see docs/pretraining.md."""


@dataclass(frozen=True)
class Hardware:
    """A device that a run may be estimated for.

    Attributes:
        name: as given to `--hardware`.
        memory_gib: memory of one device.
        tflop_per_s: what a 3D ConvNeXt reaches on it, not the data sheet's peak.
    """

    name: str
    memory_gib: float
    tflop_per_s: float


A100_TFLOP_PER_S = 10.4
"""MedNeXt-L takes 68 h for nnU-Net's 1,000 epochs (500,000 patches of 128³, 5.1 TFLOP each) on an A100 40 GB: nnU-Net's
documentation. Depthwise convolutions are bound by memory, so other GPUs are scaled by their memory's bandwidth."""

_BANDWIDTH_GB_PER_S = {
    "a100-40gb": (40, 1555), "a100-80gb": (80, 2039), "h100-80gb": (80, 3350), "h200": (141, 4800),
    "l40s": (48, 864), "v100-32gb": (32, 900),
}  # fmt: skip

HARDWARE = {
    name: Hardware(name, memory, A100_TFLOP_PER_S * bandwidth / 1555)
    for name, (memory, bandwidth) in _BANDWIDTH_GB_PER_S.items()
} | {"cpu-core": Hardware("cpu-core", 4, CPU_CORE_TFLOP_PER_S)}


@dataclass(frozen=True)
class Cost:
    """Counted cost of one sample through a network.

    Attributes:
        parameters: trainable numbers.
        flops: forward and backward operations for one sample.
        activation_bytes: tensors kept from forward to backward for one sample.
    """

    parameters: int
    flops: int
    activation_bytes: int


def cost_of(network: nn.Module, in_channels: int, patch_size: tuple[int, int, int], bf16: bool) -> Cost:
    """Counts one training step of one sample on the meta device; takes a second and no memory.

    Args:
        network: on the meta device.
        in_channels: C.
        patch_size: (D, H, W).
        bf16: activations are kept in half precision, as autocast does.
    """
    image = torch.empty(1, in_channels, *patch_size, device="meta")
    network.train()
    with FlopCounterMode(display=False) as counter, fused_attention_on_meta():
        with _saved_bytes(network) as saved:
            outputs = network(image)
            outputs = outputs if isinstance(outputs, list) else [outputs]
            loss = sum(_meta_loss(o) for o in outputs)
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
    parameters = sum(p.numel() for p in network.parameters())
    return Cost(parameters, counter.get_total_flops(), saved.total // (2 if bf16 else 1))


def _meta_loss(logits: Tensor) -> Tensor:
    """Keeps for backward what `DiceCrossEntropy` keeps: log-probabilities and probabilities."""
    log_probabilities = torch.log_softmax(logits, 1)
    return log_probabilities.exp().mean() + log_probabilities.mean()


@dataclass
class _Saved:
    """Bytes of the distinct tensors that autograd keeps."""

    total: int
    seen: set[int]

    def add(self, tensor: Tensor) -> None:
        key = tensor.untyped_storage()._cdata
        if key not in self.seen:
            self.seen.add(key)
            self.total += tensor.untyped_storage().nbytes()


@contextmanager
def _saved_bytes(network: nn.Module) -> Iterator[_Saved]:
    saved = _Saved(0, {p.untyped_storage()._cdata for p in network.parameters()})

    def pack(tensor: Tensor) -> Tensor:
        saved.add(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


@dataclass(frozen=True)
class Plan:
    """What `--dry-run` tells of a run; every field is in the JSON too."""

    name: str
    run_directory: str
    model: str
    parameters: int
    in_channels: int
    structures: int
    patch_size: tuple[int, int, int]
    cases_training: int
    cases_validation: int
    sources: int
    store_gib: float
    steps: int
    global_batch_size: int
    workers: int
    samples: int
    passes_over_data: float
    tflop_per_sample: float
    memory_gib_per_worker: float
    read_gib: float
    checkpoint_gib: float
    hardware: str
    assumed_tflop_per_s: float
    hours: float
    read_mib_per_s: float
    warnings: tuple[str, ...]


def plan(config: PretrainConfig, hardware: str) -> Plan:
    """Counts and estimates a run without starting it.

    Args:
        config: the run.
        hardware: a key of `HARDWARE`.

    Raises:
        FedvoxError: the hardware is unknown, or the run could not be started as it is configured.
    """
    if hardware not in HARDWARE:
        raise ConfigError(f"unknown hardware {hardware!r}", f"Known: {', '.join(HARDWARE)}.")
    device = HARDWARE[hardware]
    data, told = _data_facts(config.data)
    with torch.device("meta"):
        network = new_network(config, data.channels, data.structures)
    bf16 = config.compute.precision == "bf16" or (
        config.compute.precision == "auto" and device.name != "cpu-core"
    )
    cost = cost_of(network, data.channels, config.data.patch_size, bf16)
    workers = config.compute.max_workers
    per_worker = math.ceil(config.global_batch_size / workers)
    cores = config.compute.cpus_per_worker if device.name == "cpu-core" else 1
    throughput = device.tflop_per_s * 1e12 * cores
    step_s = per_worker * cost.flops / throughput
    samples = config.steps * config.global_batch_size
    memory = (cost.parameters * 16 + per_worker * cost.activation_bytes) / GIB
    read = samples * math.prod(config.data.patch_size) * data.bytes / data.voxels * READ_AHEAD
    return Plan(
        name=config.name,
        run_directory=RunDirectory.of(config).location.uri,
        model=config.model.name,
        parameters=cost.parameters,
        in_channels=data.channels,
        structures=data.structures,
        patch_size=config.data.patch_size,
        cases_training=data.training,
        cases_validation=data.validation,
        sources=data.sources,
        store_gib=data.bytes / GIB,
        steps=config.steps,
        global_batch_size=config.global_batch_size,
        workers=workers,
        samples=samples,
        passes_over_data=samples / max(1, data.training),
        tflop_per_sample=cost.flops / 1e12,
        memory_gib_per_worker=memory,
        read_gib=read / GIB,
        checkpoint_gib=cost.parameters * 12 / GIB,
        hardware=device.name,
        assumed_tflop_per_s=device.tflop_per_s,
        hours=config.steps * step_s / 3600,
        read_mib_per_s=read / max(1e-9, config.steps * step_s) / 2**20,
        warnings=(*told, *_warnings(config, device, memory, per_worker)),
    )


READ_AHEAD = 2.5
"""Bytes read per byte of a patch: bricks at a patch's border are read whole (26 bricks of 64³ for a 128³
patch is 3.3 times its voxels), rotated samples read more, the node's cache and the page cache take some of
it back."""


@dataclass(frozen=True)
class _DataFacts:
    """Counts of a store, read from it or expected of it; `voxels` are of one channel."""

    training: int
    validation: int
    sources: int
    channels: int
    structures: int
    voxels: int
    bytes: int


def _data_facts(config: DataSection) -> tuple[_DataFacts, list[str]]:
    try:
        if config.expect is not None:
            _probe(config.store)
        store, split = open_data(config)
    except (StorageError, DataError) as error:
        if config.expect is None or getattr(error, "code", "no_store") != "no_store":
            raise
        expect = config.expect
        held_out = round(config.validation_fraction * expect.cases)  # the surplus is used by neither side
        validation = min(config.max_validation_cases or expect.cases, held_out)
        facts = _DataFacts(
            expect.cases - held_out, validation, expect.sources, expect.channels, expect.structures,
            expect.voxels, int(expect.gib * GIB),
        )  # fmt: skip
        return facts, [
            f"the store could not be opened ({error.message}): the counts are those of data.expect"
        ]
    facts = _DataFacts(
        len(split.training), len(split.validation), len(store.source_names), len(store.meta.channel_names),
        len(store.meta.structures), store.total_voxels, store.total_bytes,
    )  # fmt: skip
    return facts, []


def _probe(store: str) -> None:
    """Sees whether a store answers, with less patience than a run has."""
    storage.exists(storage.locate(expand(store)), retry=storage.RetryPolicy(deadline_s=3.0))


def _warnings(config: PretrainConfig, device: Hardware, memory: float, per_worker: int) -> Iterator[str]:
    if memory > device.memory_gib:
        yield (
            f"about {memory:.0f} GiB a worker, {device.name} has {device.memory_gib:g}: lower global_batch_size or "
            "data.patch_size, add workers, or set model.options.checkpoint_blocks=true"
        )
    if config.global_batch_size % config.compute.max_workers:
        yield f"workers get unequal shares of the batch (up to {per_worker} samples): some wait for others"
    if storage.s3_path(config.data.store) is not None and config.data.cache is None:
        yield "the store is remote and data.cache is not set: every patch is fetched anew"


def describe(found: Plan) -> str:
    """The plan in words, for people."""
    rows = [
        ("run", f"{found.name} -> {found.run_directory}"),
        ("data", f"{found.cases_training:,} training and {found.cases_validation:,} validation cases of "
                 f"{found.sources} sources, {found.store_gib:,.1f} GiB, {found.structures} structures"),
        ("model", f"{found.model}, {found.parameters / 1e6:,.1f} M parameters, {found.in_channels} input channels"),
        ("steps", f"{found.steps:,} of {found.global_batch_size} patches of {'×'.join(map(str, found.patch_size))} "
                  f"({found.passes_over_data:,.1f} patches a case)"),
        ("workers", f"{found.workers} on {found.hardware}"),
        ("memory", f"{found.memory_gib_per_worker:,.1f} GiB a worker (weights, gradients, optimiser, activations)"),
        ("reading", f"{found.read_gib:,.0f} GiB in all, {found.read_mib_per_s:,.0f} MiB/s over all workers"),
        ("checkpoint", f"{found.checkpoint_gib:,.2f} GiB each"),
        ("time", f"{found.hours:,.1f} hours, at an assumed {found.assumed_tflop_per_s:,.3g} TFLOP/s a device and "
                 f"{found.tflop_per_sample:,.2f} TFLOP a patch"),
    ]  # fmt: skip
    lines = [f"{name:>11}  {text}" for name, text in rows]
    return "\n".join(lines + [f"{'warning':>11}  {text}" for text in found.warnings])
