"""Who judges and who teaches: simulated patients, of other kinds of lesions, other heads and other scanners.

The six kinds of lesions are parted in three ways: with each seed, two kinds are seen by nobody but the patients that
judge, so that over three seeds every kind has been an unseen one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - as its own documentation calls it

from fedvox.data.demo import load_brain
from fedvox.data.geometry import Volume
from fedvox.data.readers import read_volume
from fedvox.data.records import CaseRecord, StoreMeta
from fedvox.data.store_writer import StoreWriter
from fedvox.tracking.lesion_types import LESION_TYPES
from fedvox.tracking.registration import Quality, Registration, RegistrationConfig, register
from fedvox.tracking.series import read_scans, read_series
from fedvox.tracking.synthetic_series import SeriesOptions, simulate_patient, write_series_dataset

UNSEEN: tuple[tuple[str, str], ...] = (
    ("infiltrative", "cystic"),
    ("ring", "haemorrhagic"),
    ("enhancing", "hypointense"),
)
VISITS = 3
TEACHERS = 6  # labelled scans of the seen kinds, which every network learns from
_JUDGES_SEED, _TEACHERS_SEED = 7_000_000, 8_000_000


def unseen(seed: int) -> tuple[str, str]:
    """The kinds of lesions that only judge."""
    return UNSEEN[seed % len(UNSEEN)]


def seen(seed: int) -> tuple[str, ...]:
    """The other kinds."""
    return tuple(kind for kind in LESION_TYPES if kind not in unseen(seed))


@dataclass(frozen=True, eq=False)
class Judge:
    """A patient with the truth.

    Args:
        name: of the patient.
        scans: in order of time.
        lesions: (D, H, W) ids of each scan.
    """

    name: str
    scans: list[Volume]
    lesions: list[npt.NDArray[np.uint16]]


def judges(folder: Path, seed: int, count: int) -> list[Judge]:
    """The patients that judge a seed; simulated the first time, read from disk later.

    Args:
        folder: of the study.
        seed: of the cell.
        count: of patients.
    """
    options = SeriesOptions(patients=count, visits=VISITS, kinds=unseen(seed), seed=_JUDGES_SEED + seed)
    written = write_series_dataset(folder / "judges" / f"seed_{seed}", options)
    found = []
    for path in sorted(written.glob("patient_*")):
        series = read_series(path / "series.json")
        masks = [read_volume(str(s.mask)).data[0].astype(np.uint16) for s in series.scans]
        found.append(Judge(path.name, read_scans(series), masks))
    return found


def teachers(folder: Path, seed: int) -> str:
    """A brick store of labelled scans of the seen kinds; its labels are instance maps."""
    uri = str(folder / "teachers" / f"seed_{seed}")
    options = SeriesOptions(visits=1, lesions=(3, 6), kinds=seen(seed), seed=_TEACHERS_SEED + seed)
    names = ("background", *(f"lesion {i}" for i in range(1, options.lesions[1] + 1)))
    meta = StoreMeta("labelled", ("T1",), "MR", names, {"all": tuple(range(len(names)))}, "zscore")
    writer = StoreWriter.create(uri, meta)
    for number in range(TEACHERS):
        if writer.finished(f"teacher_{number}") is None:
            _teach(writer, options, number)
    writer.finish(meta)
    return uri


def _teach(writer: StoreWriter, options: SeriesOptions, number: int) -> CaseRecord:
    visit = simulate_patient(options, number, _brain()).visits[0]
    image = np.rint(visit.image).astype(np.int16)[None]
    return writer.add_case(
        f"teacher_{number}", image, visit.lesions.astype(np.uint8), source="simulated", label_set="all",
        spacing_mm=visit.spacing_mm,
    )  # fmt: skip


@cache
def _brain() -> Any:
    return load_brain()


@dataclass(frozen=True)
class KeptRegistrations:
    """Registers as usual, and keeps what it found, because every method follows the same scans.

    Args:
        folder: for transforms.
    """

    folder: Path

    def __call__(self, fixed: Volume, moving: Volume, config: RegistrationConfig) -> Registration:
        """See `fedvox.tracking.registration.register`."""
        names = ["-".join(Path(v.path).parts[-3:]).replace(".nii.gz", "") for v in (fixed, moving)]
        stem = self.folder / f"{names[0]}-from-{names[1]}-{config.stage}"
        transform, quality = stem.with_suffix(".tfm"), stem.with_suffix(".txt")
        if not quality.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            found = register(fixed, moving, config)
            sitk.WriteTransform(found.transform, str(transform))
            values = [found.quality.overlap, found.quality.correlation, found.quality.volume_ratio]
            text = " ".join(map(repr, (*values, found.quality.residual_mm)))
            quality.write_text(text, encoding="utf-8")
        numbers = [float(x) for x in quality.read_text(encoding="utf-8").split()]
        return Registration(sitk.ReadTransform(str(transform)), Quality(*numbers), moving.geometry)
