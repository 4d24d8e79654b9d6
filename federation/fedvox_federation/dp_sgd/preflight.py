"""Is clipping a bound here? Checks a model, a loss and a mode before a patient's data is touched.

DP-SGD rests on one thing: that each patient's gradient is known exactly, apart from everybody else's. The check
takes made-up images, and tests just that: does the loss of two patients fall apart into the losses of each? Does a
pass write anything into the model, or change what the next patient's gradient is? And, in mode `hooks`, are the
per-sample gradients of every layer those that a loop over samples finds?

Known here: with padding other than zeros, Opacus's hooks on convolutions give wrong gradients, and its ghost clipping
lets one patient contribute more than the bound, while its own validator passes the network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedvox_federation.dp_sgd.training import (
    Loss,
    Mode,
    Tensors,
    backward_per_sample,
    grad_sample,
    per_sample,
)
from fedvox_federation.errors import UnsafeModel

_DROPPING_PATHS = ("DropPath", "StochasticDepth")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TOLERANCE = 1e-3
"""Largest difference of per-sample gradients, relative to a model's largest gradient (float32)."""
REPEATED = 1e-5
"""The same for the gradient of one sample, computed twice: some GPU kernels add in any order."""


@dataclass(frozen=True)
class Finding:
    """One reason against training.

    Attributes:
        where: a layer's or parameter's name, or `loss`.
        problem: what is wrong.
        remedy: what to change.
    """

    where: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class PreflightReport:
    """What `preflight` found.

    Attributes:
        mode: that was checked.
        trained: number of trained parameters (scalars).
        findings: empty if it is safe.
        errors: trained parameter -> difference of its per-sample gradients from a loop's, relative to the
            model's largest gradient; empty in mode `loop`.
    """

    mode: Mode
    trained: int
    findings: tuple[Finding, ...]
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def safe(self) -> bool:
        """Whether training may start."""
        return not self.findings

    def require(self) -> None:
        """Stop unless it is safe.

        Raises:
            UnsafeModel: with every finding.
        """
        if self.findings:
            told = "\n  ".join(f"{one.where}: {one.problem} ({one.remedy})" for one in self.findings)
            raise UnsafeModel(
                f"not safe for private training in mode {self.mode}:\n  {told}", "Change these."
            )


def preflight(model: nn.Module, loss: Loss, example: Tensors, *, mode: Mode = "loop") -> PreflightReport:
    """Check a model as it will be trained.

    Args:
        model: with `requires_grad` as in training; it is copied, not changed.
        loss: see `fedvox_federation.dp_sgd.training`.
        example: made-up tensors of at least two different samples, never patients'.
        mode: of the training.
    """
    model = copy.deepcopy(model).train()
    _without_chance(model)
    findings = [*_layers(model, mode)]
    errors: dict[str, float] = {}
    if not findings:  # what is known to be wrong need not be measured, and may not even run
        before = {n: value.clone() for n, value in [*model.named_parameters(), *model.named_buffers()]}
        expected = [_gradients(model, loss, _sample(example, i)) for i in range(example[0].shape[0])]
        again = _gradients(model, loss, _sample(example, 0))
        findings += _written(model, before)
        findings += _unused(expected)
        if not findings:
            findings += _remembered(expected, again)
        if not findings:
            findings += _together(model, loss, example, expected)
        if mode == "hooks" and not findings:
            errors, wrong = _hooks(model, loss, example, expected)
            findings += wrong
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return PreflightReport(mode, trained, tuple(findings), errors)


def _layers(model: nn.Module, mode: Mode) -> Iterator[Finding]:
    """What can be told from the kind of a layer."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield Finding(
                name,
                f"{type(module).__name__} mixes the patients of a batch",
                "use group or instance normalisation",
            )
        elif isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
            yield Finding(name, "keeps statistics of patients", "set track_running_stats=False")
        elif mode == "hooks":
            yield from _layer_under_hooks(name, module)


def _layer_under_hooks(name: str, module: nn.Module) -> Iterator[Finding]:
    if isinstance(module, _CONVOLUTIONS) and module.padding_mode != "zeros" and _is_trained(module):
        yield Finding(
            name,
            f"{module.padding_mode} padding has wrong per-sample gradients",
            "pad with zeros, or use loop",
        )
    if getattr(module, "inplace", False):
        yield Finding(
            name, "overwrites what hooks still need", "set inplace=False (and x = x + y, not x += y)"
        )
    own = any(p.requires_grad for p in module.parameters(recurse=False))
    if own and next(module.buffers(recurse=False), None) is not None:
        yield Finding(
            name, "has parameters and buffers of its own, which hooks cannot take", "freeze it, or use loop"
        )


def _is_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))


def _written(model: nn.Module, before: Mapping[str, Tensor]) -> Iterator[Finding]:
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name not in before or not torch.equal(before[name], value):
            yield Finding(name, "is written in the forward pass: data leaves unclipped", "freeze the buffer")


def _remembered(
    expected: list[dict[str, Tensor | None]], again: dict[str, Tensor | None]
) -> Iterator[Finding]:
    """The same sample must have the same gradient after others, wherever a model or a loss might keep something."""
    scale = _largest(expected)
    for name, first in expected[0].items():
        second = again[name]
        if first is None or second is None:
            same = first is second
        else:
            same = float((first - second).abs().max()) / scale <= REPEATED
        if not same:
            yield Finding(
                "loss",
                f"of a sample is another after other samples were seen (gradients of {name})",
                "keep nothing between patients, and draw by chance in dropout layers alone",
            )
            return


def _unused(expected: list[dict[str, Tensor | None]]) -> Iterator[Finding]:
    for name in expected[0]:
        if all(gradients[name] is None for gradients in expected):
            yield Finding(name, "takes no part in the loss, so that it gets nothing but noise", "freeze it")


def _together(
    model: nn.Module, loss: Loss, example: Tensors, expected: list[dict[str, Tensor | None]]
) -> Iterator[Finding]:
    """The gradient of a batch must be the mean of its samples' gradients: batch norm, batch Dice and MixUp fail."""
    together = _gradients(model, loss, example)
    scale = _largest(expected)
    for name, found in together.items():
        parts = [part for one in expected if (part := one[name]) is not None]
        nothing = torch.zeros(())
        apart = torch.stack(parts).sum(0) / len(expected) if parts else nothing
        difference = float(((nothing if found is None else found) - apart).abs().max()) / scale
        if not difference <= TOLERANCE:
            yield Finding(
                "loss",
                f"of a batch is not the mean of its samples' (gradients of {name} differ by {difference:.2g} of "
                "the largest)",
                "take the loss per sample: no batch Dice, no batch norm, no mean over a batch's voxels",
            )
            return


def _hooks(
    model: nn.Module, loss: Loss, example: Tensors, expected: list[dict[str, Tensor | None]]
) -> tuple[dict[str, float], list[Finding]]:
    """Per-sample gradients by hooks against those of the loop, parameter by parameter."""
    for parameter in model.parameters():
        parameter.grad = None
    try:
        wrapped = per_sample(model)
        backward_per_sample(loss(wrapped, example) * example[0].shape[0])
        found = {n: grad_sample(p) for n, p in model.named_parameters() if p.requires_grad}
    except Exception as error:  # noqa: BLE001 - whatever a layer raises under hooks, it must not be trained so
        return {}, [Finding("model", f"does not run under hooks: {error}", "use mode loop")]
    scale = _largest(expected)
    errors = {
        name: max(
            float((samples[i] - truth).abs().max()) / scale
            for i, one in enumerate(expected)
            if (truth := one[name]) is not None
        )
        for name, samples in found.items()
    }
    wrong = [
        Finding(name, f"per-sample gradients are off by {error:.2g} of the largest", "freeze it, or use loop")
        for name, error in errors.items()
        if not error <= TOLERANCE
    ]
    return errors, wrong


def _gradients(model: nn.Module, loss: Loss, tensors: Tensors) -> dict[str, Tensor | None]:
    for parameter in model.parameters():
        parameter.grad = None
    loss(model, tensors).backward()  # type: ignore[no-untyped-call]
    return {
        name: None if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def _largest(expected: list[dict[str, Tensor | None]]) -> float:
    sizes = [float(g.abs().max()) for one in expected for g in one.values() if g is not None]
    return max(sizes, default=0.0) or 1.0


def _sample(example: Tensors, index: int) -> Tensors:
    return tuple(tensor[index : index + 1] for tensor in example)


def _without_chance(model: nn.Module) -> None:
    """Dropout off, so that two passes can be compared; it draws per sample and is safe.

    By kind, not by the beginning of a name: whatever else is called so and does something in training is looked at.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in _DROPPING_PATHS:
            module.eval()
