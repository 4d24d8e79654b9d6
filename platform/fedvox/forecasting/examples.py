"""What a forecasting model is given and asked: batches of past scans with their times, and the scan to forecast.

Scans are chronological. A batch may hold patients of different histories: `valid` says which scans there are. Networks
have a fixed number of slots, which are filled from the scans in one of two ways:

    fill_forward    a slot per visit; a missing scan is the one before it, or the first one there is (TFM)
    keep_valid      the last scans that there are; too few are padded by repeating the last (CRONOS)

Either way the last slot is the last scan that there is, and the times travel with the images.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """A batch of B patients with up to T scans each.

    Attributes:
        scans: `(B, T, C, D, H, W)` float32, normalised, chronological; missing ones hold anything finite.
        times: `(B, T)` float32, in the model's unit.
        valid: `(B, T)` bool, at least one a patient.
        target: `(B, C, D, H, W)`, the scan to forecast.
        target_time: `(B,)`.
        truth: `(B, C, D, H, W)` without noise, where it is known; None elsewhere.
        scans_truth: `(B, T, C, D, H, W)`, the scans without noise, where they are known.
        roi: `(B, 1, D, H, W)` bool, a region of interest of the target; None where there is none.
    """

    scans: Tensor
    times: Tensor
    valid: Tensor
    target: Tensor
    target_time: Tensor
    truth: Tensor | None = None
    scans_truth: Tensor | None = None
    roi: Tensor | None = None

    def __len__(self) -> int:
        return int(self.scans.shape[0])

    def to(self, device: torch.device | str) -> Examples:
        """The same batch on a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in moved.items() if value is not None})

    def take(self, rows: Tensor) -> Examples:
        """The patients of these rows, in this order."""
        taken = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value[rows] for name, value in taken.items() if value is not None})


@dataclass(frozen=True)
class Slots:
    """The context of a network: K images a patient, none of them missing.

    Attributes:
        images: `(B, K, C, D, H, W)`; the last one is the last scan that there is.
        times: `(B, K)`, when each was taken.
    """

    images: Tensor
    times: Tensor


def fill_forward(scans: Tensor, times: Tensor, valid: Tensor, slots: int) -> Slots:
    """A slot per visit; gaps are filled with the scan before, leading gaps with the first scan (sparsity filling).

    Args:
        scans: `(B, T, C, D, H, W)`.
        times: `(B, T)`.
        valid: `(B, T)`, at least one a patient.
        slots: K; of more visits, the last K are taken.

    Source: Temporal Flow Matching (arXiv 2508.21580).
    """
    visits = valid.shape[1]
    number = torch.arange(visits, device=valid.device).expand_as(valid)
    before = torch.where(valid, number, -1).cummax(dim=1).values
    first = valid.to(torch.uint8).argmax(dim=1, keepdim=True)
    index = torch.where(before >= 0, before, first)
    if visits >= slots:
        return _gathered(scans, times, index[:, visits - slots :])
    lead = index[:, :1].expand(-1, slots - visits)
    return _gathered(scans, times, torch.cat([lead, index], dim=1))


def keep_valid(scans: Tensor, times: Tensor, valid: Tensor, slots: int) -> Slots:
    """The last K scans that there are; fewer are padded at the end by repeating the last one with its time.

    Args:
        scans: `(B, T, C, D, H, W)`.
        times: `(B, T)`.
        valid: `(B, T)`, at least one a patient.
        slots: K.

    Source: CRONOS (arXiv 2512.16577).
    """
    visits = valid.shape[1]
    number = torch.arange(visits, device=valid.device).expand_as(valid)
    order = torch.where(valid, number, visits + number).argsort(dim=1)  # the valid ones first, in order
    count = valid.sum(dim=1, keepdim=True)
    start = (count - slots).clamp(min=0)
    wanted = torch.minimum(start + torch.arange(slots, device=valid.device), count - 1)
    return _gathered(scans, times, order.gather(1, wanted))


def _gathered(scans: Tensor, times: Tensor, index: Tensor) -> Slots:
    rows = torch.arange(len(scans), device=scans.device)[:, None]
    return Slots(scans[rows, index], times[rows, index])
