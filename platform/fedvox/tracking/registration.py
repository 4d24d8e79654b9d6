"""Which place of an earlier scan is which place of a later one: rigid, then affine, then deformable (SimpleITK).

    found = register(fixed=later, moving=earlier)
    require_same_patient(found.quality)
    masks = found.carry(earlier_masks, later.geometry)

Mutual information is maximised, so that another scanner, sequence or contrast agent is no matter. All stages run on a
coarse copy of the scans, on one thread and with seeded sampling: the same scans give the same transform, bit for bit.

How well two scans fit is judged after the rigid stage, where scans of one patient already agree and scans of two
patients, or of two parts of the body, do not: a deformation strong enough makes any two heads look alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - as its own documentation calls it
from scipy.ndimage import gaussian_filter

from fedvox.data.geometry import Geometry, Volume
from fedvox.errors import DataError

Stage = Literal["rigid", "affine", "deformable"]
_LPS = np.array([-1.0, -1.0, 1.0])  # RAS+ <-> ITK's axes
_SEED = 20_240_108
_SMOOTH_MM = 4.0  # neighbourhood of the local correlation
_LEAST_VIEW = 0.25  # share of the fixed foreground that the moving scan must cover at all


@dataclass(frozen=True)
class RegistrationConfig:
    """How scans are registered.

    Args:
        stage: the last one; each starts from the one before.
        spacing_mm: of the coarse copies.
        mesh_mm: distance of the deformation's control points.
        sampling: share of voxels that every stage looks at.
        iterations: at most, of the rigid and affine stages on each of three scales.
        deformable_iterations: at most.
    """

    stage: Stage = "deformable"
    spacing_mm: float = 4.0
    mesh_mm: float = 45.0
    sampling: float = 0.3
    iterations: int = 40
    deformable_iterations: int = 12


@dataclass(frozen=True)
class Quality:
    """How well two scans fit.

    Args:
        overlap: Dice of what is not background, after the rigid stage.
        correlation: mean local correlation of the images where both have foreground, after the rigid stage; its
            absolute value, for contrasts may be reversed. 1 is the same image.
        volume_ratio: by which the affine stage would have to scale the volume; 1 without that stage.
        residual_mm: mean displacement that the deformable stage adds where there is foreground; 0 without it.
    """

    overlap: float
    correlation: float
    volume_ratio: float
    residual_mm: float


@dataclass(frozen=True)
class QualityGate:
    """What scans of one patient reach.

    The defaults part simulated heads: of ten pairs, those of one patient (other scanner, slices twice as thick, lesions
    changed) overlap by 0.97 or more and correlate by 0.75 or more, those of two patients overlap by 0.94 or less. Where
    the outline changes from scan to scan (breathing, arms), choose a lower overlap.

    Args:
        overlap: least overlap.
        correlation: least local correlation.
        volume_change: the volume ratio is within 1 / (1 + this) and 1 + this.
    """

    overlap: float = 0.95
    correlation: float = 0.55
    volume_change: float = 0.15


@dataclass(frozen=True, eq=False)
class Registration:
    """A transform from the fixed scan to the moving one, and how good it is.

    Args:
        transform: maps points of the fixed scan to the moving one, in ITK's mm.
        quality: see there.
        moving: geometry of the moving scan.
    """

    transform: Any
    quality: Quality
    moving: Geometry

    def carry(self, labels: npt.NDArray[np.integer[Any]], fixed: Geometry) -> npt.NDArray[Any]:
        """Labels of the moving scan on the grid of the fixed one.

        Args:
            labels: (D, H, W) of the moving scan.
            fixed: geometry to carry them to.

        Returns:
            (D, H, W) of the same type; 0 beyond the moving scan.
        """
        kept = labels.astype(np.uint32)
        return _resampled(kept, self.moving, fixed, self.transform, sitk.sitkNearestNeighbor).astype(
            labels.dtype
        )

    def carry_image(self, image: npt.NDArray[Any], fixed: Geometry) -> npt.NDArray[np.float32]:
        """The moving image on the grid of the fixed scan, (D, H, W) float32."""
        return _resampled(image.astype(np.float32), self.moving, fixed, self.transform, sitk.sitkLinear)


def register(
    fixed: Volume, moving: Volume, config: RegistrationConfig = RegistrationConfig()
) -> Registration:
    """Registers two scans by their first channel.

    Args:
        fixed: the scan whose grid results are wanted on.
        moving: the scan that masks come from.
        config: how.

    Raises:
        DataError: a scan is the same everywhere (no_contrast), or nothing of the two overlaps (registration).
    """
    still, moved = (_coarse(volume, config.spacing_mm) for volume in (fixed, moving))
    try:
        with _one_thread():
            rigid = _optimised(still, moved, _start(still, moved), config)
            affine = rigid
            if config.stage != "rigid":
                affine = _optimised(still, moved, _as_affine(rigid), config)
            transform, added = affine, None
            if config.stage == "deformable":
                added = _deformation(still, moved, affine, config)
                transform = sitk.CompositeTransform([affine, added])
    except RuntimeError as error:
        raise DataError(
            f"{moving.path} cannot be registered to {fixed.path}: {str(error).strip().splitlines()[-1]}",
            "Check that both show the same part of the body.",
            code="registration",
            file=moving.path,
        ) from error
    return Registration(transform, _quality(still, moved, rigid, affine, added), moving.geometry)


def require_same_patient(
    quality: Quality, fixed: str, moving: str, gate: QualityGate = QualityGate()
) -> None:
    """Refuses scans that do not fit.

    Args:
        quality: of the registration.
        fixed: names the later scan in the message.
        moving: names the earlier scan.
        gate: what they must reach.

    Raises:
        DataError: another_patient.
    """
    high = 1 + gate.volume_change
    found = []
    if quality.overlap < gate.overlap:
        found.append(f"they overlap by {quality.overlap:.2f} (at least {gate.overlap:g})")
    if quality.correlation < gate.correlation:
        found.append(f"they correlate by {quality.correlation:.2f} (at least {gate.correlation:g})")
    if not 1 / high <= quality.volume_ratio <= high:
        found.append(f"their volumes differ by a factor of {quality.volume_ratio:.2f} (at most {high:g})")
    if found:
        raise DataError(
            f"{fixed} does not fit {moving}: {'; '.join(found)}",
            "Check that both scans are of one patient and one part of the body; if they are, accept the fit as it is "
            "(--accept-poor-registration).",
            code="another_patient",
            file=fixed,
        )


# ---- stages --------------------------------------------------------------------------------------------------


def _start(fixed: Any, moving: Any) -> Any:
    """Of two ways to put one scan on the other (by grid, by mass), the one that fits better."""
    candidates: list[tuple[float, int, Any]] = []
    for way in (
        sitk.CenteredTransformInitializerFilter.GEOMETRY,
        sitk.CenteredTransformInitializerFilter.MOMENTS,
    ):
        start = sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), way)
        method = _method(1.0)
        method.SetInitialTransform(start)
        candidates.append((method.MetricEvaluate(fixed, moving), len(candidates), start))
    return sitk.Euler3DTransform(min(candidates, key=lambda c: c[:2])[2])


def _optimised(fixed: Any, moving: Any, start: Any, config: RegistrationConfig) -> Any:
    method = _method(config.sampling)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=config.iterations, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=False)
    found = method.Execute(fixed, moving)
    return type(start)(found.GetNthTransform(0) if hasattr(found, "GetNthTransform") else found)


def _as_affine(rigid: Any) -> Any:
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    affine.SetCenter(rigid.GetCenter())
    return affine


def _deformation(fixed: Any, moving: Any, affine: Any, config: RegistrationConfig) -> Any:
    extent = [n * s for n, s in zip(fixed.GetSize(), fixed.GetSpacing(), strict=True)]
    mesh = [max(2, round(e / config.mesh_mm)) for e in extent]
    spline = sitk.BSplineTransformInitializer(fixed, mesh, order=3)
    method = _method(config.sampling)
    method.SetOptimizerAsLBFGSB(
        gradientConvergenceTolerance=1e-5,
        numberOfIterations=config.deformable_iterations,
        maximumNumberOfCorrections=5,
        maximumNumberOfFunctionEvaluations=2 * config.deformable_iterations,
    )
    method.SetMovingInitialTransform(affine)
    method.SetInitialTransform(spline, inPlace=True)
    method.Execute(fixed, moving)
    return spline


def _method(sampling: float) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    if sampling < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(sampling, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    return method


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over threads depend on their order, and a method's own number of threads does not reach its parts."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


# ---- quality -------------------------------------------------------------------------------------------------


def _quality(fixed: Any, moving: Any, rigid: Any, affine: Any, added: Any | None) -> Quality:
    still = sitk.GetArrayFromImage(fixed)
    darkest = float(sitk.GetArrayViewFromImage(moving).min())
    moved = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, rigid, sitk.sitkLinear, darkest))
    ones = sitk.Cast(moving * 0 + 1, sitk.sitkFloat32)
    seen = sitk.GetArrayFromImage(sitk.Resample(ones, fixed, rigid, sitk.sitkLinear, 0.0)) > 0.5
    front, front_moved = still > _background(fixed), (moved > _background(moving)) & seen
    both = front & front_moved
    in_view = np.count_nonzero(front & seen)
    total = in_view + np.count_nonzero(front_moved)
    enough = in_view >= _LEAST_VIEW * np.count_nonzero(front)
    correlation = _local_correlation(still, moved, fixed.GetSpacing()[::-1])
    return Quality(
        overlap=float(2 * np.count_nonzero(both) / total) if total and enough else 0.0,
        correlation=float(np.abs(correlation[both]).mean()) if both.any() else 0.0,
        volume_ratio=float(np.linalg.det(np.reshape(affine.GetMatrix(), (3, 3)))),
        residual_mm=_mean_displacement(fixed, added, front) if added is not None and front.any() else 0.0,
    )


def _background(image: Any) -> float:
    """The intensity above which a voxel is foreground (Otsu)."""
    method = sitk.OtsuThresholdImageFilter()
    method.Execute(image)
    return float(method.GetThreshold())


def _local_correlation(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], spacing_mm: tuple[float, ...]
) -> npt.NDArray[np.float64]:
    sigma = [_SMOOTH_MM / s for s in spacing_mm]

    def mean(volume: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return np.asarray(gaussian_filter(volume.astype(np.float64), sigma))

    mean_a, mean_b = mean(a), mean(b)
    variances = np.maximum(mean(a * a) - mean_a**2, 0) * np.maximum(mean(b * b) - mean_b**2, 0)
    return np.asarray((mean(a * b) - mean_a * mean_b) / np.sqrt(np.maximum(variances, 1e-12)))


def _mean_displacement(fixed: Any, added: Any, front: npt.NDArray[np.bool_]) -> float:
    field = sitk.TransformToDisplacementField(
        added,
        sitk.sitkVectorFloat32,
        fixed.GetSize(),
        fixed.GetOrigin(),
        fixed.GetSpacing(),
        fixed.GetDirection(),
    )
    return float(np.linalg.norm(sitk.GetArrayViewFromImage(field)[front], axis=-1).mean())


# ---- between our volumes and ITK's ---------------------------------------------------------------------------


def _coarse(volume: Volume, spacing_mm: float) -> Any:
    """The first channel on a coarse grid, between 0 and 1."""
    image = volume.data[0].astype(np.float32)
    low, high = (float(v) for v in np.percentile(image, [0.1, 99.9]))
    if high <= low:
        raise DataError(
            f"{volume.path} is the same everywhere",
            "Give an image, not a mask or an empty volume.",
            code="no_contrast",
            file=volume.path,
        )
    scaled = (np.clip(image, low, high) - low) / (high - low)
    wanted = [max(s, spacing_mm) for s in volume.geometry.spacing_mm]
    widths = [0.4 * w / s if w > s else 0.0 for w, s in zip(wanted, volume.geometry.spacing_mm, strict=True)]
    whole = _to_itk(gaussian_filter(scaled, widths), volume.geometry)
    size = [
        max(4, round(n * s / w))
        for n, s, w in zip(whole.GetSize(), whole.GetSpacing(), wanted[::-1], strict=True)
    ]
    spacing = [n * s / m for n, s, m in zip(whole.GetSize(), whole.GetSpacing(), size, strict=True)]
    corner = [(a - b) / (2 * b) for a, b in zip(spacing, whole.GetSpacing(), strict=True)]
    origin = whole.TransformContinuousIndexToPhysicalPoint(corner)
    identity = sitk.Transform(3, sitk.sitkIdentity)
    return sitk.Resample(
        whole, size, identity, sitk.sitkLinear, origin, spacing, whole.GetDirection(), 0.0, sitk.sitkFloat32
    )


def _to_itk(array: npt.NDArray[Any], geometry: Geometry) -> Any:
    """A (D, H, W) array as an ITK image at its place in the patient."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    affine = np.asarray(geometry.affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((_LPS * affine[:3, 3]).tolist())
    image.SetDirection((_LPS[:, None] * affine[:3, :3] / spacing).reshape(-1).tolist())
    return image


def _resampled(
    array: npt.NDArray[Any], geometry: Geometry, target: Geometry, transform: Any, interpolator: int
) -> npt.NDArray[Any]:
    grid = _to_itk(np.zeros(target.shape, dtype=np.uint8), target)
    moved = sitk.Resample(_to_itk(array, geometry), grid, transform, interpolator, 0.0)
    return np.asarray(sitk.GetArrayFromImage(moved))
