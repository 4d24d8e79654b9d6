"""Training some parts of a backbone while the others stay what they are."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from fedvox.training.phases import PARTS


class Freezer:
    """Freezes and unfreezes a network's parts.

    A frozen part's parameters need no gradient, so that autograd keeps nothing of it and optimisers pass it by,
    weight decay included. It computes as in evaluation: without drop path. What the network itself keeps from being
    trained (a U-Net's unused coarse heads) stays so.

    Args:
        network: with the attributes `stem`, `encoder`, `decoder`, `heads`; nothing frozen yet.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._trainable = {name for name, p in network.named_parameters() if p.requires_grad}
        self.parts: tuple[str, ...] = PARTS

    def train_only(self, parts: Collection[str]) -> bool:
        """Trains these parts and no others.

        Returns:
            Whether that is a change; a DDP wrapper must then be built anew.
        """
        kept = tuple(part for part in PARTS if part in parts)
        changed = kept != self.parts
        self.parts = kept
        if changed:
            for name, parameter in self._network.named_parameters():
                parameter.requires_grad_(name in self._trainable and name.partition(".")[0] in kept)
                if not parameter.requires_grad:
                    parameter.grad = None
        self.hold()
        return changed

    def hold(self) -> None:
        """Keeps frozen parts in evaluation mode, after anything that may have changed it."""
        for part in PARTS:
            module = getattr(self._network, part, None)
            if isinstance(module, nn.Module) and part not in self.parts and module.training:
                module.eval()
