"""Metrics of one case: a reference segmentation, a prediction, and what they score.

    scores = measure(reference, prediction, spacing=(3.0, 0.8, 0.8), tolerance_mm=2.0, surface="surfel")
    scores["dice"], scores["nsd@2mm/surfel"], scores["hd95/surfel"]

    scores = measure_labels(reference, prediction, spacing, {"liver": 1, "kidneys": (2, 3)})
    scores["kidneys"]["dice"]

`measure_labels` shares the scan of the volumes between all structures. Arrays are (D, H, W), spacing is in mm
in the same order. What a metric id means, and which tool it equals, is in docs/metrics.md.

Empty structures are never dropped (`EmptyPolicy`): a missed or a hallucinated structure gets the worst score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from fedvox.errors import ConfigError, DataError
from fedvox.evaluation.boundaries import Boundaries, Labels, Surface, scan
from fedvox.evaluation.lesions import LesionPolicy, lesion_overlap
from fedvox.evaluation.metric_ids import FAMILIES, SURFACES, MetricId
from fedvox.evaluation.surface import between

LabelVolume = npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_]


class Presence(StrEnum):
    """Which of the two masks of a structure have any voxels."""

    PRESENT = "present"
    MISSED = "missed"
    HALLUCINATED = "hallucinated"
    ABSENT = "absent"


@dataclass(frozen=True)
class EmptyPolicy:
    """What empty masks score. It belongs to a result like a unit.

    A structure that only one of the masks has (missed, hallucinated) scores 0 in every metric that lies
    between 0 and 1, and a penalty in distances.

    Attributes:
        distance: penalty: the physical diagonal of the image, infinity, or a number of mm.
        absent: a structure that neither mask has: `exclude` gives NaN (not applicable), `perfect` the best
            score, for tasks in which leaving a structure out is an achievement.
        hallucinated_volume_error: relative volume error where the reference volume is 0. A missed structure's
            is 1.
    """

    distance: Literal["diagonal", "infinite"] | float = "diagonal"
    absent: Literal["exclude", "perfect"] = "exclude"
    hallucinated_volume_error: float = 1.0

    def penalty_mm(self, shape: tuple[int, ...], spacing_mm: Sequence[float]) -> float:
        """The distance that a missed or hallucinated structure scores in a volume of this shape (D, H, W)."""
        if self.distance == "diagonal":
            return float(np.linalg.norm(np.multiply(shape, spacing_mm)))
        return float("inf") if self.distance == "infinite" else float(self.distance)


@dataclass(frozen=True)
class StructureScores(Mapping[str, float]):
    """Scores of one structure in one case, by metric id.

    Attributes:
        presence: whether the structure was in the reference and in the prediction.
        reference_voxels: voxels of the reference.
        prediction_voxels: voxels of the prediction.
        by_id: metric id -> value; NaN where the policy says not applicable.
    """

    presence: Presence
    reference_voxels: int
    prediction_voxels: int
    by_id: Mapping[str, float] = field(repr=False)

    def __getitem__(self, metric: str) -> float:
        if metric not in self.by_id:
            raise KeyError(f"{metric!r} was not measured; measured: {', '.join(self.by_id)}")
        return self.by_id[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_id)

    def __len__(self) -> int:
        return len(self.by_id)


@dataclass(frozen=True)
class MetricPlan:
    """What is to be measured, the same for every structure and case.

    Attributes:
        tolerances_mm: of the normalised surface distance.
        surfaces: surface definitions; empty for overlap metrics alone.
        lesions: lesion-wise metrics; None for none.
        empty: what empty masks score.
    """

    tolerances_mm: tuple[float, ...] = (2.0,)
    surfaces: tuple[Surface, ...] = ("surfel",)
    lesions: LesionPolicy | None = None
    empty: EmptyPolicy = EmptyPolicy()

    def __post_init__(self) -> None:
        if unknown := set(self.surfaces) - set(SURFACES):
            raise ConfigError(
                f"surface {sorted(unknown)[0]!r} is not known", "Use 'voxel', 'surfel', or both."
            )
        if any(not np.isfinite(t) or t <= 0 for t in self.tolerances_mm):
            raise ConfigError(
                f"tolerance_mm {self.tolerances_mm} must be positive", "Give it in mm, for instance 2.0."
            )

    def metric_ids(self) -> list[MetricId]:
        """Every metric that the plan measures, in the order of the tables."""
        ids = [MetricId(f) for f in FAMILIES.values() if f.kind == "overlap"]
        for surface in self.surfaces:
            ids += [MetricId(FAMILIES["nsd"], tolerance_mm=t, surface=surface) for t in self.tolerances_mm]
            ids += [MetricId(FAMILIES[name], surface=surface) for name in ("hd", "hd95", "assd", "masd")]
        if self.lesions is not None:
            for family in (f for f in FAMILIES.values() if f.kind == "lesion"):
                detection = family.name.startswith("lesion_")
                ids.append(MetricId(family, iou=self.lesions.f1_iou if detection else self.lesions.pq_iou))
        return ids


def measure(
    reference: LabelVolume,
    prediction: LabelVolume,
    spacing: Sequence[float],
    *,
    tolerance_mm: float | Sequence[float] = 2.0,
    surface: Surface | Collection[Surface] = "surfel",
    lesions: LesionPolicy | None = None,
    empty: EmptyPolicy = EmptyPolicy(),
) -> StructureScores:
    """Score the prediction of one structure.

    Args:
        reference: mask `(D, H, W)`: boolean, or integers 0 and 1.
        prediction: mask of the same shape.
        spacing: voxel spacing along (D, H, W) in mm.
        tolerance_mm: tolerance or tolerances of the normalised surface distance.
        surface: `voxel`, `surfel`, or both.
        lesions: also measure lesion-wise, by this policy.
        empty: what empty masks score.

    Raises:
        DataError: the masks differ in shape, are not three-dimensional, or are not masks; the spacing is not
            positive.
        ConfigError: the surface or the tolerance is not usable.
    """
    for name, mask in (("reference", reference), ("prediction", prediction)):
        if _largest_label(name, mask) > 1:
            raise DataError(
                f"{name} has labels up to {mask.max()}, expected a mask of 0 and 1",
                "Compare one structure (labels == 3), or use measure_labels for a label map.",
                code="not_a_mask",
            )
    plan = MetricPlan(_as_tuple(tolerance_mm), _as_surfaces(surface), lesions, empty)
    return measure_labels(reference, prediction, spacing, {"structure": 1}, plan=plan)["structure"]


def measure_labels(
    reference: LabelVolume,
    prediction: LabelVolume,
    spacing: Sequence[float],
    structures: Mapping[str, int | Collection[int]],
    *,
    plan: MetricPlan = MetricPlan(),
    ignore_label: int | None = None,
    threads: int = 1,
) -> dict[str, StructureScores]:
    """Score every structure of a label map, sharing the work between them.

    Args:
        reference: labels `(D, H, W)`.
        prediction: labels of the same shape.
        spacing: voxel spacing along (D, H, W) in mm.
        structures: name -> label, or labels where the structure is a region of several. Regions may overlap.
            Labels that no structure names are background, so a partly annotated case names what it annotates.
        plan: what to measure.
        ignore_label: reference label whose voxels belong to no structure, whatever was predicted there.
        threads: structures measured at the same time.

    Raises:
        DataError: see `measure`.
        ConfigError: a structure has no label, or has the background's or the ignored one.
    """
    highest = max(_largest_label("reference", reference), _largest_label("prediction", prediction))
    if reference.shape != prediction.shape:
        raise DataError(
            f"reference is {reference.shape} and prediction {prediction.shape} voxels (D, H, W)",
            "Bring the prediction to the reference's grid.",
            code="shape_mismatch",
        )
    spacing_mm = _checked_spacing(spacing)
    regions = _checked_structures(structures, ignore_label)
    volumes = reference, prediction
    if ignore_label is not None:
        keep = reference != ignore_label
        volumes = reference * keep, prediction * keep
    scores: dict[str, StructureScores] = {}
    for group in _disjoint_groups(regions):
        a, b = (_relabelled(volume, group, highest) for volume in volumes)
        case = _Case(scan(a, b, len(group), plan.surfaces), spacing_mm, reference.shape, plan)
        names, numbers = [name for name, _ in group], range(1, len(group) + 1)
        if threads == 1:
            scores |= zip(names, map(case.score, numbers), strict=True)
        else:
            with ThreadPoolExecutor(threads) as pool:
                scores |= zip(names, pool.map(case.score, numbers), strict=True)
    return {name: scores[name] for name in structures}


@dataclass(frozen=True)
class _Case:
    """A scanned pair of volumes, scored structure by structure."""

    boundaries: Boundaries
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, ...]
    plan: MetricPlan

    def score(self, label: int) -> StructureScores:
        confusion = self.boundaries.confusion
        n_reference, n_prediction = int(confusion[label].sum()), int(confusion[:, label].sum())
        values = self._volume_difference(n_reference, n_prediction)
        if n_reference and n_prediction:
            presence = Presence.PRESENT
            values |= self._overlap(n_reference, n_prediction, int(confusion[label, label]))
            values |= self._surfaces(label)
            values |= self._lesions(label)
        else:
            presence = [Presence.ABSENT, Presence.HALLUCINATED, Presence.MISSED][
                bool(n_prediction) + 2 * bool(n_reference)
            ]
            values |= self._empty(presence)
        ordered = {str(m): values[str(m)] for m in self.plan.metric_ids()}
        return StructureScores(presence, n_reference, n_prediction, ordered)

    def _volume_difference(self, reference: int, prediction: int) -> dict[str, float]:
        return {"volume_difference_ml": (prediction - reference) * float(np.prod(self.spacing_mm)) / 1000}

    def _overlap(self, reference: int, prediction: int, both: int) -> dict[str, float]:
        return {
            "dice": 2 * both / (reference + prediction),
            "iou": both / (reference + prediction - both),
            "volume_error": abs(prediction - reference) / reference,
        }

    def _surfaces(self, label: int) -> dict[str, float]:
        values: dict[str, float] = {}
        for surface in self.plan.surfaces:
            distances = between(self.boundaries, label, surface, self.spacing_mm)
            for tolerance in self.plan.tolerances_mm:
                metric = MetricId(FAMILIES["nsd"], tolerance_mm=tolerance, surface=surface)
                values[str(metric)] = distances.nsd(tolerance)
            values[f"hd/{surface}"] = distances.hausdorff()
            values[f"hd95/{surface}"] = distances.hausdorff_percentile(95)
            values[f"assd/{surface}"] = distances.assd()
            values[f"masd/{surface}"] = distances.masd()
        return values

    def _lesions(self, label: int) -> dict[str, float]:
        policy = self.plan.lesions
        if policy is None:
            return {}
        frame = self.boundaries.frame
        a, b = (frame.volume(flat) == label for flat in (frame.reference, frame.prediction))
        overlap = lesion_overlap(a, b, float(np.prod(self.spacing_mm)), policy)
        names = ("lesion_precision", "lesion_recall", "lesion_f1", "pq", "sq", "rq")
        found = (*overlap.detection(policy.f1_iou), *overlap.panoptic(policy.pq_iou))
        by_name = dict(zip(names, found, strict=True))
        ids = [m for m in self.plan.metric_ids() if m.family.kind == "lesion"]
        return {str(m): by_name[m.family.name] for m in ids}

    def _empty(self, presence: Presence) -> dict[str, float]:
        """Scores where at least one of the masks is empty, by the plan's policy."""
        policy = self.plan.empty
        values: dict[str, float] = {}
        for metric in self.plan.metric_ids():
            family = metric.family
            best = 1.0 if family.better == "higher" else 0.0
            if presence is Presence.ABSENT:
                values[str(metric)] = best if policy.absent == "perfect" else float("nan")
            elif family.kind == "surface" and family.better == "lower":
                values[str(metric)] = policy.penalty_mm(self.shape, self.spacing_mm)
            elif family.name == "volume_error":
                values[str(metric)] = 1.0 if presence is Presence.MISSED else policy.hallucinated_volume_error
            elif family.better == "higher":
                values[str(metric)] = 0.0
        return values


def _largest_label(name: str, volume: LabelVolume) -> int:
    """The highest label of a volume that can be scored at all."""
    remedy = "Write label maps as unsigned integers."
    if volume.ndim != 3:
        raise DataError(f"{name} has {volume.ndim} dimensions, expected (D, H, W)", remedy, code="dimensions")
    if volume.dtype.kind not in "bui":
        raise DataError(f"{name} has labels of type {volume.dtype}", remedy, code="label_type")
    if not volume.size:
        raise DataError(
            f"{name} has no voxels: {volume.shape}", "Check the file it was read from.", code="dimensions"
        )
    low, high = (
        (0, int(volume.max())) if volume.dtype.kind in "bu" else (int(volume.min()), int(volume.max()))
    )
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise DataError(
            f"{name} has labels from {low} to {high}, expected 0 to 65535", remedy, code="label_range"
        )
    return high


def _checked_spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    values = tuple(float(s) for s in spacing)
    if len(values) != 3 or not all(np.isfinite(s) and s > 0 for s in values):
        raise DataError(
            f"spacing {values} is not three positive lengths",
            "Give the voxel spacing along (D, H, W) in mm.",
            code="spacing",
        )
    return values[0], values[1], values[2]


def _checked_structures(
    structures: Mapping[str, int | Collection[int]], ignore_label: int | None
) -> list[tuple[str, frozenset[int]]]:
    regions = []
    for name, labels in structures.items():
        region = frozenset([labels] if isinstance(labels, (int, np.integer)) else labels)
        if not region or min(region) < 1 or ignore_label in region:
            raise ConfigError(
                f"structure {name!r} has the labels {sorted(region)}",
                "Give one or more labels from 1 on, and not the ignored one.",
            )
        regions.append((name, region))
    return regions


def _disjoint_groups(regions: list[tuple[str, frozenset[int]]]) -> list[list[tuple[str, frozenset[int]]]]:
    """Structures that share no label are scanned together; overlapping ones need scans of their own."""
    groups: list[list[tuple[str, frozenset[int]]]] = []
    for region in regions:
        home = next((g for g in groups if all(region[1].isdisjoint(other) for _, other in g)), None)
        if home is None:
            groups.append([region])
        else:
            home.append(region)
    return groups


def _relabelled(volume: LabelVolume, group: list[tuple[str, frozenset[int]]], highest: int) -> Labels:
    """The volume with the labels of the i-th structure of a group as i, and everything else as 0."""
    dtype = np.uint8 if len(group) < 256 else np.uint16
    table = np.zeros(highest + 1, dtype)
    for number, (_, labels) in enumerate(group, 1):
        table[[label for label in labels if label <= highest]] = number
    volume = volume.view(np.uint8) if volume.dtype == np.bool_ else volume
    if np.array_equal(table, np.arange(highest + 1)):  # nothing to rename: the usual case of labels 1..K
        return cast("Labels", volume.astype(dtype, copy=False))
    return cast("Labels", table[volume])


def _as_tuple(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in value) if isinstance(value, Sequence) else (float(value),)


def _as_surfaces(surface: Surface | Collection[Surface]) -> tuple[Surface, ...]:
    given = (surface,) if isinstance(surface, str) else tuple(surface)
    return tuple(s for s in SURFACES if s in given) + tuple(s for s in given if s not in SURFACES)
