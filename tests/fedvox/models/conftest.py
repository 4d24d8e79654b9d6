"""Published parameter counts, reference activations, and one thread for all of it."""

import importlib
import json
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def _one_thread_and_a_fixed_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def reference() -> dict[str, Any]:
    """Float64 activations of the original code on formula-made weights and inputs."""
    return json.loads((DATA / "ref_vectors.json").read_text())


@pytest.fixture(scope="session")
def fill() -> Callable[[nn.Module, list[tuple[str, list[int]]], dict[str, str]], None]:
    """Set a module's parameters by the reference's formula, which is keyed on the original parameter names."""

    def fill_module(module: nn.Module, originals: list[tuple[str, list[int]]], ours: dict[str, str]) -> None:
        parameters = dict(module.named_parameters())
        for name, shape in originals:
            count = torch.Size(shape).numel()
            phase = 1 + zlib.crc32(name.encode()) % 97
            values = 0.2 * torch.sin(phase + 0.7 * torch.arange(count, dtype=torch.float64)).reshape(shape)
            if "norm" in name and name.endswith("weight"):
                values = values + 1
            target = parameters.pop(ours[name])
            target.data.copy_(values.reshape(target.shape))
        assert not parameters, f"no reference for {sorted(parameters)}"

    return fill_module


@pytest.fixture(scope="session")
def formula_input() -> Callable[[list[int]], Tensor]:
    def make(shape: list[int]) -> Tensor:
        i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        return (torch.cos(0.37 * i) + 0.1 * torch.sin(0.011 * i)).reshape(shape)

    return make


@pytest.fixture(scope="session")
def assert_activation() -> Callable[[Tensor, dict[str, Any]], None]:
    """Compare shape, moments and both ends of a tensor with a reference entry."""

    def check(out: Tensor, expected: dict[str, Any]) -> None:
        assert list(out.shape) == expected["shape"]
        flat = out.detach().double().flatten()
        ends = torch.cat([flat[:8], flat[-8:]])
        torch.testing.assert_close(
            ends,
            torch.tensor(expected["first8"] + expected["last8"], dtype=torch.float64),
            rtol=1e-10,
            atol=1e-12,
        )
        moments = torch.stack([flat.mean(), flat.abs().max()])
        torch.testing.assert_close(
            moments,
            torch.tensor([expected["mean"], expected["absmax"]], dtype=torch.float64),
            rtol=1e-10,
            atol=1e-12,
        )

    return check


@pytest.fixture(scope="session")
def primus_peer() -> Any:
    """The original code of Primus. It imports timm, timm imports torchvision, whose operators a CPU build may lack.

    Each operator that torchvision asks for is declared here, and never called.
    """
    while missing := _missing_torchvision_operator():
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(f"{missing}(Tensor unused) -> Tensor")
        _LIBRARIES.append(library)  # an operator lives as long as its library
    return importlib.import_module("dynamic_network_architectures.architectures.primus")


_LIBRARIES: list[torch.library.Library] = []


def _missing_torchvision_operator() -> str | None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        found = re.search(r"operator torchvision::(\w+) does not exist", str(error))
        if found is None or len(_LIBRARIES) > 20:
            raise
        for name in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return found[1]
    return None
