"""What to say when a training step does not fit into memory: which knob to turn, and how far it is turned now."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from torch import nn

from fedvox.errors import OutOfMemory
from fedvox.inference.device import is_out_of_memory
from fedvox.training.config import PretrainConfig
from fedvox.training.world import World


@contextlib.contextmanager
def explained_out_of_memory(
    config: PretrainConfig, network: nn.Module, world: World, *, restart: bool
) -> Iterator[None]:
    """Turns "out of memory" in a training step into an error that says which knob to turn.

    Args:
        config: the knobs as they are.
        network: what is trained.
        world: where.
        restart: whether starting the workers again may help, because this attempt has come further than the last
            checkpoint: memory was enough for a while.

    Raises:
        OutOfMemory: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        where = "the GPU" if world.device.type == "cuda" else "main memory"
        share = math.ceil(config.global_batch_size / world.size)
        patch = "×".join(map(str, config.data.patch_size))
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise OutOfMemory(
            f"{where} is too small for a step of {config.model.name} with {share} patches of {patch} voxels "
            f"a worker ({said})",
            _sentence(list(_knobs(config, network, world, share))),
            restart=restart,
        ) from error


def _knobs(config: PretrainConfig, network: nn.Module, world: World, share: int) -> Iterator[str]:
    if share > 1:
        yield f"lower global_batch_size (now {config.global_batch_size})"
        yield f"add workers (compute.num_workers, now {world.size})"
    options = getattr(network, "config", None)
    if getattr(options, "checkpoint_blocks", True) is False:
        yield "set model.options.checkpoint_blocks=true (a third more time, a fraction of the memory)"
    smaller = [
        max(n, (size // 2) // n * n)
        for size, n in zip(config.data.patch_size, _divisor(network), strict=True)
    ]
    yield f"give smaller patches (data.patch_size={smaller})"
    if world.device.type == "cuda" and config.compute.precision == "fp32":
        yield "compute in bf16 (compute.precision=bf16)"


def _divisor(network: nn.Module) -> tuple[int, int, int]:
    return getattr(network, "divisor", (1, 1, 1))


def _sentence(knobs: list[str]) -> str:
    text = ", or ".join(knobs)
    return f"{text[0].upper()}{text[1:]}. `--dry-run` estimates the memory of each."
