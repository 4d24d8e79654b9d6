"""What a simulation of patients is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Render = Callable[[Tensor, Tensor, int], Tensor]
"""`(subjects (B, P + 1), moments (B, N), size) -> volumes (B, N, size, size, size)` between 0 and 1."""


@dataclass(frozen=True)
class Simulation:
    """A way in which patients change.

    Attributes:
        name: of the simulation.
        unit: of its times.
        duration: length of a whole history in this unit.
        parameters: P, numbers in [0, 1) that describe a patient; one more, 0 or 1, says whether it changes.
        render: the volumes of patients at moments.
        volume: the size of what changes in volumes like those of `render`, `(…,)` voxels.
    """

    name: str
    unit: str
    duration: float
    parameters: int
    render: Render
    volume: Callable[[Tensor], Tensor]


def between(uniform: Tensor, low: float, high: float) -> Tensor:
    """Numbers in [0, 1) spread from `low` to `high`."""
    return low + (high - low) * uniform


def bright_volume(low: float, high: float) -> Callable[[Tensor], Tensor]:
    """The volume of what is brighter than its surroundings, partial voxels counted in part.

    Args:
        low: brightness that counts nothing.
        high: brightness that counts a whole voxel.
    """

    def volume(volumes: Tensor) -> Tensor:
        return ((volumes - low) / (high - low)).clamp(0, 1).sum(dim=(-3, -2, -1))

    return volume
