"""3D Slicer's segmentation files (.seg.nrrd): a NRRD label map whose header names and colors the segments.

Slicer keeps a segmentation on the smallest box that holds it, so that what comes back may have another shape and
origin than what went out; `read_segmentation` says where the box lies, and `fedvox.curation.exchange.edited` puts it
back. Coordinates in the file are left-posterior-superior: x and y are those of NIfTI with the sign reversed.

Source: the NRRD format (teem.sourceforge.net/nrrd/format.html), and "Segmentations" in 3D Slicer's developer guide.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedvox.curation.exchange.colors import structure_colors
from fedvox.data.geometry import Geometry, Volume
from fedvox.errors import DataError

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TYPES = {
    "uint8": ("unsigned char", "uchar", "uint8", "uint8_t"),
    "int8": ("signed char", "int8", "int8_t"),
    "uint16": ("unsigned short", "ushort", "uint16", "uint16_t", "unsigned short int"),
    "int16": ("short", "int16", "int16_t", "short int", "signed short"),
    "uint32": ("unsigned int", "uint", "uint32", "uint32_t"),
    "int32": ("int", "int32", "int32_t", "signed int"),
}
_NUMPY = {word: name for name, words in _TYPES.items() for word in words}
_MOST_VOXELS = 1 << 31
_VECTOR = re.compile(r"\(([^)]*)\)")


@dataclass(frozen=True)
class Segmentation:
    """A segmentation file as read.

    Args:
        volume: the label map, (1, D, H, W), RAS+.
        names: value -> name, as the file has it; empty where it names no segments.
    """

    volume: Volume
    names: dict[int, str]


def segmentation_bytes(
    labels: npt.NDArray[np.integer], geometry: Geometry, structures: Sequence[str]
) -> bytes:
    """A label map as a .seg.nrrd file.

    Args:
        labels: (D, H, W), canonical structure indices, RAS+; uint8 or uint16.
        geometry: of `labels`.
        structures: K names, background first.
    """
    affine = _LPS @ np.asarray(geometry.affine)
    sizes = geometry.shape[::-1]
    directions = " ".join(_vector(affine[:3, axis]) for axis in range(3))
    header = [
        "NRRD0004",
        f"type: {_TYPES[labels.dtype.name][0]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(affine[:3, 3])}",
        *_segments(structures, sizes),
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_SourceRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]
    packer = zlib.compressobj(3, wbits=31)
    voxels = np.ascontiguousarray(labels, dtype=labels.dtype.newbyteorder("<"))
    return ("\n".join(header) + "\n\n").encode() + packer.compress(voxels.tobytes()) + packer.flush()


def _segments(structures: Sequence[str], sizes: Sequence[int]) -> list[str]:
    colors = structure_colors(len(structures)) / 255
    extent = " ".join(f"0 {size - 1}" for size in sizes)
    lines = []
    for number, name in enumerate(structures[1:]):
        fields = {
            "ID": f"Segment_{number + 1}",
            "Name": name,
            "Color": " ".join(f"{value:.6g}" for value in colors[number + 1]),
            "LabelValue": str(number + 1),
            "Layer": "0",
            "Extent": extent,
        }
        lines += [f"Segment{number}_{key}:={value}" for key, value in fields.items()]
    return lines


def _vector(values: npt.NDArray[np.floating]) -> str:
    return f"({','.join(f'{float(value):.17g}' for value in values)})"


def read_segmentation(path: Path) -> Segmentation:
    """Reads a NRRD label map or a 3D Slicer segmentation of one layer.

    Args:
        path: a file with its voxels attached, raw or gzipped.

    Raises:
        DataError: missing_file, not_nrrd, overlapping_segments, truncated or unsupported_type.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be opened: {error.strerror}",
            "Correct the path.",
            code="missing_file",
            file=str(path),
        ) from None
    head, separator, body = data.replace(b"\r\n", b"\n", 200).partition(b"\n\n")
    if not head.startswith(b"NRRD000") or not separator:
        raise _refused(path, "not_nrrd", "is no NRRD file with its voxels attached")
    fields, pairs = _parse(head.decode("utf-8", errors="replace"))
    if fields.get("dimension") != "3":
        raise _refused(
            path,
            "overlapping_segments",
            "holds segments in several layers, which overlap",
            "In 3D Slicer, give the segments no common voxel, or export them as one labelmap (NIfTI).",
        )
    sizes, geometry = _grid(path, fields)
    voxels = _voxels(path, fields, body, math.prod(sizes))
    stored = voxels.reshape(sizes[::-1])
    volume = Volume(geometry.to_ras(stored)[None], geometry, str(path))
    return Segmentation(volume, _names(pairs))


def _parse(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Fields (`type: short`) and key/value pairs (`Segment0_Name:=liver`) of a header."""
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        if line.startswith("#"):
            continue
        if ":=" in line:
            key, _, value = line.partition(":=")
            pairs[key] = value
        else:
            key, _, value = line.partition(": ")
            fields[key.lower()] = value.strip()
    return fields, pairs


def _grid(path: Path, fields: dict[str, str]) -> tuple[tuple[int, ...], Geometry]:
    space = fields.get("space", "").lower()
    signs = {
        "left-posterior-superior": _LPS,
        "lps": _LPS,
        "right-anterior-superior": np.eye(4),
        "ras": np.eye(4),
    }
    try:
        sizes = tuple(int(n) for n in fields["sizes"].split())
        affine = np.eye(4)
        columns = _VECTOR.findall(fields["space directions"])
        for axis, column in enumerate(columns):
            affine[:3, axis] = [float(n) for n in column.split(",")]
        affine[:3, 3] = [float(n) for n in _VECTOR.findall(fields["space origin"])[0].split(",")]
        affine = signs[space] @ affine
        if len(sizes) != 3 or len(columns) != 3 or not 0 < math.prod(sizes) < _MOST_VOXELS:
            raise ValueError
        np.linalg.inv(affine)
    except (KeyError, IndexError, ValueError, np.linalg.LinAlgError):
        raise _refused(path, "not_nrrd", "has no usable sizes, space, directions or origin") from None
    return sizes, Geometry.of_file(sizes, affine)


def _voxels(path: Path, fields: dict[str, str], body: bytes, count: int) -> npt.NDArray[np.integer]:
    name = _NUMPY.get(fields.get("type", ""))
    if name is None:
        raise _refused(path, "unsupported_type", f"has voxels of type {fields.get('type')!r}, not integers")
    dtype = np.dtype(name).newbyteorder(">" if fields.get("endian") == "big" else "<")
    encoding = fields.get("encoding", "raw").lower()
    if encoding in ("gzip", "gz"):
        try:
            # No more than the header announces: a small file must not fill the memory.
            body = zlib.decompressobj(wbits=31).decompress(body, count * dtype.itemsize)
        except zlib.error as error:
            raise _refused(path, "truncated", f"cannot be decompressed ({error})") from None
    elif encoding != "raw":
        raise _refused(path, "unsupported_type", f"has the encoding {encoding!r}, not gzip or raw")
    if len(body) < count * dtype.itemsize:
        raise _refused(
            path, "truncated", f"holds {len(body):,} of {count * dtype.itemsize:,} bytes of voxels"
        )
    found = np.frombuffer(body, dtype=dtype, count=count)
    return found.astype(name, copy=False)


def _names(pairs: dict[str, str]) -> dict[int, str]:
    names: dict[int, str] = {}
    for key, name in pairs.items():
        found = re.fullmatch(r"Segment(\d+)_Name", key)
        value = pairs.get(f"Segment{found[1]}_LabelValue", "") if found else ""
        if value.isdigit():
            names[int(value)] = name
    return names


def _refused(
    path: Path, code: str, found: str, remedy: str = "Save it again as a .seg.nrrd or as a NIfTI label map."
) -> DataError:
    return DataError(f"{path} {found}", remedy, code=code, file=str(path))
