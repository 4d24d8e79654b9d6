"""What makes a case unusable, each reason with a stable code, the file's name and a remedy.

    reading          missing_file not_nifti truncated corrupt_gzip not_3d bad_spacing bad_affine unsupported_type
                     too_large not_dicom mixed_series duplicate_slices missing_slices missing_rescale compressed_dicom
    image            non_finite no_contrast absurd_spacing sheared_affine implausible_ct channel_count
    label            non_finite non_integer_label unknown_label_value channel_count
    image and label  shape_mismatch affine_mismatch
    data set         see `fedvox.data.sources`

The functions here return all the reasons that they find; the readers (see `fedvox.data.readers`) raise the first,
because nothing can be said about voxels which cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fedvox.data.geometry import Volume, shear_degrees
from fedvox.data.label_space import SourceLabels
from fedvox.errors import DataError

SPACING_RANGE_MM = (0.01, 50.0)
SHEAR_LIMIT_DEGREES = 3.0
AFFINE_TOLERANCE_VOXELS = 0.1
INTEGER_TOLERANCE = 1e-3
_SAMPLE = 1 << 20  # voxels looked at to judge whether intensities are plausible
_LISTED = 8  # values or voxels named in a message


def check_image(volume: Volume, modality: str | None, num_channels: int) -> list[DataError]:
    """Everything that speaks against an image.

    Args:
        volume: (C, D, H, W) as read.
        modality: "CT" asks for plausible Hounsfield units.
        num_channels: how many the data set announces.
    """
    errors = [*_check_grid(volume), *_check_finite(volume, "image")]
    if volume.data.shape[0] != num_channels:
        errors.append(
            _error(
                volume,
                "channel_count",
                f"has {volume.data.shape[0]} channels, where the data set announces {num_channels}",
                "Correct channel_names in dataset.json, or the file.",
            )
        )
    if not any(error.code == "non_finite" for error in errors):
        errors += _check_intensities(volume, modality)
    return errors


def check_label(volume: Volume, labels: SourceLabels) -> list[DataError]:
    """Everything that speaks against a label map.

    Args:
        volume: (1, D, H, W) as read.
        labels: the values that may occur.
    """
    if volume.data.shape[0] != 1:
        found = f"is a label map of {volume.data.shape[0]} channels"
        return [_error(volume, "channel_count", found, "Give one label map with one value a structure.")]
    errors = _check_finite(volume, "label")
    if not errors:
        errors = _check_whole(volume)
    if not errors:
        errors = _check_known(volume, labels)
    return errors


def check_same_grid(first: Volume, second: Volume) -> list[DataError]:
    """Whether two volumes (an image and its label, or two channels) lie on one grid, once turned to RAS+."""
    if first.geometry.shape != second.geometry.shape:
        shapes = [" × ".join(map(str, volume.geometry.shape[::-1])) for volume in (first, second)]
        found = f"has {shapes[1]} voxels (x, y, z), {first.path} has {shapes[0]}"
        return [
            _error(second, "shape_mismatch", found, "Resample one onto the other's grid, or export it again.")
        ]
    distance = second.geometry.corner_distance_mm(first.geometry)
    if distance <= AFFINE_TOLERANCE_VOXELS * min(first.geometry.spacing_mm):
        return []
    return [
        _error(
            second,
            "affine_mismatch",
            f"lies elsewhere than {first.path}: corners are up to {distance:.2f} mm apart",
            "Copy the image's header to the label if the voxels correspond, or resample; "
            "to accept all such cases as they are, tolerate affine_mismatch.",
        )
    ]


def whole_numbers(label: np.ndarray) -> np.ndarray:
    """A label map as integers, once `check_label` found nothing: floats are rounded slice by slice.

    Shape: (D, H, W) -> (D, H, W).
    """
    if label.dtype.kind in "iu":
        return label
    whole = np.empty(label.shape, dtype=np.int32)
    for source, target in zip(label, whole, strict=True):
        np.rint(source, out=target, casting="unsafe")
    return whole


def value_counts(values: np.ndarray) -> dict[int, int]:
    """How often each integer occurs, without a sort and without a wide copy.

    Shape: (N, ...) -> value: count.
    """
    low, high = int(values.min()), int(values.max())
    if high - low >= 1 << 20:
        found, counts = np.unique(values, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))
    counts = np.zeros(high - low + 1, dtype=np.int64)
    for part in values:
        shifted = part.reshape(-1).astype(np.int64) - low
        counts += np.bincount(shifted, minlength=len(counts))
    return {int(index) + low: int(counts[index]) for index in np.flatnonzero(counts)}


# ---- images ------------------------------------------------------------------------------------------------


def _check_grid(volume: Volume) -> Iterator[DataError]:
    spacing = volume.geometry.spacing_mm
    low, high = SPACING_RANGE_MM
    if min(spacing) < low or max(spacing) > high:
        spelled = " × ".join(f"{n:g}" for n in spacing[::-1])
        yield _error(
            volume,
            "absurd_spacing",
            f"has a voxel size of {spelled} mm (x, y, z); {low:g} to {high:g} mm are expected",
            "Check the unit (metres or micrometres?) and restore the spacing from the original series.",
        )
    shear = shear_degrees(np.asarray(volume.geometry.affine))
    if shear > SHEAR_LIMIT_DEGREES:
        yield _error(
            volume,
            "sheared_affine",
            f"has axes that are {shear:.1f}° off a right angle (gantry tilt?)",
            "Resample it to a right-angled grid (dcm2niix does it on conversion), or tolerate sheared_affine.",
        )


def _check_finite(volume: Volume, kind: str) -> list[DataError]:
    if volume.data.dtype.kind != "f":
        return []
    parts = (plane for channel in volume.data for plane in channel)
    bad = sum(plane.size - int(np.isfinite(plane).sum()) for plane in parts)
    if not bad:
        return []
    found = f"holds {bad:,} voxels of NaN or Inf"
    return [_error(volume, "non_finite", found, f"Repair the {kind}, or remove the case.")]


def _check_intensities(volume: Volume, modality: str | None) -> Iterator[DataError]:
    for index, channel in enumerate(volume.data):
        where = f"channel {index}: " if len(volume.data) > 1 else ""
        if channel.min() == channel.max():
            found = f"{where}every voxel is {channel.flat[0]:g}"
            yield _error(volume, "no_contrast", found, "Remove the case, or export the image again.")
        elif modality == "CT" and (reason := _implausible_ct(channel)):
            yield _error(
                volume,
                "implausible_ct",
                f"{where}{reason}",
                "Export it in Hounsfield units (apply RescaleSlope and RescaleIntercept); for other scales set "
                "the modality to other, or tolerate implausible_ct.",
            )


def _implausible_ct(channel: np.ndarray) -> str | None:
    """Why these cannot be Hounsfield units: air is -1000, fat -100, water 0, bone up to 2000."""
    step = max(1, round((channel.size / _SAMPLE) ** (1 / 3)))
    low, high = np.percentile(channel[::step, ::step, ::step], (0.5, 99.5))
    span = f"99 % of the voxels are between {low:g} and {high:g}"
    if high - low < 150:
        return f"{span}: too little contrast for Hounsfield units, the image was normalized"
    if low > -50:
        return f"{span}: neither air nor fat, the rescale intercept was not applied"
    if low < -10_000 or high > 30_000:
        return f"{span}: beyond Hounsfield units"
    return None


# ---- labels ------------------------------------------------------------------------------------------------


def _check_whole(volume: Volume) -> list[DataError]:
    if volume.data.dtype.kind != "f":
        return []
    fractions: list[float] = []
    count = 0
    for plane in volume.data[0]:
        off = np.abs(plane - np.rint(plane)) > INTEGER_TOLERANCE
        if off.any():
            count += int(off.sum())
            fractions += np.unique(plane[off])[:_LISTED].tolist()
    if not count:
        return []
    examples = ", ".join(f"{value:g}" for value in sorted(set(fractions))[:_LISTED])
    return [
        _error(
            volume,
            "non_integer_label",
            f"holds {count:,} voxels which are no whole numbers ({examples})",
            "Resample label maps with nearest-neighbour interpolation, and store them as integers.",
        )
    ]


def _check_known(volume: Volume, labels: SourceLabels) -> list[DataError]:
    counts = value_counts(whole_numbers(volume.data[0]))
    unknown = {value: count for value, count in counts.items() if value not in labels.known_values}
    if not unknown:
        return []
    listed = ", ".join(f"{value} ({count:,} voxels)" for value, count in list(unknown.items())[:_LISTED])
    return [
        _error(
            volume,
            "unknown_label_value",
            f"holds {_plural(len(unknown), 'value')} without a name: {listed}",
            f"Name them in the data set's labels, or correct the label map. Known: {labels.describe()}.",
        )
    ]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _error(volume: Volume, code: str, found: str, remedy: str) -> DataError:
    return DataError(f"{volume.path} {found}", remedy, code=code, file=volume.path)


def split_tolerated(
    errors: Sequence[DataError], tolerate: Sequence[str]
) -> tuple[tuple[DataError, ...], tuple[DataError, ...]]:
    """The reasons to reject a case, and those which the user overruled."""
    fatal = tuple(error for error in errors if error.code not in tolerate)
    return fatal, tuple(error for error in errors if error.code in tolerate)
