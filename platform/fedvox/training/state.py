"""Model and optimiser state as named tensors, and back.

Names do not depend on the order of the optimiser's parameter groups, nor on a DDP wrapper, so that a
checkpoint fits a run with another number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fedvox.errors import CheckpointError


def state_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Model and optimiser state as one flat dictionary of tensors by parameter name.

    Model entries are called `model/NAME`, optimiser entries `optimizer/NAME/STATE`, whatever the order of the
    optimiser's groups. A DDP wrapper is looked through.
    """
    inner = _bare(model)
    tensors = {f"model/{name}": value for name, value in inner.state_dict().items()}
    names = {id(parameter): name for name, parameter in inner.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if value is None:  # SGD before its first momentum buffer
                continue
            tensors[f"optimizer/{names[id(parameter)]}/{key}"] = torch.as_tensor(value)
    return tensors


def restore(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, tensors: Mapping[str, Tensor]
) -> None:
    """Puts the tensors of `state_tensors` back in place.

    Raises:
        CheckpointError: the model's tensors differ in name or shape; the first few differences are listed.
    """
    inner = _bare(model)
    weights = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    check_fits(inner, weights)
    inner.load_state_dict(weights)
    if optimizer is None:
        return
    parameters = dict(inner.named_parameters())
    optimizer.state.clear()
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            owner, key = name.removeprefix("optimizer/").rsplit("/", 1)
            parameter = parameters[owner]
            on_cpu = key == "step"  # AdamW keeps its step counter on the CPU unless fused
            fused = any(group.get("fused") for group in optimizer.param_groups)
            device = "cpu" if on_cpu and not fused else parameter.device
            optimizer.state[parameter][key] = value.to(device, copy=True)


def _bare(model: torch.nn.Module) -> torch.nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def check_fits(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Compares weights with a model by name and shape.

    Raises:
        CheckpointError: they differ; the message lists what is missing, unexpected or of another shape.
    """
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    if expected == found:
        return
    problems = [f"missing {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {name}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {found[name]}, expected {expected[name]}"
        for name in expected.keys() & found.keys()
        if expected[name] != found[name]
    ]
    raise CheckpointError(
        f"the checkpoint is of another architecture, {len(problems)} differences: "
        + "; ".join(sorted(problems)[:5]),
        "Use the model section of the configuration that wrote the checkpoint, or another run name to start afresh.",
    )
