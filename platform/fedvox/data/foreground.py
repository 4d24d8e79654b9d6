"""A bounded, deterministic sample of where each structure lies, for foreground oversampling."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pyarrow as pa

from fedvox.data.brick_index import to_stream
from fedvox.data.ignore import is_foreground

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
    flat = label.reshape(-1)
    where = np.flatnonzero(is_foreground(flat))
    values = flat[where]
    order = np.argsort(values, kind="stable")
    structures, begins, counts = np.unique(values[order], return_index=True, return_counts=True)
    sample: dict[int, Array] = {}
    for structure, begin, end in zip(structures.tolist(), begins, begins + counts, strict=True):
        members = where[order[begin:end]]
        rng = np.random.Generator(np.random.Philox(key=[zlib.crc32(key.encode()), structure]))
        chosen = members if members.size <= limit else np.sort(rng.choice(members, limit, replace=False))
        sample[structure] = np.stack(np.unravel_index(chosen, label.shape), axis=1).astype(np.int32)
    return sample


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
