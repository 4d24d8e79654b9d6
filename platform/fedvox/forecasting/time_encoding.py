"""What the velocity network is told about time.

clock    of every slot by itself: its difference to the target's time, where the flow has carried its time to, the
target's time, and the flow's own time. Slots keep their own features, so that the histories (0, 1, 10)
and (4, 5, 6) look different.
pooled   sinusoids of the carried times, averaged over the slots, as CRONOS was published: ambiguous.
index    the flow's own time only: time in TFM is the position of the slot.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

TimeMode = Literal["clock", "pooled", "index"]
OCTAVES = 5
_RAW = 1 + 2 * OCTAVES


def waves(values: Tensor) -> Tensor:
    """A value with sines and cosines of `OCTAVES` octaves, `(...)` to `(..., 1 + 2 * OCTAVES)`.

    The longest wave is 4 units of `values`: times that are scaled to a range of one stay unambiguous.
    """
    frequencies = math.pi / 2 * 2.0 ** torch.arange(OCTAVES, device=values.device, dtype=values.dtype)
    angles = values[..., None] * frequencies
    return torch.cat([values[..., None], angles.sin(), angles.cos()], dim=-1)


class TimeEncoder(nn.Module):
    """Times of a batch as one vector a patient.

    Args:
        mode: see the module.
        slots: K.
        width: of the vector.
    """

    def __init__(self, mode: TimeMode, slots: int, width: int) -> None:
        super().__init__()
        self.mode = mode
        inputs = {"clock": (2 * slots + 2) * _RAW, "pooled": _RAW, "index": _RAW}[mode]
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, times: Tensor, target_time: Tensor, t: Tensor) -> Tensor:
        """Encode.

        Args:
            times: `(B, K)` of the slots, scaled to a range of about one.
            target_time: `(B,)`, scaled alike.
            t: `(B,)`, the flow's time in [0, 1].

        Returns:
            `(B, width)`.
        """
        if self.mode == "index":
            features = waves(t)
        else:
            carried = carried_times(times, target_time, t)
            if self.mode == "pooled":
                features = waves(carried).mean(dim=1)
            else:
                whole = torch.stack([target_time, t], dim=1)
                features = waves(torch.cat([times - target_time[:, None], carried, whole], dim=1)).flatten(1)
        encoded: Tensor = self.layers(features)
        return encoded


def carried_times(times: Tensor, target_time: Tensor, t: Tensor) -> Tensor:
    """Where the flow has carried each slot's own time at flow time t: `(1 - t) tau_i + t tau_target`, `(B, K)`."""
    return (1 - t)[:, None] * times + (t * target_time)[:, None]
