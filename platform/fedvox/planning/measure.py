"""Measures a raw data set for planning, before anything of it is stored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from fedvox.data.case_volumes import CaseRejected, read_case
from fedvox.data.fingerprint import CaseFingerprint, DatasetFingerprint, join_fingerprints, sample_case
from fedvox.data.ignore import is_foreground
from fedvox.data.label_space import LabelSpace, SourceLabels, join_labels
from fedvox.data.raw_dataset import RawCase
from fedvox.data.sources import JoinedSources
from fedvox.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rules:
    """How the cases are read: as for an ingest that crops to nonzero voxels."""

    space: LabelSpace
    label_sets: Mapping[str, SourceLabels]
    crop_to_nonzero: bool = True
    tolerate: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """A measured data set.

    Attributes:
        fingerprint: of all cases that can be used.
        num_labels: background included.
        case_ids: of these cases, sorted.
    """

    fingerprint: DatasetFingerprint
    num_labels: int
    case_ids: tuple[str, ...]


def measure_sources(sources: JoinedSources) -> Measured:
    """Measures all cases that can be used; the others are named in the log.

    Raises:
        DataError: none can be used; the first reasons are told.
    """
    space = join_labels(sources.label_sets, None)
    rules = _Rules(space, sources.label_sets)
    prints: list[CaseFingerprint] = []
    refused: list[DataError] = []
    for number, case in enumerate(sources.cases, start=1):
        log.info("measuring %d of %d: %s", number, len(sources.cases), case.case_id)
        try:
            prints.append(_measure(case, rules))
        except CaseRejected as error:
            refused += error.errors
            log.warning("left out: %s", error.errors[0].message)
    if not prints:
        raise refused[0] if refused else DataError("the data set has no case", "Add some.", code="no_case")
    case_ids = tuple(sorted(case.case_id for case in prints))
    return Measured(join_fingerprints(prints), len(space.structures), case_ids)


def _measure(case: RawCase, rules: _Rules) -> CaseFingerprint:
    volumes = read_case(case, rules)
    inside = None if volumes.label is None else is_foreground(volumes.label)
    foreground, whole = sample_case(volumes.image, inside)
    return CaseFingerprint(
        case.case_id,
        volumes.geometry.shape,
        volumes.full_shape,
        volumes.geometry.spacing_mm,
        foreground,
        () if foreground else whole,
    )
