"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) for linear layers and convolutions of volumes.

A frozen layer W gets a trained detour: `W x + scale · up(down(x))`, where `down` leads to a few channels and is of
W's own kind, and `up` leads back and starts at zero. So a fresh adapter changes nothing, few numbers take noise,
and `merge_low_rank` folds the detour into W, after which the network is the ordinary one again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedvox.errors import ConfigError


class LowRank(nn.Module):
    """A frozen layer with its detour.

    Args:
        base: `nn.Linear`, or an ungrouped `nn.Conv3d` padded with zeros.
        rank: channels of the detour.
        scale: factor of the detour.
    """

    def __init__(self, base: nn.Linear | nn.Conv3d, rank: int, scale: float = 1.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = scale
        self.down: nn.Linear | nn.Conv3d
        self.up: nn.Linear | nn.Conv3d
        if isinstance(base, nn.Linear):
            self.down = nn.Linear(base.in_features, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)
        else:
            self.down = nn.Conv3d(
                base.in_channels,
                rank,
                base.kernel_size,  # type: ignore[arg-type]  # tuples of three
                base.stride,  # type: ignore[arg-type]
                base.padding,  # type: ignore[arg-type]
                base.dilation,  # type: ignore[arg-type]
                bias=False,
            )
            self.up = nn.Conv3d(rank, base.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)
        self.to(base.weight.device, base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the detour's."""
        out: Tensor = self.base(x) + self.scale * self.up(self.down(x))
        return out

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv3d:
        """The layer itself, with the detour folded into its weight."""
        up = self.up.weight.flatten(1)  # (out, rank)
        change = torch.einsum("or,r...->o...", up, self.down.weight)
        self.base.weight += self.scale * change
        return self.base


def add_low_rank(model: nn.Module, rank: int, *, scale: float = 1.0) -> int:
    """Give every layer inside `model` that can take it a detour, in place.

    Args:
        model: whose layers are replaced; those that a detour of this rank would not make smaller keep as they are.
        rank: at least 1.
        scale: see `LowRank`.

    Returns:
        How many layers have a detour.

    Raises:
        ConfigError: the model has detours already, or no layer can take one of this rank.
    """
    if rank < 1:
        raise ConfigError(f"rank is {rank}", "It must be at least 1.")
    if any(isinstance(module, LowRank) for module in model.modules()):
        raise ConfigError("the model has low-rank adapters already", "Merge them first (merge_low_rank).")
    found = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear | nn.Conv3d) and _fits(layer, rank)
    ]
    if not found:
        raise ConfigError(f"no layer is large enough for adapters of rank {rank}", "Take a smaller rank.")
    for parent, name, layer in found:
        setattr(parent, name, LowRank(layer, rank, scale))
    return len(found)


def merge_low_rank(model: nn.Module) -> None:
    """Fold all detours into their layers, in place; names of parameters are then as before `add_low_rank`."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LowRank):
                setattr(parent, name, layer.merged())


def _fits(layer: nn.Linear | nn.Conv3d, rank: int) -> bool:
    if isinstance(layer, nn.Linear):
        return rank < min(layer.in_features, layer.out_features)
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return plain and rank < min(layer.in_channels, layer.out_channels)
