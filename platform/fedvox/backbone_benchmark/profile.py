"""What one training step of a backbone costs: counted on the meta device, and measured in a process of its own.

    python -m fedvox.backbone_benchmark.profile '{"name": "mednext-v2-tiny", …}'

A fresh process, because the peak memory of a CPU process cannot be reset.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedvox.errors import RunError
from fedvox.models.registry import build_model
from fedvox.training.config import OptimizerSection
from fedvox.training.estimate import GIB, cost_of
from fedvox.training.loss import DeepSupervision, DiceCrossEntropy
from fedvox.training.optimizer import build_optimizer
from fedvox.training.step import train_step

Size3 = tuple[int, int, int]
_WARMUP = 2


@dataclass(frozen=True)
class StepSpec:
    """A training step to be measured.

    Attributes:
        name: backbone.
        options: further arguments of `build_model`.
        in_channels: image channels.
        classes: structures with background.
        patch_size: (D, H, W) in voxels.
        batch_size: samples a step.
        bf16: whether the forward pass runs in bf16 autocast.
        threads: CPU threads.
        steps: steps that are timed.
    """

    name: str
    options: dict[str, Any]
    in_channels: int
    classes: int
    patch_size: Size3
    batch_size: int
    bf16: bool
    threads: int
    steps: int


@dataclass(frozen=True)
class Profile:
    """Cost of one training step.

    Attributes:
        parameters: trainable numbers.
        tflop_per_step: forward and backward operations of a batch, counted by `torch.utils.flop_counter`.
        activation_gib: tensors that a batch keeps from forward to backward, counted.
        seconds_per_step: median, measured.
        peak_gib: largest memory of training above the process's own, measured.
        device: on which it was measured.
    """

    parameters: int
    tflop_per_step: float
    activation_gib: float
    seconds_per_step: float
    peak_gib: float
    device: str


def count(spec: StepSpec) -> tuple[int, float, float]:
    """Parameters, TFLOP and activations (GiB) of a step, without running it."""
    with torch.device("meta"):
        network = build_model(spec.name, in_channels=spec.in_channels, classes=spec.classes, **spec.options)
    cost = cost_of(network, spec.in_channels, spec.patch_size, spec.bf16)
    return cost.parameters, cost.flops * spec.batch_size / 1e12, cost.activation_bytes * spec.batch_size / GIB


def profile(spec: StepSpec) -> Profile:
    """Counts and measures a step.

    Raises:
        RunError: the measuring process died, most likely for want of memory.
    """
    parameters, tflop, activation_gib = count(spec)
    command = [sys.executable, "-m", "fedvox.backbone_benchmark.profile", json.dumps(asdict(spec))]
    found_here = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # relative ones do not outlive a chdir
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=found_here)
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RunError(
            f"a step of {spec.name} with {spec.batch_size} patches of {spec.patch_size} could not be measured: {words}",
            "If memory ran out, lower recipe.global_batch_size or recipe.data.patch_size, or set checkpoint_blocks "
            "in the backbone's options.",
        )
    measured = json.loads(done.stdout.splitlines()[-1])
    return Profile(parameters, tflop, activation_gib, **measured)


@dataclass
class _Noise:
    """A batch of noise: cost does not depend on what is in it."""

    image: Tensor
    label: Tensor
    annotated: Tensor


def measure(spec: StepSpec) -> dict[str, Any]:
    """Runs some steps in this process; only a fresh one gives the right peak memory."""
    torch.set_num_threads(spec.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = (spec.batch_size, 1, *spec.patch_size)
    batch = _Noise(
        torch.randn(spec.batch_size, spec.in_channels, *spec.patch_size, device=device),
        torch.randint(0, spec.classes, size, device=device),
        torch.ones(spec.batch_size, spec.classes, dtype=torch.bool, device=device),
    )
    before = _memory_gib("VmRSS")  # torch and the batch
    _forget_peak()
    network = build_model(spec.name, in_channels=spec.in_channels, classes=spec.classes, **spec.options)
    network = network.to(device).train()
    optimizer = build_optimizer(OptimizerSection(), network)
    loss = DeepSupervision(DiceCrossEntropy(1e-5, False))
    seconds = []
    for _ in range(_WARMUP + spec.steps):
        began = time.perf_counter()
        train_step(
            network, batch, loss, optimizer, grad_clip=1.0, autocast=torch.bfloat16 if spec.bf16 else None
        )  # reads the gradient norm, and so waits for the device
        seconds.append(time.perf_counter() - began)
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / GIB if on_gpu else _memory_gib("VmHWM") - before
    return {
        "seconds_per_step": statistics.median(seconds[_WARMUP:]),
        "peak_gib": peak,
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {spec.threads} threads",
    }


def _memory_gib(field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (at most) of this process; elsewhere than on Linux the largest so far."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024 / GIB
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB
    )


def _forget_peak() -> None:
    """Starts the largest memory anew (Linux): importing torch takes more than a small network."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(measure(StepSpec(**{**given, "patch_size": tuple(given["patch_size"])}))))  # noqa: T201
