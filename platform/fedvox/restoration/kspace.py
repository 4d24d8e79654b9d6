"""K-space from HDF5: fastMRI's layout, and ISMRMRD raw data of 2D Cartesian scans.

    fastMRI     /kspace  (slices, H, W) or (slices, coils, H, W) complex;  /mask  (W,), where undersampled
    ISMRMRD     /dataset/xml, /dataset/data: one row a readout, with its header

K-space is centred, as the orthonormal transform of a centred image.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedvox.errors import ConfigError, DataError

_NOISE_SCAN = 1 << 18
"""ISMRMRD's flag of a noise measurement (bit 19, counted from 1)."""


@dataclass(frozen=True)
class KSpace:
    """A scan of 2D slices.

    Attributes:
        data: `(S, N, H, W)` complex64, zeros where nothing was measured.
        mask: `(H, W)` float32, 1 where it was.
        spacing_mm: (D, H, W).
    """

    data: np.ndarray
    mask: np.ndarray
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


def is_hdf5(path: Path) -> bool:
    """Whether a file's name says HDF5."""
    return path.suffix.lower() in (".h5", ".hdf5", ".mrd")


def read_kspace(path: Path) -> KSpace:
    """Reads a scan.

    Raises:
        DataError: it is no such file, holds magnitudes only, or is not finite.
        ConfigError: h5py is not installed.
    """
    with _opened(path) as file:
        if "kspace" in file:
            found = _fastmri(file, path)
        elif "dataset" in file and "data" in file["dataset"]:
            found = _ismrmrd(file["dataset"], path)
        else:
            raise DataError(
                f"{path} holds no k-space: neither /kspace (fastMRI) nor /dataset/data (ISMRMRD), but {sorted(file)}",
                "Reconstruction needs the measured k-space; a magnitude image can only be denoised, filled, enlarged.",
                code="no_kspace",
                file=str(path),
            )
    if not np.isfinite(found.data).all():
        raise _bad(
            path, "has non-finite k-space", "not_finite", "Export the scan again, or remove the bad readouts."
        )
    if not np.abs(found.data).max():
        raise _bad(path, "holds nothing but zeros", "empty", "Export the scan again.")
    return found


def read_array(path: Path, name: str) -> np.ndarray:
    """A mask or coil maps from `.npy`, or from a dataset of an HDF5 file.

    Args:
        path: the file.
        name: of the dataset.

    Raises:
        DataError: there is no such file or dataset, or it is not finite.
    """
    if not path.is_file():
        raise _bad(path, "does not exist", "missing_file", "Check the path.")
    if path.suffix == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise _bad(path, f"is no array: {error}", "not_npy", "Write it with numpy.save.") from error
    else:
        with _opened(path) as file:
            if name not in file:
                raise _bad(path, f"has no dataset /{name}", "no_dataset", f"It has {sorted(file)}.")
            values = np.asarray(file[name])
    if not np.isfinite(values).all():
        raise _bad(path, "has non-finite values", "not_finite", "Write it again.")
    return np.asarray(values)


def check_mask(mask: np.ndarray, size: tuple[int, int], path: Path) -> np.ndarray:
    """A mask of k-space `(H, W)` from one of that shape or of one row.

    Raises:
        DataError: it is of another shape, or not of zeros and ones.
    """
    line = np.squeeze(np.asarray(mask, np.float32))
    full = np.broadcast_to(line, size) if line.shape in ((size[1],), size) else None
    if full is None:
        raise _bad(
            path, f"has a mask of shape {tuple(np.shape(mask))}, k-space is {size[0]} × {size[1]}", "mask_shape",
            f"Give a mask of {size} or of ({size[1]},) columns.",
        )  # fmt: skip
    if not np.isin(full, (0, 1)).all() or not full.any():
        raise _bad(
            path,
            "has a mask that is not of zeros and ones, or all zero",
            "mask_values",
            "Give 1 where measured.",
        )
    return np.ascontiguousarray(full)


def check_coils(
    maps: np.ndarray, shape: tuple[int, int, int, int], path: Path, *, normalize: bool
) -> np.ndarray:
    """Coil maps `(S, N, H, W)` complex64, normalised: Σ|s|² is 1 where it is not 0.

    Args:
        maps: `(S, N, H, W)` or, alike for all slices, `(N, H, W)`.
        shape: of k-space.
        path: for messages.
        normalize: divide by the root of that sum instead of refusing.

    Raises:
        DataError: of another shape, or not normalised.
    """
    full = maps if maps.ndim == 4 else maps[None]
    if full.shape[1:] != shape[1:] or full.shape[0] not in (1, shape[0]):
        raise _bad(
            path,
            f"has coil maps of shape {maps.shape}, k-space is {shape}",
            "coils_shape",
            f"Give {shape[1:]}.",
        )
    energy = np.square(np.abs(full)).sum(axis=1, keepdims=True)
    seen = energy > 1e-3 * energy.max()
    off = float(np.abs(energy[seen] - 1).max()) if seen.any() else 1.0
    if off > 0.05:
        if not normalize:
            raise _bad(
                path, f"has coil maps that are not normalised: Σ|s|² is off 1 by up to {off:.3g}",
                "coils_not_normalised",
                "Give --normalize-coils, or divide them by the root of their sum of squares.",
            )  # fmt: skip
        full = np.where(seen, full / np.sqrt(np.maximum(energy, 1e-12)), 0)
    return np.broadcast_to(full, shape).astype(np.complex64)


def estimated_coils(kspace: KSpace, share: float = 0.06) -> np.ndarray:
    """Coil maps `(S, N, H, W)` from the centre of k-space: each coil's blurred image over their root sum of squares.

    They hold the image's smooth phase too, so that the image is real without another estimate.
    """
    height, width = kspace.mask.shape
    rows = np.exp(-0.5 * ((np.arange(height) - height // 2) / (share * height)) ** 2)
    columns = np.exp(-0.5 * ((np.arange(width) - width // 2) / (share * width)) ** 2)
    blurred = np.fft.fftshift(
        np.fft.ifft2(np.fft.ifftshift(kspace.data * rows[:, None] * columns, axes=(-2, -1)), norm="ortho"),
        axes=(-2, -1),
    )
    total = np.sqrt(np.square(np.abs(blurred)).sum(axis=1, keepdims=True))
    return np.asarray(blurred / np.maximum(total, 1e-6 * total.max()), np.complex64)


def _bad(path: Path, found: str, code: str, remedy: str) -> DataError:
    return DataError(f"{path} {found}", remedy, code=code, file=str(path))


def _opened(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(
            "k-space is read with h5py, which is not installed", "pip install 'fedvox[restoration]'."
        ) from error
    if not path.is_file():
        raise _bad(path, "does not exist", "missing_file", "Check the path.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise _bad(
            path, f"is no readable HDF5 file: {error}", "not_hdf5", "Copy or export it again."
        ) from error


def _fastmri(file: Any, path: Path) -> KSpace:
    stored = np.asarray(file["kspace"])
    if not np.iscomplexobj(stored):
        raise _bad(
            path, f"has a /kspace of {stored.dtype}: magnitudes, not k-space", "magnitude",
            "Reconstruction needs complex k-space.",
        )  # fmt: skip
    if stored.ndim not in (3, 4):
        raise _bad(
            path,
            f"has a /kspace of shape {stored.shape}",
            "kspace_shape",
            "Expected (slices, [coils,] H, W).",
        )
    data = (stored if stored.ndim == 4 else stored[:, None]).astype(np.complex64)
    if "mask" in file:
        mask = check_mask(np.asarray(file["mask"]), data.shape[-2:], path)
    else:
        mask = (np.abs(data).sum(axis=(0, 1)) > 0).astype(np.float32)
    return KSpace(data * mask, mask)


def _ismrmrd(group: Any, path: Path) -> KSpace:
    try:
        text = np.asarray(group["xml"]).ravel()[0]
        matrix, field_of_view = _encoding(text)
        rows = group["data"][:]
        heads = rows["head"]
        keep = (heads["flags"].astype(np.uint64) & _NOISE_SCAN) == 0
        rows, heads = rows[keep], heads[keep]
        steps, slices = heads["idx"]["kspace_encode_step_1"], heads["idx"]["slice"]
        third = heads["idx"]["kspace_encode_step_2"]
    except (KeyError, ValueError, ET.ParseError, IndexError) as error:
        raise _bad(
            path, f"is not readable as ISMRMRD: {error!r}", "not_ismrmrd", "Convert the raw data again."
        ) from error
    if matrix[2] > 1 or third.max(initial=0) > 0:
        raise _bad(
            path,
            "is a 3D scan",
            "three_d",
            "Transform it along the third axis first: 2D slices are read here.",
        )
    width, height = matrix[0], matrix[1]
    coils = int(heads["active_channels"].max())
    data = np.zeros((int(slices.max()) + 1, coils, height, width), np.complex64)
    sampled = np.zeros((height, width), np.float32)
    for row, step, number in zip(rows, steps, slices, strict=True):
        line = np.asarray(row["data"], np.float32).view(np.complex64).reshape(coils, -1)
        start = width // 2 - int(row["head"]["center_sample"])
        if start < 0 or start + line.shape[1] > width or step >= height:
            raise _bad(
                path, f"has a readout of {line.shape[1]} samples that does not fit a matrix of {matrix}", "readout",
                "Remove the oversampling first, or correct encodedSpace.",
            )  # fmt: skip
        data[number, :, step, start : start + line.shape[1]] = line
        sampled[step, start : start + line.shape[1]] = 1
    x, y, z = field_of_view
    return KSpace(data, sampled, (z, y / height, x / width))


def _encoding(text: Any) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Matrix and field of view (x, y, z) of the encoded space in an ISMRMRD header."""
    root = ET.fromstring(text if isinstance(text, bytes) else str(text))
    name = root.tag.split("}")[0] + "}" if "}" in root.tag else ""
    space = root.find(f"{name}encoding/{name}encodedSpace")
    if space is None:
        raise KeyError("encodedSpace")
    values = []
    for part in ("matrixSize", "fieldOfView_mm"):
        node = space.find(f"{name}{part}")
        values.append(
            [float(node.findtext(f"{name}{axis}") or "nan") for axis in "xyz"]
            if node is not None
            else [1.0] * 3
        )
    (nx, ny, nz), (fx, fy, fz) = values
    return (int(nx), int(ny), int(nz)), (fx, fy, fz)
