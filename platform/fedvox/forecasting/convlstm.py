"""The recurrent baseline: a convolutional LSTM that reads the scans in order and predicts the target itself.

Source: Shi et al. 2015, Convolutional LSTM Network, in 3D; the time to the target is an input channel of every scan.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedvox.forecasting.config import FlowSection, NetworkSection
from fedvox.models.voxel_shuffle import to_channels, to_voxels


class ConvLSTM(nn.Module):
    """Takes what `VelocityNetwork` takes, and answers with the velocities that lead to its prediction.

    Args:
        flow: slots.
        network: `widths[0]` channels of state, and the edge of the cubes at the entrance.
        channels: C.

    Attributes:
        velocity_scale: see `VelocityNetwork`.
        time_scale: see `VelocityNetwork`.
    """

    velocity_scale: Tensor
    time_scale: Tensor

    def __init__(self, flow: FlowSection, network: NetworkSection, channels: int = 1) -> None:
        super().__init__()
        self.slots, self.channels, self.patch, width = flow.slots, channels, network.patch, network.widths[0]
        self.width = width
        self.entrance = nn.Conv3d(channels * self.patch**3 + 1, width, 3, padding=1)
        self.gates = nn.Conv3d(2 * width, 4 * width, 3, padding=1)
        self.exit = nn.Sequential(
            nn.Conv3d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv3d(width, channels * self.patch**3, 3, padding=1),
        )
        self.register_buffer("velocity_scale", torch.ones(()))
        self.register_buffer("time_scale", torch.ones(()))

    @property
    def divisor(self) -> tuple[int, int, int]:
        """What each edge (D, H, W) of a volume must be a multiple of."""
        return (self.patch,) * 3

    def forward(self, state: Tensor, source: Tensor, times: Tensor, target_time: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002 - there is no flow
        """Velocities from each context image to the prediction, in units of `velocity_scale`; see `VelocityNetwork`."""
        gap = (target_time[:, None] - times) / self.time_scale
        hidden = cell = None
        for slot in range(self.slots):
            x = to_channels(source[:, slot], self.patch)
            clock = gap[:, slot, None, None, None, None].expand(-1, 1, *x.shape[2:])
            x = torch.tanh(self.entrance(torch.cat([x, clock], dim=1)))
            if hidden is None or cell is None:
                hidden, cell = torch.zeros_like(x), torch.zeros_like(x)
            keep, take, give, new = self.gates(torch.cat([x, hidden], dim=1)).chunk(4, dim=1)
            cell = torch.sigmoid(keep + 1) * cell + torch.sigmoid(take) * torch.tanh(new)
            hidden = torch.sigmoid(give) * torch.tanh(cell)
        predicted = to_voxels(self.exit(hidden), self.patch)
        return (predicted[:, None] - source) / self.velocity_scale
