"""A bounded, deterministic sample of where each structure lies, for foreground oversampling."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from fedvox.data.brick_index import to_stream
from fedvox.data.ignore import ignore_value, is_foreground

Array = np.ndarray[Any, Any]

PER_STRUCTURE = 512


def draw_foreground(label: Array, *, key: str, limit: int = PER_STRUCTURE) -> dict[int, Array]:
    """Up to `limit` voxels of each structure, drawn without replacement.

    Args:
        label: canonical structure indices, (D, H, W).
        key: what the draw depends on besides the label (the case id), so that it is the same on every
            machine.
        limit: voxels kept of each structure; all of them where there are fewer.

    Returns:
        Structure index -> sorted voxel coordinates (n, 3) as (z, y, x), int32. Background and voxels to
        ignore are left out.
    """
    counts = {structure: count for structure, count in count_structures(label).items() if structure}
    ranks = {structure: _draw(counts[structure], key, structure, limit) for structure in counts}
    points: dict[int, list[Array]] = {structure: [] for structure in counts}
    seen = dict.fromkeys(counts, 0)
    for depth, plane in enumerate(label):  # plane by plane: indices take eight times the memory of the label
        for structure, members in _members(plane):
            low, high = np.searchsorted(ranks[structure], (seen[structure], seen[structure] + members.size))
            chosen = members[ranks[structure][low:high] - seen[structure]]
            seen[structure] += members.size
            rows, columns = np.divmod(chosen, plane.shape[1])
            points[structure].append(np.stack([np.full_like(rows, depth), rows, columns], axis=1))
    return {structure: np.concatenate(found).astype(np.int32) for structure, found in points.items()}


def count_structures(label: Array) -> dict[int, int]:
    """Voxels of each structure that occurs, background included, voxels to ignore left out; ascending.

    Args:
        label: canonical structure indices, (D, H, W).
    """
    counts = np.zeros(int(label.max()) + 1, np.int64)
    for plane in label:  # bincount takes eight bytes a voxel
        counts += np.bincount(plane.reshape(-1), minlength=counts.size)
    return {int(s): int(counts[s]) for s in np.flatnonzero(counts) if s != ignore_value(label.dtype)}


def _draw(count: int, key: str, structure: int, limit: int) -> Array:
    """Which of a structure's voxels, counted in memory order, are kept: ascending."""
    if count <= limit:
        return np.arange(count)
    rng = np.random.Generator(np.random.Philox(key=[zlib.crc32(key.encode()), structure]))
    return np.sort(rng.choice(count, limit, replace=False))


def _members(plane: Array) -> Iterator[tuple[int, Array]]:
    """Each structure of a plane with the flat indices of its voxels, ascending."""
    flat = plane.reshape(-1)
    where = np.flatnonzero(is_foreground(flat))
    order = np.argsort(flat[where], kind="stable")
    where = where[order]
    structures, begins = np.unique(flat[where], return_index=True)
    yield from zip(structures.tolist(), np.split(where, begins[1:]), strict=False)


def encode_foreground(sample: dict[int, Array], shape: tuple[int, ...]) -> bytes:
    """The sample as an Arrow IPC stream: `structure`, and the `step` from one flat index to the next."""
    flat = {s: np.ravel_multi_index(tuple(points.T), shape) for s, points in sample.items()}
    structure = np.concatenate(
        [np.full(f.size, s, np.uint16) for s, f in flat.items()] or [np.zeros(0, np.uint16)]
    )
    step = np.concatenate([np.diff(f, prepend=0) for f in flat.values()] or [np.zeros(0, np.int64)])
    return to_stream(pa.table({"structure": structure, "step": step.astype(np.uint32)}))


def decode_foreground(data: bytes, shape: tuple[int, ...]) -> dict[int, Array]:
    """The inverse of `encode_foreground`."""
    table = pa.ipc.open_stream(data).read_all()
    structure, step = table["structure"].to_numpy(), table["step"].to_numpy().astype(np.int64)
    structures, begins, counts = np.unique(structure, return_index=True, return_counts=True)
    return {
        int(s): np.stack(np.unravel_index(np.cumsum(step[begin:end]), shape), axis=1).astype(np.int32)
        for s, begin, end in zip(structures, begins, begins + counts, strict=True)
    }
