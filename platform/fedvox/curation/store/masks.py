"""Masks as content-addressed case files, in the codec and format of the brick store.

A mask's name is the SHA-256 of what it says (geometry and voxels), not of how it was compressed: the same mask
is stored once, and a name that is there already needs no second write.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedvox.curation.store.records import Case
from fedvox.data.bricks import CaseHeader, CaseReader, write_case
from fedvox.data.ignore import ignore_value, label_dtype
from fedvox.errors import DamagedCase, DataError
from fedvox.storage import Location, delete, exists, list_files, upload_file

Array = np.ndarray[Any, Any]


class MaskFiles:
    """The masks of a label store.

    Args:
        location: of their folder.
        structures: canonical names, background first.
    """

    def __init__(self, location: Location, structures: tuple[str, ...]) -> None:
        self.location = location
        self._structures = structures
        self._dtype = label_dtype(len(structures))

    def write(self, case: Case, mask: Array) -> str:
        """Store a mask; returns when it is on the disk.

        Args:
            case: whose mask it is.
            mask: canonical structure indices, (D, H, W), any integer dtype.

        Returns:
            The SHA-256 of its content.

        Raises:
            DataError: shape_mismatch, not_integer or unknown_label.
            StorageError: no space, or forbidden.
        """
        checked = np.ascontiguousarray(self._checked(case, mask))
        digest = _digest(case, checked)
        target = self._file(digest)
        if target.is_local and exists(target):
            os.utime(target.local_path)  # in use again: no garbage for another while
        else:
            self._write(target, case, checked, digest)
        return digest

    def require(self, sha256: str) -> None:
        """Make sure that a mask is there.

        Raises:
            DataError: unknown_mask.
        """
        if not exists(self._file(sha256)):
            raise DataError(
                f"the mask {sha256} is not in the store",
                "Write it again (`write_mask`).",
                code="unknown_mask",
            )

    def read(self, sha256: str) -> Array:
        """A mask, (D, H, W).

        Raises:
            DamagedCase: it is not what its name says.
            StorageError: it is missing.
        """
        reader = CaseReader.open(self._file(sha256))
        image, _ = reader.read_patch((0, 0, 0), reader.shape)
        if reader.header.case_id != sha256:
            raise DamagedCase(
                f"{reader.location.uri}: holds the mask {reader.header.case_id}",
                "Restore the file from a copy.",
            )
        mask: Array = image[0]
        return mask

    def names(self) -> Iterator[str]:
        """The SHA-256 of every mask that lies here, whether or not a version knows it."""
        for file in list_files(self.location):
            if file.name.endswith(".arrow") and not file.name.startswith("."):
                yield file.name.removesuffix(".arrow")

    def modified(self, sha256: str) -> float:
        """Unix time at which a mask was written."""
        file = self._file(sha256)
        info = file.filesystem.get_file_info(file.path)
        return 0.0 if info.mtime is None else float(info.mtime.timestamp())

    def delete(self, sha256: str) -> None:
        """Remove a mask that no version knows."""
        delete(self._file(sha256))

    def _file(self, sha256: str) -> Location:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise DataError(
                f"{sha256!r} names no mask", "Use the mask_sha256 of a version.", code="unknown_mask"
            )
        return self.location.child(sha256[:2], f"{sha256}.arrow")

    def _write(self, target: Location, case: Case, mask: Array, digest: str) -> None:
        header = CaseHeader(digest, case.spacing_mm, ("mask",), case.affine)
        if target.is_local:
            write_case(target.local_path, mask[None], None, header=header)
            return
        with tempfile.TemporaryDirectory(prefix="fedvox-mask-") as folder:
            path = Path(folder) / "mask.arrow"
            write_case(path, mask[None], None, header=header)
            upload_file(path, target)

    def _checked(self, case: Case, mask: Array) -> Array:
        if mask.shape != case.shape:
            raise DataError(
                f"case {case.case_id!r}: the mask's shape {mask.shape} differs from the image's {case.shape}",
                "Export the mask on the image's own grid.",
                code="shape_mismatch",
            )
        if mask.dtype.kind not in "iub":
            raise DataError(
                f"case {case.case_id!r}: the mask's values are {mask.dtype}, not whole numbers",
                "Export it as a label map.",
                code="not_integer",
            )
        ignore = ignore_value(self._dtype)
        values = np.unique(mask)
        unknown = values[((values < 0) | (values >= len(self._structures))) & (values != ignore)]
        if unknown.size:
            known = ", ".join(f"{index} {name}" for index, name in enumerate(self._structures))
            raise DataError(
                f"case {case.case_id!r}: the mask holds the label {int(unknown[0])}, which is no structure",
                f"Known are {known}; {ignore} marks voxels that nobody judged.",
                code="unknown_label",
            )
        return mask.astype(self._dtype, copy=False)


def _digest(case: Case, mask: Array) -> str:
    geometry = [mask.shape, mask.dtype.name, case.spacing_mm, case.affine]
    digest = hashlib.sha256(json.dumps(geometry).encode())
    digest.update(mask.data)
    return digest.hexdigest()
