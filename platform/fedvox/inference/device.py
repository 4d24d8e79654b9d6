"""Which device computes, in which precision, where the logits are summed, and what to do when memory runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch

from fedvox.errors import ConfigError, RunError
from fedvox.inference.config import PredictConfig
from fedvox.inference.windows import WindowGrid

GIB = 2**30
_SHARE_FOR_LOGITS = 0.5  # of a GPU's free memory; the rest is for the network
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory", "std::bad_alloc")


def choose_device(name: str) -> torch.device:
    """The device that a user named.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name!r} is no device", "Give auto, cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and count == 0:
        why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no GPU can be reached"
        raise ConfigError(
            f"--device {name}: {why}",
            "Use --device cpu, or install a CUDA build of PyTorch and check nvidia-smi.",
        )
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"--device {name}: there are {count} GPUs", f"Give cuda:0 to cuda:{count - 1}.")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name!r} is not supported", "Give auto, cpu, cuda or cuda:1.")
    return device


def autocast(config: PredictConfig, device: torch.device) -> AbstractContextManager[object]:
    """The context in which networks compute."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
    dtype = dtypes.get(config.precision, torch.bfloat16 if device.type == "cuda" else None)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def logits_dtype(config: PredictConfig) -> torch.dtype:
    """In which logits are summed."""
    return torch.float16 if config.logits == "float16" else torch.float32


def band_bytes(grid: WindowGrid, num_classes: int, config: PredictConfig) -> int:
    """Memory of the logits that windows still reach; see `fedvox.inference.sliding_window`."""
    _, height, width = grid.padded_size
    return num_classes * grid.patch_size[0] * height * width * logits_dtype(config).itemsize


def accumulation_device(config: PredictConfig, device: torch.device, num_bytes: int) -> torch.device:
    """Where logits are summed: on the device while they leave room for the network."""
    if device.type == "cpu" or config.accumulate_on == "cpu":
        return torch.device("cpu")
    if config.accumulate_on == "device":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if num_bytes <= _SHARE_FOR_LOGITS * free else torch.device("cpu")


@contextlib.contextmanager
def explained_memory_errors(
    case_id: str, grids: Sequence[WindowGrid], num_classes: int, config: PredictConfig
) -> Iterator[None]:
    """Turns "out of memory" into an error that says which knob to turn, by how much.

    Args:
        case_id: for the message.
        grids: the windows of each model.
        num_classes: K.
        config: the knobs as they are.

    Raises:
        RunError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        need = sum(band_bytes(grid, num_classes, config) for grid in grids) / GIB
        patch = grids[0].patch_size
        where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "main memory"
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise RunError(
            f"case {case_id}: {where} is too small for windows of {'×'.join(map(str, patch))} voxels, {num_classes} "
            f"classes: the logits alone take {need:.1f} GiB ({said})",
            " or ".join(_knobs(config, need, on_gpu=where == "the GPU")) + ".",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or of Python says that memory ran out, on a GPU or not."""
    is_plain = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_plain or any(text in str(error) for text in _OUT_OF_MEMORY)


def _knobs(config: PredictConfig, need_gib: float, *, on_gpu: bool) -> Iterator[str]:
    if config.batch_size > 1:
        yield f"Lower --batch-size (now {config.batch_size})"
    if on_gpu and config.accumulate_on != "cpu":
        yield f"sum the logits in main memory ({need_gib:.1f} GiB): --set accumulate_on=cpu"
    if config.logits == "float32":
        yield f"halve the logits (to {need_gib / 2:.1f} GiB): --set logits=float16"
    yield "give smaller windows: --patch-size"
    if not on_gpu and config.workers not in (0, 1):
        yield f"predict fewer cases at a time: --workers (now {config.workers})"
