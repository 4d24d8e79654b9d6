"""Which patches fit into a memory, and what a process has used at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedvox.errors import ConfigError
from fedvox.restoration.config import Size3
from fedvox.restoration.prior import DiffusionPrior
from fedvox.restoration.tiling import Coverage

MIB = 2**20
_COPIES = 9.5
"""Feature maps of the finest level that are alive at once when most are; measured, see docs/restoration.md."""
_IMAGES = 8
"""Copies of the image that a solver holds beside the network: iterate, spectrum, noise, sums."""


def peak_mib(*, reset: bool = False) -> float:
    """The most memory that this process has had resident, in MiB (Linux).

    Args:
        reset: forget the past: the peak is then what is resident now.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status tells no VmHWM")


def network_bytes(prior: DiffusionPrior, edges: Sequence[int]) -> int:
    """Bytes of the activations of one patch with these edges, at their peak."""
    network = prior.network
    widths = [block[0].conv_in.out_channels for block in network.encoder]  # type: ignore[index]
    voxels = math.prod(edges[1:] if prior.flat else edges) / network.unshuffle**network.dims
    kept = sum(w / 2 ** (network.dims * level) for level, w in enumerate(widths))
    return int(4 * voxels * (kept + _COPIES * widths[0]))


@dataclass(frozen=True)
class Fit:
    """A choice for a memory budget.

    Attributes:
        coverage: with patch size and batch filled in.
        mib: what it is expected to take on top of the process.
    """

    coverage: Coverage
    mib: float


def fit_budget(prior: DiffusionPrior, size: Sequence[int], coverage: Coverage, budget_mib: float) -> Fit:
    """Fills in the largest batch, and if need be a smaller patch, that a budget allows.

    Args:
        prior: the network.
        size: (D, H, W) of the image.
        coverage: mode and halo as wanted; a patch size that is given is kept.
        budget_mib: for the activations and the images of a solver.

    Raises:
        ConfigError: not even one patch of the smallest useful size fits; the message says what would.
    """
    images = _IMAGES * 4 * math.prod(size)
    if coverage.mode == "whole":
        needed = (network_bytes(prior, size) + images) / MIB
        if needed > budget_mib:
            raise ConfigError(
                f"a whole image of {tuple(size)} takes some {needed:.0f} MiB, the budget is {budget_mib:g} MiB",
                "Use --coverage random, or a larger --memory-mib.",
            )
        return Fit(replace(coverage, batch=1), needed)
    edge = prior.divisor[1]
    candidates = [coverage.patch_size] if coverage.patch_size else _shrinking(prior, edge)
    margin = -(-coverage.halo // edge) * edge
    smallest = math.inf
    for patch in candidates:
        read = [n + (0 if prior.flat and axis == 0 else 2 * margin) for axis, n in enumerate(patch)]
        one = network_bytes(prior, read)
        smallest = min(smallest, (one + images) / MIB)
        batch = int((budget_mib * MIB - images) // one)
        if batch >= 1:
            batch = min(batch, 32)
            return Fit(replace(coverage, patch_size=patch, batch=batch), (batch * one + images) / MIB)
    raise ConfigError(
        f"a budget of {budget_mib:g} MiB holds no patch of this prior on an image of {tuple(size)}",
        f"Give at least {math.ceil(smallest)} MiB (--memory-mib).",
    )


def _shrinking(prior: DiffusionPrior, edge: int) -> list[Size3]:
    """The patch of training (at most 128 wide), then smaller ones down to 16."""
    found: list[Size3] = []
    depth, height, width = prior.patch_size
    for share in (1.0, 0.75, 0.5, 0.375, 0.25):
        sizes = [max(edge, int(min(n, 128) * share) // edge * edge) for n in (depth, height, width)]
        if min(sizes[1:]) >= 16 or not found:
            found.append((depth if prior.flat else sizes[0], sizes[1], sizes[2]))
    return found
