"""The velocity network: from context images, their times and the state of the flow to a velocity per slot.

It predicts velocities in units of their own root mean square over the training data (`velocity_scale`). Without that
they are so small that a network which is right in form stays at "no change" for ever.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fedvox.errors import ConfigError
from fedvox.forecasting.backbone_body import BackboneBody
from fedvox.forecasting.config import FlowSection, NetworkSection
from fedvox.forecasting.time_encoding import TimeEncoder, TimeMode
from fedvox.forecasting.unet import TimedUNet


class VelocityNetwork(nn.Module):
    """Velocities `(B, K, C, D, H, W)` of K context images with C channels; all zero at first.

    Args:
        flow: slots, times, conditioning.
        network: architecture.
        channels: C.

    Attributes:
        velocity_scale: `()`, root mean square of the velocities in training.
        time_scale: `()`, the range of times in training, which becomes about one.
    """

    velocity_scale: Tensor
    time_scale: Tensor

    def __init__(self, flow: FlowSection, network: NetworkSection, channels: int = 1) -> None:
        super().__init__()
        self.slots, self.channels = flow.slots, channels
        self.condition = flow.condition_on_source
        self.grid_step = flow.grid_step if flow.method == "cronos" and flow.times == "grid" else None
        self.encoder = TimeEncoder(_mode(flow), flow.slots, network.embedding)
        outputs = flow.slots * channels
        inputs = outputs * (2 if flow.condition_on_source else 1)
        self.body: TimedUNet | BackboneBody
        if network.backbone is None:
            self.body = TimedUNet(
                inputs, outputs, widths=network.widths, blocks=network.blocks, patch=network.patch,
                embedding=network.embedding, recompute=network.recompute_activations,
            )  # fmt: skip
        else:
            self.body = BackboneBody(network, inputs, outputs)
        self.register_buffer("velocity_scale", torch.ones(()))
        self.register_buffer("time_scale", torch.ones(()))

    @property
    def divisor(self) -> tuple[int, int, int]:
        """What each edge (D, H, W) of a volume must be a multiple of."""
        divisor = self.body.divisor
        return (divisor,) * 3 if isinstance(divisor, int) else divisor

    def forward(self, state: Tensor, source: Tensor, times: Tensor, target_time: Tensor, t: Tensor) -> Tensor:
        """Velocities in units of `velocity_scale`.

        Args:
            state: `(B, K, C, D, H, W)`, where the flow is.
            source: of the same shape, where it began: the context images.
            times: `(B, K)` of the context images.
            target_time: `(B,)`.
            t: `(B,)`, the flow's time in [0, 1].

        Raises:
            ConfigError: another number of slots or channels, or edges that `divisor` does not divide.
        """
        self._check(state)
        flat = state.flatten(1, 2)
        if self.condition:
            flat = torch.cat([flat, source.flatten(1, 2)], dim=1)
        embedding = self.encoder(self._scaled(times), self._scaled(target_time), t)
        out = cast(Tensor, self.body(flat, embedding))
        return out.reshape(state.shape)

    def _scaled(self, times: Tensor) -> Tensor:
        if self.grid_step is not None:
            times = torch.round(times / self.grid_step) * self.grid_step
        return times / self.time_scale

    def _check(self, state: Tensor) -> None:
        if tuple(state.shape[1:3]) != (self.slots, self.channels):
            raise ConfigError(
                f"the network takes {self.slots} slots of {self.channels} channels, got {tuple(state.shape[1:3])}",
                "Set flow.slots, and give images with as many channels as the model was trained on.",
            )
        if any(n % d for n, d in zip(state.shape[3:], self.divisor, strict=True)):
            raise ConfigError(
                f"volumes of {tuple(state.shape[3:])} voxels are not divisible by {self.divisor}",
                "Pad or crop them, or set data.patch_size to a multiple.",
            )


def _mode(flow: FlowSection) -> TimeMode:
    if flow.method == "tfm":
        return "index"
    return "pooled" if flow.times == "pooled" else "clock"
