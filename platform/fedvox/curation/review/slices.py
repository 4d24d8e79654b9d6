"""Planes of images and label maps, as the bytes of one array."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from fedvox.curation.store import LabelStore, Version
from fedvox.data.bricks import CaseReader
from fedvox.errors import DataError
from fedvox.storage import exists

Array = np.ndarray[Any, Any]

KEPT_BYTES = 512 << 20
_SENT = ("uint8", "int8", "uint16", "int16", "float32")


class Slices:
    """Reads planes; label maps that were read lately stay in memory.

    Args:
        store: where images and masks are.
        kept_bytes: of label maps in memory.
    """

    def __init__(self, store: LabelStore, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._store = store
        self._kept_bytes = kept_bytes
        self._masks: OrderedDict[str, Array] = OrderedDict()
        self._lock = threading.Lock()

    def image(self, case_id: str, axis: int, index: int) -> Array:
        """A plane of an image's first channel, (rows, columns), in a type that a browser has.

        Args:
            case_id: whose.
            axis: 0 axial, 1 coronal, 2 sagittal.
            index: along it.

        Raises:
            DataError: unknown_case or no_such_plane.
            DamagedCase: the image fails its checksum.
        """
        plane = _plane(self._store.images.reader(case_id), axis, index, 0)
        return plane if plane.dtype.name in _SENT else plane.astype(np.float32)

    def labels(self, version: Version, axis: int, index: int) -> Array:
        """A plane of a label map, (rows, columns), uint8 or uint16.

        Raises:
            DataError: no_such_plane.
            DamagedCase: the mask fails its checksum.
        """
        mask = self.mask(version)
        _check_plane(mask.shape, axis, index)
        return np.ascontiguousarray(np.take(mask, index, axis=axis))

    def mask(self, version: Version) -> Array:
        """The label map of a version, (D, H, W); read once, as long as there is room."""
        name = version.mask_sha256
        with self._lock:
            found = self._masks.get(name)
            if found is not None:
                self._masks.move_to_end(name)
                return found
        read = self._store.read_mask(version)
        with self._lock:
            self._masks[name] = read
            while len(self._masks) > 1 and sum(m.nbytes for m in self._masks.values()) > self._kept_bytes:
                self._masks.popitem(last=False)
        return read

    def maps(self, case_id: str) -> tuple[str, ...]:
        """Names of the attention maps that the newest round with any has of a case; none where there are none."""
        reader = self._map_reader(case_id)
        return () if reader is None else reader.header.channel_names

    def attention(self, case_id: str, name: str, axis: int, index: int) -> Array:
        """A plane of an attention map, (rows, columns) uint8: 0 where the proposers agree, 255 at the most.

        Raises:
            DataError: no_such_plane.
        """
        reader = self._map_reader(case_id)
        if reader is None or name not in reader.header.channel_names:
            raise DataError(f"case {case_id!r} has no map {name!r}", "Reload the page.", code="no_such_plane")
        return _plane(reader, axis, index, reader.header.channel_names.index(name))

    def _map_reader(self, case_id: str) -> CaseReader | None:
        for number in range(self._store.rounds.current, 0, -1):
            file = self._store.round_folder(number).child("maps", f"{case_id}.arrow")
            if exists(file):
                return CaseReader.open(file)
        return None

    def window(self, case_id: str) -> tuple[float, float, float, float]:
        """Gray values of a case's middle planes: the 1st and 99th percentile, the smallest and the largest."""
        shape = self._store.images.reader(case_id).shape
        values = np.concatenate([self.image(case_id, axis, shape[axis] // 2).ravel() for axis in range(3)])
        low, high = np.percentile(values, (1, 99))
        return float(low), float(high), float(values.min()), float(values.max())


def _plane(reader: CaseReader, axis: int, index: int, channel: int) -> Array:
    _check_plane(reader.shape, axis, index)
    start, size = [0, 0, 0], list(reader.shape)
    start[axis], size[axis] = index, 1
    return np.ascontiguousarray(np.squeeze(reader.read_patch(start, size)[0][channel], axis=axis))


def _check_plane(shape: tuple[int, ...], axis: int, index: int) -> None:
    if not 0 <= axis < 3 or not 0 <= index < shape[axis]:
        raise DataError(
            f"there is no plane {index} along axis {axis}", "Reload the page.", code="no_such_plane"
        )
