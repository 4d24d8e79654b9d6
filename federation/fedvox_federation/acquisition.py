"""What a hospital's scanner does to its images: uneven coil, contrast, slice thickness and noise.

    worn = ScannerEffects(bias=0.4, noise=0.3, resolution=(0.5, 1, 1))
    image = rescan(image, worn, rng)                                        # (C, D, H, W)
    store = write_rescanned_store(store, hospitals, {"hospital_03": worn}, "…/rescanned")

Labels and grid stay as they are. In the written store every case's source is its hospital, so that a partition by
acquisition deals the patients exactly so. The operators are those of training's augmentation, with fixed strength
instead of a random one; the coil's field is the demo scanners'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from fedvox.data.augment_intensity import add_noise, gamma_correct, reduce_resolution, scale_contrast
from fedvox.data.resample import resample_image
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import StoreWriter
from fedvox.errors import ConfigError
from fedvox_federation.hospitals import Hospitals

Float32 = npt.NDArray[np.float32]
_COIL_KNOTS = (3, 3, 3)


@dataclass(frozen=True)
class ScannerEffects:
    """How far a scanner is from a good one, which has no effects at all.

    Attributes:
        bias: largest deviation of the coil's sensitivity from 1.
        contrast: factor of the intensities' distance from their mean; negative values turn the contrast round.
        gamma: exponent of the intensities, scaled to 0..1.
        resolution: (D, H, W), share of the voxels along each axis that were really measured.
        noise: standard deviation, in standard deviations of the image.
    """

    bias: float = 0.0
    contrast: float = 1.0
    gamma: float = 1.0
    resolution: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.bias < 0 or self.noise < 0 or self.gamma <= 0:
            raise ConfigError(f"{self}: bias and noise are at least 0, and gamma is above 0")
        if not all(0 < share <= 1 for share in self.resolution):
            raise ConfigError(
                f"{self}: resolution is a share of the voxels of each axis, above 0 and up to 1"
            )


def rescan(image: Float32, effects: ScannerEffects, rng: np.random.Generator) -> Float32:
    """The image as another scanner would have delivered it.

    Args:
        image: (C, D, H, W), in any unit.
        effects: in the order of the class.
        rng: of the coil's field and the noise.

    Returns:
        A new array of the same shape.
    """
    rows = torch.from_numpy(np.array(image, np.float32))
    coil_seed, noise_seed = rng.integers(2**63, size=2)
    if effects.bias:
        field = _coil(image.shape[1:], effects.bias, np.random.default_rng(coil_seed))
        rows *= torch.from_numpy(field)
    count = len(rows)
    spread = float(rows.std())
    if effects.contrast < 0:
        rows.neg_().add_(2 * rows.mean((1, 2, 3), keepdim=True).neg())
    if abs(effects.contrast) != 1:
        scale_contrast(rows, np.full(count, abs(effects.contrast)))
    if effects.gamma != 1:
        gamma_correct(rows, np.full(count, effects.gamma), inverted=False)
    if effects.resolution != (1.0, 1.0, 1.0):
        reduce_resolution(rows, np.tile(effects.resolution, (count, 1)))
    if effects.noise:
        add_noise(rows, effects.noise * spread, int(noise_seed))
    return rows.numpy()


def _coil(shape: tuple[int, ...], bias: float, rng: np.random.Generator) -> Float32:
    """Sensitivity, smooth, 1 ± `bias`: a cubic spline through normal values on a coarse grid."""
    depth, height, width = shape
    coarse = rng.standard_normal(_COIL_KNOTS).astype(np.float32)
    field = resample_image(coarse, (depth, height, width))
    return np.asarray(np.exp(np.log1p(bias) * field / np.abs(field).max()), np.float32)


def write_rescanned_store(
    store: BrickStore,
    hospitals: Hospitals,
    effects: Mapping[str, ScannerEffects],
    target: str,
    *,
    seed: int = 0,
) -> BrickStore:
    """The same patients, each as their hospital's scanner saw them. What is written already is left as it is.

    Args:
        store: any.
        hospitals: name -> rows of the store.
        effects: hospital -> its scanner; hospitals that are not named have a good one.
        target: folder or `s3://` address of the new store.
        seed: of coils and noise, with the case's row.

    Raises:
        ConfigError: effects of a hospital that there is not.
    """
    if unknown := sorted(set(effects) - set(hospitals)):
        raise ConfigError(
            f"effects: there is no hospital {unknown[0]!r}", f"There are {', '.join(hospitals)}."
        )
    writer = StoreWriter.create(target, replace(store.meta, name=f"{store.meta.name}-rescanned"))
    for hospital, rows in hospitals.items():
        scanner = effects.get(hospital, ScannerEffects())
        for row in rows:
            record = store.record(row)
            origin = f"{record.sha256} {scanner} {seed} {row}"
            if writer.finished(record.case_id, origin=origin) is not None:
                continue
            image, label = store.read_patch(row, (0, 0, 0), record.shape)
            changed = rescan(image.astype(np.float32), scanner, np.random.default_rng([seed, row]))
            writer.add_case(
                record.case_id,
                _as_stored(changed, image.dtype),
                label,
                source=hospital,
                label_set=record.label_set,
                spacing_mm=record.spacing_mm,
                origin=origin,
            )
    writer.finish()
    return BrickStore.open(target)


def _as_stored(image: Float32, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    """Whole numbers where the store has whole numbers."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype.name)
        return np.clip(np.rint(image), limits.min, limits.max).astype(dtype)
    return image.astype(dtype)
