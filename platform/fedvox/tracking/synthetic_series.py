"""Patients with many visits: simulated lesions in the MNI152 brain, each visit another day at the scanner.

    write_series_dataset("lesions", SeriesOptions(patients=4, visits=3))

    lesions/dataset.json                options, kinds of lesions, versions, the template's notice; written last
    lesions/patient_001/series.json     scans by date, as `fedvox lesion track` reads them
    lesions/patient_001/truth.json      events, volumes, kinds, courses and every parameter of every visit
    lesions/patient_001/scan_00.nii.gz  lesions_00.nii.gz: the same id is the same lesion at every visit

Every patient's head is another deformation of the template. Between the visits of a patient the lesions take their
course (growing, shrinking, stable, vanishing, dying from the middle, breaking in two; others appear), the head lies
otherwise in the scanner and is slightly deformed, and the scanner may have another coil, noise, contrast and slice
thickness. The same options give the same bytes.
"""

from __future__ import annotations

import datetime
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import map_coordinates

import fedvox
from fedvox.data.demo import NOTICE, load_brain
from fedvox.data.resample import resample_label
from fedvox.data.simulated_scanner import Acquisition, Head, acquire, deformed_grid, scan, with_spacing
from fedvox.errors import ConfigError
from fedvox.storage import sync_folder
from fedvox.tracking.lesion_scan import LesionScan
from fedvox.tracking.lesion_types import LESION_TYPES, lesion_type
from fedvox.tracking.synthetic import (
    Change,
    FollowUp,
    NewLesion,
    TrueEvent,
    follow_up,
    insert_lesion,
)

COURSES = ("growing", "shrinking", "stable", "vanishing", "dying", "breaking")
_FIRST_DAY = datetime.date(2024, 1, 8)
_BRAIN = 0.05  # intensity above which the skull-stripped template is brain
_TISSUE = 0.25  # probability of gray or white matter above which a lesion may be there


@dataclass(frozen=True)
class SeriesOptions:
    """What a data set of simulated patients consists of.

    Args:
        patients: number of them.
        visits: scans of each.
        lesions: fewest and most at the first visit.
        radius_mm: smallest and largest at the first visit.
        kinds: of lesions; leave some out to have unseen ones.
        resolution_mm: in-plane voxel size, 1 to 4.
        scanner_changes: visits differ in coil, noise, contrast and slice thickness.
        seed: of everything random.
    """

    patients: int = 4
    visits: int = 3
    lesions: tuple[int, int] = (2, 4)
    radius_mm: tuple[float, float] = (5.0, 11.0)
    kinds: tuple[str, ...] = tuple(LESION_TYPES)
    resolution_mm: float = 2.0
    scanner_changes: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for kind in self.kinds:
            lesion_type(kind)
        low, high = self.lesions
        if self.patients < 1 or self.visits < 1 or not 1 <= low <= high or not self.kinds:
            raise ConfigError(
                f"{self} describes no patient", "Give at least one patient, visit, lesion and kind."
            )
        if not 1 <= self.resolution_mm <= 4 or not 0 < self.radius_mm[0] <= self.radius_mm[1]:
            raise ConfigError(
                f"resolution_mm is {self.resolution_mm:g} and radius_mm {self.radius_mm}",
                "Give 1 to 4 mm, and a range of radii from small to large.",
            )


@dataclass(frozen=True, eq=False)
class Visit:
    """One scan of a simulated patient.

    Args:
        day: since the first visit.
        image: (D, H, W) float32, as the scanner delivers it.
        lesions: (D, H, W) uint16 ids, the exact truth on the image's grid.
        spacing_mm: (D, H, W).
        origin_mm: (x, y, z) of the first voxel's centre, RAS+.
        events: since the visit before.
        acquisition: how it was scanned.
    """

    day: int
    image: np.ndarray
    lesions: np.ndarray
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    events: tuple[TrueEvent, ...]
    acquisition: Acquisition


@dataclass(frozen=True, eq=False)
class Patient:
    """A simulated patient.

    Args:
        name: of the patient.
        visits: by day.
        kinds: lesion id -> kind, for those that were painted in.
        courses: lesion id -> course.
    """

    name: str
    visits: tuple[Visit, ...]
    kinds: dict[int, str]
    courses: dict[int, str]


def simulate_patient(options: SeriesOptions, number: int, brain: Head | None = None) -> Patient:
    """One patient of a data set, a pure function of options and number.

    Args:
        options: of the data set.
        number: of the patient, from 0.
        brain: the template, if it is at hand (`load_brain`).
    """
    rng = np.random.Generator(np.random.Philox(key=[options.seed, 7919 + number]))
    anatomy = patient_anatomy(brain or load_brain(), options, number, rng)
    kinds: dict[int, str] = {}
    for _ in range(int(rng.integers(options.lesions[0], options.lesions[1] + 1))):
        new = _drawn_lesion(options, rng)
        anatomy, did = insert_lesion(anatomy, new, len(kinds) + 1, rng)
        if did:
            kinds[len(kinds) + 1] = str(new.kind)
    courses = {lesion: COURSES[int(rng.integers(len(COURSES)))] for lesion in kinds}
    visits: list[Visit] = []
    day, next_id = 0, len(kinds) + 1
    events: tuple[TrueEvent, ...] = ()
    for index in range(options.visits):
        if index:
            days = int(rng.integers(40, 120))
            day += days
            news = [_drawn_lesion(options, rng)] if rng.random() < 0.4 else []
            changes = {i: _change(courses.get(i, "stable"), days, index, rng) for i in anatomy.ids}
            later: FollowUp = follow_up(anatomy, changes, news, rng, first_new_id=next_id)
            anatomy, events = later.scan, later.events
            appeared = [e.lesion for e in events if e.kind == "appeared"]
            kinds |= {lesion: str(new.kind) for lesion, new in zip(appeared, news, strict=False)}
            next_id = max([next_id, *(e.lesion + 1 for e in events if e.kind in ("appeared", "split"))])
        visits.append(_scanned(anatomy, day, events, _acquisition(options, number, index, rng)))
    return Patient(f"patient_{number + 1:03d}", tuple(visits), kinds, courses)


def _drawn_lesion(options: SeriesOptions, rng: np.random.Generator) -> NewLesion:
    kind = options.kinds[int(rng.integers(len(options.kinds)))]
    radius = float(rng.uniform(*options.radius_mm))
    return NewLesion(kind, 4 / 3 * np.pi * radius**3)


def _change(course: str, days: int, index: int, rng: np.random.Generator) -> Change:
    contrast = float(rng.uniform(0.85, 1.15))
    doubling = float(rng.uniform(60, 200))
    if course == "growing":
        return Change(volume=min(3.0, 2 ** (days / doubling)), contrast=contrast)
    if course == "shrinking":
        return Change(volume=max(0.2, 2 ** (-days / doubling)), contrast=contrast)
    if course == "dying":
        return Change(volume=float(rng.uniform(0.9, 1.2)), necrosis=float(rng.uniform(0.2, 0.5)))
    if course == "vanishing":
        return Change(volume=0.0 if rng.random() < 0.5 else 0.5)
    if course == "breaking" and index == 1:
        return Change(volume=float(rng.uniform(0.8, 1.2)), splits=True)
    return Change(volume=float(rng.uniform(0.9, 1.1)), contrast=contrast)


def patient_anatomy(brain: Head, options: SeriesOptions, number: int, rng: np.random.Generator) -> LesionScan:
    """The patient's own head: the template deformed once, without a scanner's traces."""
    depth, height, width = (float(s) for s in rng.uniform(0.93, 1.07, 3))
    shaped = replace(
        _acquisition(options, number, 0, rng),
        rotation_degrees=(0.0, 0.0, 0.0),
        scale=(depth, height, width),
        deformation_mm=float(rng.uniform(2.0, 3.5)),
        slice_mm=options.resolution_mm,
    )
    head, _ = acquire(with_spacing(brain, (options.resolution_mm,) * 3), shaped)
    tissue = (head.t1 > _BRAIN) & (head.gray + head.white > _TISSUE)
    image = head.t1.astype(np.float32)
    return LesionScan(image, np.zeros(image.shape, np.uint16), tissue, head.spacing_mm, head.origin_mm)


def _acquisition(options: SeriesOptions, number: int, index: int, rng: np.random.Generator) -> Acquisition:
    """How the head lies in the scanner at a visit, and which scanner it is."""
    change = options.scanner_changes and index > 0
    rotation = tuple(float(r) for r in rng.uniform(-6, 6, 3)) if index else (0.0, 0.0, 0.0)
    thick = change and rng.random() < 0.3
    return Acquisition(
        case_id=f"visit_{index:02d}",
        site=f"scanner_{int(rng.integers(3)) if change else 0}",
        rotation_degrees=(rotation[0], rotation[1], rotation[2]),
        scale=(1.0, 1.0, 1.0),
        deformation_mm=float(rng.uniform(0.4, 1.2)) if index else 0.0,
        bias=float(rng.uniform(0.1, 0.35)) if change else 0.1,
        gamma=float(rng.uniform(0.8, 1.25)) if change else 1.0,
        contrast=float(rng.uniform(0.8, 1.2)) if change else 1.0,
        noise=float(rng.uniform(0.02, 0.05)) if change else 0.02,
        noise_kind="rician",
        slice_mm=2 * options.resolution_mm if thick else options.resolution_mm,
        gain=float(rng.uniform(300, 1500)) if change else 800.0,
        orientation="RAS",
        key=(options.seed, (number + 1) * 1_000 + index),
    )


def _scanned(anatomy: LesionScan, day: int, events: tuple[TrueEvent, ...], acquisition: Acquisition) -> Visit:
    rng = np.random.Generator(np.random.Philox(key=list(acquisition.key), counter=[0, 0, 0, 1]))
    grid = deformed_grid(anatomy.image.shape, anatomy.spacing_mm, acquisition, rng)
    t1 = map_coordinates(anatomy.image, grid, order=1, mode="constant")
    lesions = map_coordinates(anatomy.lesions, grid, order=0, mode="constant")
    head = Head(t1, t1, t1, anatomy.spacing_mm, anatomy.origin_mm)
    spacing = (acquisition.slice_mm, *anatomy.spacing_mm[1:])
    if spacing != anatomy.spacing_mm:
        head = with_spacing(head, spacing)
        kept = round(head.t1.shape[0] * spacing[0] / anatomy.spacing_mm[0])
        lesions = resample_label(lesions[:kept], head.t1.shape)
    image = scan(head.t1, acquisition, rng).astype(np.float32)
    return Visit(day, image, lesions, head.spacing_mm, head.origin_mm, events, acquisition)


# ---- on disk -------------------------------------------------------------------------------------------------


def write_series_dataset(folder: Path | str, options: SeriesOptions) -> Path:
    """Writes the data set; patients that are whole are kept, so that a cut-short run goes on.

    Args:
        folder: of the data set.
        options: what it consists of.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds another data set, or the template is not installed.
    """
    target = Path(folder)
    described = _described(options)
    plan = target / "options.json"
    if target.exists() and (not plan.is_file() or json.loads(plan.read_text(encoding="utf-8")) != described):
        raise ConfigError(
            f"{target} exists and is no data set with these options", "Delete it, or name another folder."
        )
    target.mkdir(parents=True, exist_ok=True)
    _write_json(plan, described)
    brain: Head | None = None
    for number in range(options.patients):
        if (target / f"patient_{number + 1:03d}").is_dir():
            continue
        brain = brain or load_brain()
        _write_patient(target, simulate_patient(options, number, brain))
    _write_json(
        target / "dataset.json", {**described, "patients": sorted(p.name for p in target.glob("patient_*"))}
    )
    return target


def _described(options: SeriesOptions) -> dict[str, Any]:
    text = json.dumps({"options": asdict(options), "fedvox": fedvox.__version__, "notice": NOTICE})
    described: dict[str, Any] = json.loads(text)  # lists for tuples, as it will be read
    return described


def _write_patient(target: Path, patient: Patient) -> None:
    draft = target / f".{patient.name}.{secrets.token_hex(4)}.tmp"
    draft.mkdir()
    try:
        scans = [_write_visit(draft, index, visit) for index, visit in enumerate(patient.visits)]
        _write_json(draft / "series.json", {"patient": patient.name, "modality": "MR", "scans": scans})
        _write_json(draft / "truth.json", _truth(patient))
        draft.rename(target / patient.name)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(target)


def _write_visit(draft: Path, index: int, visit: Visit) -> dict[str, str]:
    affine = np.diag([*visit.spacing_mm[::-1], 1.0])
    affine[:3, 3] = visit.origin_mm
    whole = np.clip(np.rint(visit.image), 0, np.iinfo(np.int16).max).astype(np.int16)
    names = {"image": f"scan_{index:02d}.nii.gz", "mask": f"lesions_{index:02d}.nii.gz"}
    for name, volume in zip(names.values(), (whole, visit.lesions.astype(np.uint16)), strict=True):
        written = nib.Nifti1Image(volume.transpose(2, 1, 0), affine)
        written.header.set_xyzt_units("mm")
        nib.save(written, draft / name)
    return {**names, "date": (_FIRST_DAY + datetime.timedelta(days=visit.day)).isoformat()}


def _truth(patient: Patient) -> dict[str, Any]:
    return {
        "patient": patient.name,
        "kinds": patient.kinds,
        "courses": patient.courses,
        "visits": [
            {
                "day": visit.day,
                "events": [asdict(event) for event in visit.events],
                "volume_mm3": dict(_volumes(visit)),
                "acquisition": asdict(visit.acquisition),
            }
            for visit in patient.visits
        ],
    }


def _volumes(visit: Visit) -> Iterator[tuple[int, float]]:
    ids, counts = np.unique(visit.lesions, return_counts=True)
    for lesion, count in zip(ids.tolist(), counts.tolist(), strict=True):
        if lesion:
            yield lesion, round(count * float(np.prod(visit.spacing_mm)), 3)


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
