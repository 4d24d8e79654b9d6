"""From files to a problem that a solver takes: operator, measurements, scale, and where the result lies in space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvox.data.geometry import Geometry
from fedvox.data.nifti import read_nifti
from fedvox.errors import ConfigError, DataError
from fedvox.restoration import physics
from fedvox.restoration.deepinv_loader import deepinv
from fedvox.restoration.kspace import (
    check_coils,
    check_mask,
    estimated_coils,
    is_hdf5,
    read_array,
    read_kspace,
)
from fedvox.restoration.volumes import FULL_SCALE, intensity_scale

TASKS = ("reconstruct", "denoise", "super-resolution", "inpaint")
_SMALLEST = 8


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        input: NIfTI magnitude, or k-space in HDF5.
        task: one of `TASKS`; None: reconstruct for k-space.
        mask: of k-space, or NIfTI that is 1 where an image is known.
        coils: coil maps.
        normalize_coils: make them so.
        factor: (D, H, W) of super-resolution.
        noise: standard deviation of the noise as a share of the image's full scale.
        phase: whether the image's smooth phase is estimated.
    """

    input: Path
    task: str | None = None
    mask: Path | None = None
    coils: Path | None = None
    normalize_coils: bool = False
    factor: tuple[int, int, int] | None = None
    noise: float | None = None
    phase: bool = True


@dataclass(frozen=True)
class Problem:
    """What is solved.

    Attributes:
        task: see `TASKS`.
        physics: deepinv's operator, for images scaled to [0, 1].
        y: scaled measurements.
        scale: restored images times this are in the units of the input.
        slices: whether images are a batch of slices `(S, 1, H, W)`, each measured by itself; else `(1, 1, D, H, W)`.
        size: (D, H, W) of the result.
        geometry: of the result.
        source: of the header, or "".
        notes: what a reader should know.
    """

    task: str
    physics: Any
    y: Tensor
    scale: float
    slices: bool
    size: tuple[int, int, int]
    geometry: Geometry
    source: str
    notes: tuple[str, ...] = ()


def open_problem(request: Request) -> Problem:
    """Reads and checks the files.

    Raises:
        DataError: a file cannot be used; see `fedvox.restoration.kspace` and `fedvox.data.nifti`.
        ConfigError: the task does not exist, or lacks an option.
    """
    kspace = is_hdf5(request.input)
    task = request.task or ("reconstruct" if kspace else None)
    if task not in TASKS:
        raise ConfigError(
            f"--task {task!r} does not exist" if task else "a magnitude image needs --task",
            f"One of {', '.join(TASKS[1:])}; k-space is reconstructed.",
        )
    if (task == "reconstruct") != kspace:
        raise DataError(
            f"{request.input} is {'k-space' if kspace else 'a magnitude image'}, and --task is {task}",
            "Reconstruction needs complex k-space in HDF5 (fastMRI or ISMRMRD); the phase that a magnitude image "
            "has lost cannot be made up." if not kspace else "Use --task reconstruct.",
            code="needs_kspace" if not kspace else "needs_magnitude",
            file=str(request.input),
        )  # fmt: skip
    return _scan(request) if kspace else _image(request, task)


# ---- k-space --------------------------------------------------------------------------------------------------


def _scan(request: Request) -> Problem:
    found = read_kspace(request.input)
    mask, notes = found.mask, []
    if request.mask is not None:
        mask = check_mask(read_array(request.mask, "mask"), found.data.shape[-2:], request.mask)
    data = found.data * mask
    _big_enough(data.shape[-2:], request.input)
    maps = None
    if request.coils is not None:
        name, shape = request.coils, (data.shape[0], data.shape[1], data.shape[2], data.shape[3])
        maps = check_coils(read_array(name, "maps"), shape, name, normalize=request.normalize_coils)
    elif data.shape[1] > 1:
        maps = estimated_coils(found)
        notes.append("coil maps were estimated from the centre of k-space")
    lifted = torch.from_numpy(mask)
    coils = None if maps is None else torch.from_numpy(maps)
    combined = _combined(data, maps)
    scale = float(np.percentile(np.abs(combined), FULL_SCALE))
    phase = None
    if request.phase and (maps is None or request.coils is not None):
        phase = torch.stack([physics.smooth_phase(torch.from_numpy(one)) for one in combined])
        notes.append("the image's smooth phase was estimated from the centre of k-space")
    operator = _scan_operator(lifted, coils, phase, request.noise if request.noise is not None else 0.005)
    parts = np.stack([data.real, data.imag], axis=1) / scale
    y = torch.from_numpy((parts if maps is not None else parts[:, :, 0]).astype(np.float32))
    size = (data.shape[0], data.shape[2], data.shape[3])
    spacing = found.spacing_mm
    geometry = Geometry.of_file(size[::-1], np.diag([*spacing[::-1], 1.0]))
    return Problem("reconstruct", operator, y, scale, True, size, geometry, "", tuple(notes))


def _scan_operator(mask: Tensor, coils: Tensor | None, phase: Tensor | None, noise: float) -> Any:
    operator = physics.mri(mask, coil_maps=None if coils is None else coils[0], phase=phase, noise=noise)
    if coils is not None:
        operator.inner.register_buffer("coil_maps", coils)  # each slice has its own
    return operator


def _combined(data: np.ndarray, maps: np.ndarray | None) -> np.ndarray:
    """Zero-filled complex images `(S, H, W)`."""
    axes = (-2, -1)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(data, axes=axes), norm="ortho"), axes=axes)
    found = images[:, 0] if maps is None else (maps.conj() * images).sum(axis=1)
    return np.asarray(found, np.complex64)


# ---- magnitude images -----------------------------------------------------------------------------------------


def _image(request: Request, task: str) -> Problem:
    volume = read_nifti(str(request.input))
    if len(volume.data) != 1:
        raise DataError(
            f"{request.input} has {len(volume.data)} channels or frames", "Restore them one by one.", code="channels",
            file=str(request.input),
        )  # fmt: skip
    image = np.asarray(volume.data[0], np.float32)
    if not np.isfinite(image).all():
        raise DataError(
            f"{request.input} has non-finite voxels", "Repair the file; or set them to 0 and name them in --mask.",
            code="not_finite", file=str(request.input),
        )  # fmt: skip
    _big_enough(image.shape[1:], request.input)
    scale = intensity_scale(image)
    y = torch.from_numpy(image / scale)[None, None]
    noise = request.noise if request.noise is not None else 0.01
    geometry, size = volume.geometry, (image.shape[0], image.shape[1], image.shape[2])
    if task == "denoise":
        if request.noise is None:
            raise ConfigError(
                "--task denoise needs --noise", "For example --noise 0.05: of the image's full scale."
            )
        operator = physics.denoising(noise)
    elif task == "inpaint":
        known = _known(request, size)
        operator, y = physics.inpainting(known, noise), y * known
    else:
        factor = request.factor
        if factor is None or min(factor) < 1 or max(factor) < 2:
            raise ConfigError("--task super-resolution needs --factor D,H,W", "For example --factor 1,2,2.")
        operator = physics.BlockAverage(factor, deepinv.physics.GaussianNoise(noise))
        size = (size[0] * factor[0], size[1] * factor[1], size[2] * factor[2])
        finer = geometry.resampled(size)
        geometry = Geometry.of_file(size[::-1], np.asarray(finer.affine))
    source = "" if task == "super-resolution" else str(request.input)  # whose header is of another grid
    return Problem(task, operator, y, scale, False, size, geometry, source)


def _known(request: Request, size: tuple[int, int, int]) -> Tensor:
    if request.mask is None:
        raise ConfigError(
            "--task inpaint needs --mask", "A NIfTI image that is 1 where the image is known, 0 elsewhere."
        )
    mask = np.asarray(read_nifti(str(request.mask)).data[0], np.float32)
    if mask.shape != size:
        raise DataError(
            f"{request.mask} has shape {mask.shape}, the image {size}", "Give a mask on the grid of the image.",
            code="mask_shape", file=str(request.mask),
        )  # fmt: skip
    if not np.isin(mask, (0, 1)).all() or not mask.any():
        raise DataError(
            f"{request.mask} is not of zeros and ones, or all zero", "Give 1 where the image is known.",
            code="mask_values", file=str(request.mask),
        )  # fmt: skip
    return torch.from_numpy(mask)[None]


def _big_enough(size: tuple[int, ...], path: Path) -> None:
    if min(size) < _SMALLEST:
        raise DataError(
            f"{path} is {' × '.join(map(str, size))} in plane: too small for any patch",
            f"Images of at least {_SMALLEST} × {_SMALLEST} voxels can be restored.",
            code="too_small",
            file=str(path),
        )
