"""The group of workers that a run trains on, with or without a process group."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This worker's place among the workers.

    Attributes:
        rank: 0-based number of this worker.
        size: number of workers.
        device: where this worker computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the workers, on this worker's device; every worker must call it."""
        values = values.to(self.device, copy=True)
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def merge(self, mine: dict[str, str]) -> dict[str, str]:
        """The union of all workers' dictionaries; every worker must call it."""
        if self.size == 1:
            return dict(mine)
        gathered: list[dict[str, str]] = [{} for _ in range(self.size)]
        dist.all_gather_object(gathered, mine)
        return {key: value for part in gathered for key, value in part.items()}

    def from_first(self, value: int) -> int:
        """The value that worker 0 gave; every worker must call it."""
        tensor = torch.tensor([value], dtype=torch.int64, device=self.device)
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return int(tensor.item())
