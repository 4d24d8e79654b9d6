"""Devices that are not there, and memory that runs out: told with the knob."""

from __future__ import annotations

import pytest
import torch

from fedvox.errors import ConfigError, RunError
from fedvox.inference.config import PredictConfig
from fedvox.inference.device import accumulation_device, band_bytes, choose_device, explained_memory_errors
from fedvox.inference.windows import WindowGrid

GRID = WindowGrid.of((300, 256, 256), (128, 128, 128), 0.5)
CPU = torch.device("cpu")


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU


@pytest.mark.parametrize(
    ("name", "gpus", "match"),
    [
        ("cuda", 0, "without CUDA|no GPU can be reached"),
        ("cuda:3", 2, "there are 2 GPUs"),
        ("tpu", 0, "'tpu'"),
        ("meta", 0, "not supported"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch, name, gpus, match):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=match) as error:
        choose_device(name)
    assert error.value.remedy


def test_the_band_of_logits_is_counted_as_it_is_held():
    assert band_bytes(GRID, 168, PredictConfig()) == 168 * 128 * 256 * 256 * 4
    assert band_bytes(GRID, 168, PredictConfig(logits="float16")) == 168 * 128 * 256 * 256 * 2


@pytest.mark.parametrize(("free_gib", "expected"), [(80, "cuda"), (8, "cpu")])
def test_logits_are_summed_on_the_gpu_while_they_leave_room(monkeypatch, free_gib, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_gib * 2**30, 80 * 2**30))
    found = accumulation_device(PredictConfig(), torch.device("cuda"), band_bytes(GRID, 168, PredictConfig()))
    assert found.type == expected
    assert accumulation_device(PredictConfig(accumulate_on="cpu"), torch.device("cuda"), 1) == CPU
    assert (
        accumulation_device(PredictConfig(accumulate_on="device"), torch.device("cuda"), 1 << 40).type
        == "cuda"
    )


@pytest.mark.parametrize(
    ("error", "config", "knobs", "others"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), PredictConfig(batch_size=4),
            ["--batch-size (now 4)", "accumulate_on=cpu", "logits=float16", "--patch-size"], ["--workers"],
        ),
        (
            MemoryError(), PredictConfig(workers=8, logits="float16"), ["--workers (now 8)", "--patch-size"],
            ["--batch-size", "logits=float16", "accumulate_on"],
        ),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"), PredictConfig(),
         ["logits=float16"], ["accumulate_on"]),
    ],
)  # fmt: skip
def test_out_of_memory_says_which_knob_to_turn(error, config, knobs, others):
    with (
        pytest.raises(RunError, match="too small for windows of 128×128×128") as told,
        explained_memory_errors("case7", [GRID], 168, config),
    ):
        raise error
    assert "case7" in told.value.message
    assert all(knob in told.value.remedy for knob in knobs)
    assert not any(knob in told.value.remedy for knob in others)


def test_other_errors_pass_unchanged():
    with (
        pytest.raises(RuntimeError, match="shape mismatch"),
        explained_memory_errors("a", [GRID], 2, PredictConfig()),
    ):
        raise RuntimeError("shape mismatch")
