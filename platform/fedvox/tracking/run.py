"""From files to files: segment one image, follow lesions through a series, measure masks that exist.

OUT/scan_00_lesions.nii.gz    instances on the scan's grid: the same id is the same lesion in every scan
OUT/scan_00_lesions.dcm       the same as DICOM-SEG, where asked for
OUT/lesions.csv, response.csv, lesions.json, report.html
OUT/states/                   what a scan needs of its neighbour to be done again alone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedvox import __version__
from fedvox.benchmark.volumes import write_text
from fedvox.data.geometry import Volume
from fedvox.data.readers import read_volume
from fedvox.errors import ConfigError, DataError
from fedvox.tracking.observers import prompted
from fedvox.tracking.prompt_files import CoordinateSpace, LabelKind, masks_of, read_prompts
from fedvox.tracking.prompts import Mask, Prompt
from fedvox.tracking.qc_page import qc_page
from fedvox.tracking.registration import QualityGate, RegistrationConfig, Stage
from fedvox.tracking.segmenters import Request, Segmenter, unprompted
from fedvox.tracking.series import Series, read_scans, read_series
from fedvox.tracking.state_files import read_state, write_map, write_state
from fedvox.tracking.step_cache import StepCache
from fedvox.tracking.table import NOTHING_SAID, LesionTable, Reading, lesion_table, write_tables
from fedvox.tracking.track import Anchor, Tracker, TrackState, step, track

Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class TrackOptions:
    """How a series is followed.

    Args:
        start: index of the scan whose marks begin; None is the first that has any.
        corrections: indices of further scans whose marks rule.
        detect: look for new lesions without a prompt.
        stage: of registration.
        accept_poor_registration: follow scans that the quality gate would refuse.
        reading: what a reader says of the lesions.
        dicom_seg: write DICOM segmentation objects too.
    """

    start: int | None = None
    corrections: tuple[int, ...] = ()
    detect: bool = False
    stage: Stage = "deformable"
    accept_poor_registration: bool = False
    reading: Reading = field(default_factory=Reading)
    dicom_seg: bool = False

    def tracker(self, segment: Segmenter, cache: StepCache | None = None) -> Tracker:
        """As the library wants it.

        Args:
            segment: the method.
            cache: of steps that were done already.
        """
        return Tracker(
            prompted(segment, detect=unprompted if self.detect else None),
            registration=RegistrationConfig(stage=self.stage),
            gate=None if self.accept_poor_registration else QualityGate(),
            cache=cache,
        )


def segment_prompts(
    segment: Segmenter, image: Volume, prompts: Mapping[int, Sequence[Prompt]]
) -> npt.NDArray[np.uint16]:
    """Every marked lesion of an image; where two claim a voxel, the one that was marked by the smaller mask has it.

    Args:
        segment: the method.
        image: (1, D, H, W).
        prompts: lesion id -> prompts, checked.

    Returns:
        (D, H, W) ids.
    """
    found = {
        lesion: segment(Request(image.data[0], image.geometry.spacing_mm, tuple(given)))
        for lesion, given in prompts.items()
    }
    labels = np.zeros(image.geometry.shape, dtype=np.uint16)
    for lesion in sorted(found, key=lambda i: (-np.count_nonzero(found[i]), i)):
        labels[found[lesion]] = lesion
    return labels


def segment_image(
    image_uri: str,
    prompts_uri: str,
    output: Path,
    segment: Segmenter,
    *,
    method: str,
    space: CoordinateSpace | None = None,
    labels: LabelKind = "instance",
    reading: Reading = NOTHING_SAID,
    dicom_seg: bool = False,
) -> dict[str, Any]:
    """Segments the marked lesions of one image.

    Args:
        image_uri: NIfTI file or DICOM folder.
        prompts_uri: see `read_prompts`.
        output: folder.
        segment: the method.
        method: its name.
        space: see `read_prompts`.
        labels: see `read_prompts`.
        reading: what a reader says of the lesions.
        dicom_seg: write a DICOM segmentation object too.

    Returns:
        A summary.

    Raises:
        DataError: see `read_volume`, `read_prompts`, `write_dicom_seg`.
    """
    image = read_volume(image_uri)
    prompts = read_prompts(prompts_uri, image, space=space, labels=labels)
    found = segment_prompts(segment, image, prompts)
    series = Series.model_validate({"patient": "", "scans": [{"image": image_uri, "day": 0}]})
    table = lesion_table([found], [image], [0.0], reading=reading)
    _write_scan(output, 0, found, image, algorithm=method, dicom_seg=dicom_seg)
    _write_report(output, series, [image], [found], table, method, [])
    missing = sorted(set(prompts) - {row.lesion for row in table.rows})
    return {"lesions": len(table.rows), "not_found": missing, "output": str(output)}


def track_series(
    path: Path,
    output: Path,
    segment: Segmenter,
    options: TrackOptions,
    *,
    method: str,
    on_step: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Follows the lesions of a series, and writes everything. Cut short and started again, it goes on.

    Args:
        path: of the series (see `fedvox.tracking.series`).
        output: folder.
        segment: the method.
        options: how.
        method: the segmenter's name.
        on_step: told the index of each scan that is done.

    Returns:
        A summary.

    Raises:
        ConfigError: see `read_series`; a scan is named that has no marks.
        DataError: see `read_series`, `read_prompts` and `track`.
    """
    series = read_series(path)
    scans = read_scans(series)
    anchors = _anchors(series, scans, segment, options)
    given = (options.detect, options.stage, options.accept_poor_registration)
    cache = StepCache(
        output / "states" / "unfinished", f"{__version__} {method} {_fingerprint(method)} {given}"
    )
    states = track(scans, anchors, options.tracker(segment, cache), on_step=on_step)
    for index, (state, scan) in enumerate(zip(states, scans, strict=True)):
        _write_scan(output, index, state.lesions, scan, algorithm=method, dicom_seg=options.dicom_seg)
        write_state(output, index, state, scan)
    found = _finish(output, series, scans, states, options, method)
    cache.clear()
    return found


def track_one(
    path: Path, output: Path, segment: Segmenter, options: TrackOptions, index: int, *, method: str
) -> dict[str, Any]:
    """Does one scan of a finished series again, from the state of its neighbour, and writes it and the tables.

    Args:
        path: see `track_series`.
        output: folder of the finished series.
        segment: see `track_series`.
        options: see `track_series`.
        index: of the scan.
        method: see `track_series`.

    Raises:
        ConfigError: the output holds no finished series, or the scan was marked by a reader.
    """
    series = read_series(path)
    scans = read_scans(series)
    states = [read_state(output, i, scan) for i, scan in enumerate(scans)]
    if not 0 <= index < len(scans) or states[index].direction == "marked":
        raise ConfigError(
            f"--only {index}: the series has {len(scans)} scans, and those that a reader marked are not computed",
            "Name a scan that was followed to.",
        )
    direction: Literal["forward", "backward"] = (
        "forward" if states[index].direction == "forward" else "backward"
    )
    known = index - 1 if direction == "forward" else index + 1
    states[index] = step(
        states[known],
        scans[known],
        scans[index],
        options.tracker(segment),
        direction=direction,
    )
    _write_scan(
        output, index, states[index].lesions, scans[index], algorithm=method, dicom_seg=options.dicom_seg
    )
    write_state(output, index, states[index], scans[index])
    return _finish(output, series, scans, states, options, method)


def measure_series(path: Path, output: Path, *, reading: Reading = NOTHING_SAID) -> dict[str, Any]:
    """Tables and page of a series whose masks exist, with the same id for the same lesion.

    Args:
        path: of the series; every scan has a mask.
        output: folder.
        reading: what a reader says of the lesions.

    Raises:
        ConfigError: a scan has no mask.
        DataError: see `read_series` and `masks_of`.
    """
    series = read_series(path)
    scans = read_scans(series)
    found = []
    for scan, image in zip(series.scans, scans, strict=True):
        if scan.mask is None:
            raise ConfigError(f"{path}: {scan.image} has no mask", "Add one, or use `fedvox lesion track`.")
        found.append(_labels_of(read_volume(scan.mask), image))
    table = lesion_table(found, scans, series.days(), reading=reading)
    _write_report(output, series, scans, found, table, "given masks", [])
    return _summary(output, table)


def _fingerprint(method: str) -> str:
    """Of a network in a local folder: another one in the same place is another method."""
    folder = Path(method)
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    return " ".join(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)


# ---- parts ---------------------------------------------------------------------------------------------------


def _labels_of(mask: Volume, image: Volume) -> npt.NDArray[np.uint16]:
    """Instances of a map that may be empty: a scan on which every lesion is gone."""
    if not mask.data.any() and mask.geometry.shape == image.geometry.shape:
        return np.zeros(image.geometry.shape, dtype=np.uint16)
    return _painted(masks_of(mask, image), image)


def _painted(prompts: Mapping[int, Sequence[Prompt]], image: Volume) -> npt.NDArray[np.uint16]:
    labels = np.zeros(image.geometry.shape, dtype=np.uint16)
    for lesion, given in prompts.items():
        for prompt in given:
            if isinstance(prompt, Mask):
                labels[prompt.volume] = lesion
    return labels


def _anchors(
    series: Series, scans: Sequence[Volume], segment: Segmenter, options: TrackOptions
) -> dict[int, Anchor]:
    marked = [i for i, scan in enumerate(series.scans) if scan.mask or scan.prompts]
    if not marked:
        raise DataError(
            "no scan of the series has marked lesions", "Give one a mask or prompts.", code="no_prompt"
        )
    wanted = {marked[0] if options.start is None else options.start, *options.corrections}
    for index in sorted(wanted - set(marked)):
        raise ConfigError(
            f"scan {index} has neither mask nor prompts", f"Scans with marks: {', '.join(map(str, marked))}."
        )
    anchors = {}
    for index in sorted(wanted):
        scan, image = series.scans[index], scans[index]
        if scan.mask is not None:
            anchors[index] = Anchor(_painted(read_prompts(scan.mask, image), image))
        else:
            assert scan.prompts is not None  # it is marked
            anchors[index] = Anchor(segment_prompts(segment, image, read_prompts(scan.prompts, image)))
    return anchors


def _finish(
    output: Path,
    series: Series,
    scans: Sequence[Volume],
    states: Sequence[TrackState],
    options: TrackOptions,
    method: str,
) -> dict[str, Any]:
    labels = [state.lesions for state in states]
    forward = [state.events if state.direction == "forward" else () for state in states]
    table = lesion_table(labels, scans, series.days(), events=forward, reading=options.reading)
    fits = [
        f"scan {i}: overlap {s.quality.overlap:.3f}, correlation {s.quality.correlation:.2f}, "
        f"deformation {s.quality.residual_mm:.1f} mm"
        for i, s in enumerate(states)
        if s.quality is not None
    ]
    _write_report(output, series, scans, labels, table, method, fits)
    return _summary(output, table)


def _summary(output: Path, table: LesionTable) -> dict[str, Any]:
    return {
        "lesions": len({row.lesion for row in table.rows}),
        "scans": len({row.scan for row in table.rows}),
        "responses": [str(a.response) for a in table.responses],
        "rules": [a.rule for a in table.responses],
        "output": str(output),
    }


def _write_report(
    output: Path,
    series: Series,
    scans: Sequence[Volume],
    labels: Sequence[Labels],
    table: LesionTable,
    method: str,
    fits: Sequence[str],
) -> None:
    about = {
        "patient": series.patient,
        "method": method,
        "scans": [scan.model_dump(mode="json") for scan in series.scans],
    }
    write_tables(output, table, about=about)
    title = f"Lesions of {series.patient}" if series.patient else "Lesions"
    page = qc_page(title, f"Segmented by: {method}.", scans, labels, table, fits=fits)
    write_text(output / "report.html", page)


def _write_scan(
    output: Path, index: int, labels: Labels, scan: Volume, *, algorithm: str, dicom_seg: bool
) -> None:
    write_map(labels, scan, output / f"scan_{index:02d}_lesions.nii.gz")
    if dicom_seg and labels.any():
        from fedvox.tracking.dicom_seg import write_dicom_seg  # highdicom takes seconds to import

        write_dicom_seg(labels, scan, output / f"scan_{index:02d}_lesions.dcm", algorithm=algorithm)
