"""Which parameters a clinic trains. Fewer parameters take less noise in total, and less time."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from fedvox.errors import ConfigError
from fedvox.models.backbone import Backbone
from fedvox.models.normalization import GlobalResponseNorm
from fedvox_federation.dp_sgd.low_rank import add_low_rank

Scope = Literal["full", "decoder", "norm+head", "lora"]

_NORMS = (nn.GroupNorm, nn.LayerNorm, GlobalResponseNorm)


def select_trainable(model: Backbone, scope: Scope, *, rank: int = 4) -> list[nn.Parameter]:
    """Freeze everything but a scope, in place.

    Args:
        model: a backbone.
        scope: `full`; `decoder` (with the heads); `norm+head` (every normalisation's scale and shift, and the
            heads); or `lora` (low-rank adapters in encoder and decoder, which are added, and the heads). Heads of
            coarse levels are trained only if the model returns their outputs: what takes no part in the loss would
            get noise and nothing else.
        rank: of the adapters.

    Returns:
        The trainable parameters, for the optimizer.

    Raises:
        ConfigError: no such scope, or adapters that do not fit.
    """
    if scope not in get_args(Scope):
        raise ConfigError(f"there is no scope {scope!r}", f"Use one of {', '.join(get_args(Scope))}.")
    model.requires_grad_(False)
    if scope == "full":
        model.requires_grad_(True)
    elif scope == "decoder":
        model.decoder.requires_grad_(True)
    elif scope == "lora":
        add_low_rank(nn.ModuleList([model.encoder, model.decoder]), rank)
    else:
        for module in model.modules():
            if isinstance(module, _NORMS):
                module.requires_grad_(True)
    model.heads.requires_grad_(True)
    if not model.deep_supervision:
        model.heads[1:].requires_grad_(False)
    return [p for p in model.parameters() if p.requires_grad]


def norm_parameters(model: nn.Module) -> tuple[str, ...]:
    """Names of every normalisation's trainable scale and shift: what a clinic keeps to itself in FedBN."""
    return tuple(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _NORMS)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    )
