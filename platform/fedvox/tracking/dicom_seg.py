"""Lesions as a DICOM segmentation object (DICOM-SEG) of the series that they were found on, through highdicom.

Every lesion is a segment; it is called "Lesion 3", and its tracking id is the same in every scan of a patient, so that
a viewer shows the same lesion as the same. Only scans that came as DICOM have the series that such an object refers to.
"""

from __future__ import annotations

import io
import uuid
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes

import fedvox
from fedvox.data.geometry import Volume
from fedvox.errors import DataError
from fedvox.storage import locate, write_atomic

_MANUFACTURER = "Fedvox"


def write_dicom_seg(
    labels: npt.NDArray[np.integer[Any]], scan: Volume, path: Path, *, algorithm: str
) -> None:
    """Writes a segmentation object, atomically.

    Args:
        labels: (D, H, W) ids on the scan's RAS+ grid.
        scan: read from the folder of a DICOM series, on disk.
        path: ends in `.dcm`.
        algorithm: what segmented the lesions, such as "random-walker".

    Raises:
        DataError: the scan is no DICOM series (not_dicom), or holds no lesion (empty_prompt).
    """
    sources = _sources(scan)
    ids = [int(i) for i in np.unique(labels) if i]
    if not ids:
        raise DataError(
            f"{scan.path} has no lesion for a DICOM segmentation", "Leave it out.", code="empty_prompt"
        )
    stored = scan.geometry.to_file(labels).transpose(2, 1, 0)  # slices, rows, columns of the series
    masks = np.stack([stored == lesion for lesion in ids], axis=-1).astype(np.uint8)
    series = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=masks,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(n, i, sources[0], algorithm) for n, i in enumerate(ids, 1)],
        series_instance_uid=hd.UID(),
        series_number=900,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=_MANUFACTURER,
        manufacturer_model_name="fedvox lesion",
        software_versions=fedvox.__version__,
        device_serial_number="0",
        series_description="Lesions",
    )
    buffer = io.BytesIO()
    series.save_as(buffer)
    write_atomic(locate(str(path)), buffer.getvalue())


def _segment(number: int, lesion: int, source: Any, algorithm: str) -> Any:
    tracking = hd.UID.from_uuid(_uuid(str(source.PatientID), lesion))
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=f"Lesion {lesion}",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm, version=fedvox.__version__, family=codes.DCM.ArtificialIntelligence
        ),
        tracking_uid=tracking,
        tracking_id=f"Lesion {lesion}",
    )


def _uuid(patient: str, lesion: int) -> str:
    """The same for the same lesion of the same patient, in every scan."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"fedvox lesion {patient} {lesion}"))


def _sources(scan: Volume) -> list[Any]:
    """The slices of the series, in the order of the volume as the reader stacked it."""
    folder = Path(scan.path)
    found = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except (InvalidDicomError, OSError):
            continue
        if "ImagePositionPatient" in header and "PixelSpacing" in header:
            found.append(header)
    count = scan.geometry.file_shape[2]
    if len(found) != count:
        raise DataError(
            f"{scan.path} is no local DICOM series of {count} slices, to which a segmentation could refer",
            "Give the scan as a folder of DICOM slices, or leave --dicom-seg out.",
            code="not_dicom",
            file=scan.path,
        )
    normal = np.asarray(scan.geometry.file_affine)[:3, 2] * [-1, -1, 1]
    return sorted(found, key=lambda h: float(np.dot(normal, np.asarray(h.ImagePositionPatient, dtype=float))))
