"""Simulated hospitals: one store's patients dealt to sites, alike or unalike, the same for the same seed.

    cases = read_cases(store)
    hospitals = partition(cases, PartitionPlan(kind="labels", hospitals=8, alpha=0.3, seed=1))
    hospitals["hospital_03"]        # rows of the store

    iid             equal numbers of patients, at random
    sizes           numbers of patients from a Dirichlet distribution
    labels          each group's patients spread by a Dirichlet distribution of its own (Hsu et al. 2019, arXiv
                    1909.06335); groups are quartiles of the annotated volume, or the structure with most voxels
    acquisition     every hospital has one source (scanner) of the store

A patient is never in two hospitals: the federation's ε would no longer be the largest of the sites' but their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedvox.data.store import BrickStore
from fedvox.errors import ConfigError

Kind = Literal["iid", "sizes", "labels", "acquisition"]
Grouping = Literal["volume", "dominant"]
Hospitals = dict[str, tuple[int, ...]]
_QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Cases:
    """What a partition looks at, one entry a row of the store.

    Attributes:
        patients: whose case it is.
        sources: where it comes from.
        volumes: annotated voxels that are not background.
        dominant: the structure with most voxels, 0 where nothing is annotated.
    """

    patients: tuple[str, ...]
    sources: tuple[str, ...]
    volumes: tuple[int, ...]
    dominant: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.patients)


@dataclass(frozen=True)
class PartitionPlan:
    """How to deal.

    Attributes:
        kind: see the module.
        hospitals: how many.
        seed: of all random choices.
        alpha: of the Dirichlet distributions: 100 is nearly alike, 0.1 very unalike.
        group_by: for kind `labels`.
        least_patients: that every hospital gets; taken from the largest where chance gives fewer.
    """

    kind: Kind
    hospitals: int
    seed: int = 0
    alpha: float = 0.5
    group_by: Grouping = "volume"
    least_patients: int = 1

    def __post_init__(self) -> None:
        if self.hospitals < 1 or self.least_patients < 1:
            raise ConfigError("hospitals and least_patients must be at least 1")
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"alpha is {self.alpha}, not a finite number above 0")
        if self.kind not in _DEALERS:
            raise ConfigError(f"there is no kind of partition {self.kind!r}", f"Use {', '.join(_DEALERS)}.")
        if self.group_by not in ("volume", "dominant"):
            raise ConfigError(f"there is no grouping {self.group_by!r}", "Use volume, or dominant.")


def read_cases(store: BrickStore, patient_of: Callable[[str], str] = str) -> Cases:
    """What a partition needs to know of a store.

    Args:
        store: any.
        patient_of: case id -> patient, where a patient has several cases; by default each is a patient.
    """
    records = [store.record(i) for i in range(len(store))]
    known = range(1, len(store.meta.structures))  # neither background nor what nobody judged
    structures = [{k: n for k, n in one.class_voxels.items() if k in known and n > 0} for one in records]
    return Cases(
        patients=tuple(patient_of(one.case_id) for one in records),
        sources=tuple(one.source for one in records),
        volumes=tuple(sum(found.values()) for found in structures),
        dominant=tuple(max(found, key=lambda k: (found[k], -k), default=0) for found in structures),
    )


def partition(cases: Cases, plan: PartitionPlan) -> Hospitals:
    """Deal all cases to hospitals, patient by patient.

    Returns:
        `hospital_01`, … -> rows of the store, ascending; together all rows, each once.

    Raises:
        ConfigError: fewer patients than hospitals need.
    """
    patients = _rows_of_patients(cases)
    needed = plan.hospitals * plan.least_patients
    if len(patients) < needed:
        raise ConfigError(
            f"{plan.hospitals} hospitals of at least {plan.least_patients} need {needed} patients; there are "
            f"{len(patients)}",
            "Take fewer hospitals.",
        )
    rng = np.random.Generator(np.random.Philox(plan.seed))
    dealt = _DEALERS[plan.kind](cases, list(patients.values()), plan, rng)
    _fill_up(dealt, plan.least_patients)
    names = list(patients)
    width = max(2, len(str(plan.hospitals)))
    return {
        f"hospital_{number:0{width}}": tuple(sorted(row for p in whose for row in patients[names[p]]))
        for number, whose in enumerate(dealt, start=1)
    }


def _rows_of_patients(cases: Cases) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(cases.patients):
        rows.setdefault(patient, []).append(row)
    return rows


Dealt = list[list[int]]
"""Per hospital, the numbers of its patients."""


def _iid(
    _cases: Cases, patients: Sequence[list[int]], plan: PartitionPlan, rng: np.random.Generator
) -> Dealt:
    order = rng.permutation(len(patients))
    return [[int(p) for p in part] for part in np.array_split(order, plan.hospitals)]


def _sizes(
    _cases: Cases, patients: Sequence[list[int]], plan: PartitionPlan, rng: np.random.Generator
) -> Dealt:
    return _spread([int(p) for p in rng.permutation(len(patients))], plan, rng)


def _labels(
    cases: Cases, patients: Sequence[list[int]], plan: PartitionPlan, rng: np.random.Generator
) -> Dealt:
    dealt: Dealt = [[] for _ in range(plan.hospitals)]
    groups = _groups(cases, patients, plan.group_by)
    for group in np.unique(groups):
        members = [int(p) for p in rng.permutation(np.flatnonzero(groups == group))]
        for mine, more in zip(dealt, _spread(members, plan, rng), strict=True):
            mine += more
    return dealt


def _acquisition(
    cases: Cases, patients: Sequence[list[int]], plan: PartitionPlan, rng: np.random.Generator
) -> Dealt:
    """Sources take turns among the hospitals; with fewer hospitals than sources, some have several."""
    of_patient = [cases.sources[rows[0]] for rows in patients]
    sources = sorted(set(of_patient))
    dealt: Dealt = [[] for _ in range(plan.hospitals)]
    for number, source in enumerate(sources):
        homes = range(number % plan.hospitals, plan.hospitals, len(sources))
        members = rng.permutation([p for p, name in enumerate(of_patient) if name == source])
        for home, part in zip(homes, np.array_split(members, len(homes)), strict=True):
            dealt[home] += [int(p) for p in part]
    return dealt


_DEALERS: dict[str, Callable[[Cases, Sequence[list[int]], PartitionPlan, np.random.Generator], Dealt]] = {
    "iid": _iid,
    "sizes": _sizes,
    "labels": _labels,
    "acquisition": _acquisition,
}


def _spread(members: list[int], plan: PartitionPlan, rng: np.random.Generator) -> Dealt:
    """Cuts a list into as many parts as hospitals, with sizes from a Dirichlet distribution."""
    shares = rng.dirichlet(np.full(plan.hospitals, plan.alpha))
    ends = np.round(np.cumsum(shares) * len(members)).astype(int)
    ends[-1] = len(members)
    return [members[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _groups(cases: Cases, patients: Sequence[list[int]], group_by: Grouping) -> np.ndarray[Any, Any]:
    if group_by == "dominant":
        return np.array([cases.dominant[rows[0]] for rows in patients])
    volumes = np.array([sum(cases.volumes[row] for row in rows) for rows in patients])
    return np.searchsorted(np.quantile(volumes, _QUARTILES), volumes)


def _fill_up(dealt: Dealt, least: int) -> None:
    """Moves patients from the largest hospital to those that chance left short."""
    for mine in dealt:
        while len(mine) < least:
            mine.append(max(dealt, key=len).pop())
