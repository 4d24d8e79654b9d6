"""A step of private training against an ordinary one, on the same network, patients and machine.

    python benchmarks/dp_step.py [--model mednext-v2-nano] [--patch 32] [--patients 4] [--repeats 5] [--clock wall|cpu]

Columns are seconds a step (best of the repeats, all ways in turn), the ratio to the ordinary step, which takes all
patients in one batch, and the growth of the process's peak memory in the first step, in a process of its own.
`opacus` is its GradSampleModule and DPOptimizer with default settings; `loop` and `hooks` are the modes of
`fedvox_federation.dp_sgd`. On a busy machine take `--clock cpu`: one thread's own seconds, whoever else is at work.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fedvox.models.registry import build_model
from fedvox.training.loss import DiceCrossEntropy
from fedvox_federation.dp_sgd.trainable import select_trainable
from fedvox_federation.dp_sgd.training import PrivacySettings, PrivateTrainer, per_sample

WAYS = ("ordinary", "loop", "hooks", "opacus")


def step_of(way: str, arguments: argparse.Namespace, scope: str) -> Callable[[], None]:
    """One training step, ready to be called again and again."""
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    model = build_model(arguments.model, in_channels=1, classes=2, deep_supervision=False).train()
    trained = select_trainable(model, scope)  # type: ignore[arg-type]
    edge, count = arguments.patch, arguments.patients
    images = torch.randn(count, 1, edge, edge, edge)
    labels = torch.randint(0, 2, (count, 1, edge, edge, edge))
    criterion = DiceCrossEntropy()

    def loss(net: torch.nn.Module, tensors: tuple[Tensor, ...]) -> Tensor:
        annotated = torch.ones(len(tensors[0]), 2, dtype=torch.bool)
        value: Tensor = criterion(net(tensors[0]), tensors[1], annotated)
        return value

    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    if way == "ordinary":

        def ordinary() -> None:
            optimizer.zero_grad()
            loss(model, (images, labels)).backward()
            optimizer.step()

        return ordinary
    if way == "opacus":
        return _opacus_step(model, optimizer, loss, (images, labels))
    settings = PrivacySettings(
        1.0, 1.0, 0.5, 2 * count, mode=way, patches_at_once=1 if way == "loop" else count
    )  # type: ignore[arg-type]
    trainer = PrivateTrainer(model, optimizer, loss, settings)
    patients = [lambda i=i: (images[i : i + 1], labels[i : i + 1]) for i in range(count)]
    return lambda: void(trainer.step(patients))


def _opacus_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[torch.nn.Module, tuple[Tensor, ...]], Tensor],
    batch: tuple[Tensor, ...],
) -> Callable[[], None]:
    from opacus.optimizers import DPOptimizer

    wrapped = per_sample(model)
    count = len(batch[0])
    private = DPOptimizer(
        optimizer, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=count, loss_reduction="mean"
    )

    def step() -> None:
        private.zero_grad()
        (loss(wrapped, batch) * count).backward()
        private.step()

    return step


def void(_result: object) -> None:
    """Drops a result."""


def memory_mib(way: str, arguments: argparse.Namespace, scope: str) -> float:
    """Growth of the process's peak memory in the first step, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (way, arguments, scope))


def _growth(way: str, arguments: argparse.Namespace, scope: str) -> float:
    step = step_of(way, arguments, scope)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far (imports)
    before = _status_kib("VmRSS")
    step()
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Prints one table for each trained scope."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mednext-v2-nano")
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scopes", nargs="+", default=["norm+head", "lora", "decoder", "full"])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    print(
        f"{arguments.model}, {arguments.patients} patients of {arguments.patch}³, {arguments.threads} thread(s)"
    )
    for scope in arguments.scopes:
        steps = {way: step_of(way, arguments, scope) for way in WAYS}
        best = dict.fromkeys(WAYS, float("inf"))
        for _ in range(arguments.repeats + 1):
            for way, step in steps.items():
                begin = clock()
                step()
                best[way] = min(best[way], clock() - begin)
        print(f"\n{scope:10}  {'s/step':>8}  {'ratio':>6}  {'peak MiB':>8}")
        for way in WAYS:
            ratio = best[way] / best["ordinary"]
            print(f"{way:10}  {best[way]:8.3f}  {ratio:6.2f}  {memory_mib(way, arguments, scope):8.0f}")


if __name__ == "__main__":
    main()
