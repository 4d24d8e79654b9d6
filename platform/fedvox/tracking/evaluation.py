"""How well lesions were segmented and followed, against the truth.

    scores = evaluate_tracking(true_labels, predicted_labels, spacings)
    scores.summary()["identity_kept"]

Truth and prediction are instance maps, one a scan; in a prediction that started from the truth's ids, the same id is
the same lesion. Whether an id was kept is judged by which predicted lesion overlaps the true one most, so that a
method is not asked to number lesions as the truth does, but to go on as it began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvox.errors import DataError
from fedvox.evaluation.lesions import LesionPolicy, lesion_overlap
from fedvox.evaluation.metrics import measure
from fedvox.tracking.config import PromptKind
from fedvox.tracking.prompt_simulation import Jitter, simulate_correction, simulate_prompt
from fedvox.tracking.prompts import Prompt
from fedvox.tracking.segmenters import Request, Segmenter

Labels = npt.NDArray[np.integer[Any]]
Spacing = tuple[float, float, float]
_READER = Jitter()


@dataclass(frozen=True)
class LesionScore:
    """One true lesion on one scan.

    Args:
        scan: its index.
        lesion: its true id.
        dice: with the predicted lesion of the same id.
        nsd: normalised surface distance, likewise.
        distance_mm: between the centroids; None where the lesion has no prediction.
        found_id: of the predicted lesion that overlaps it most; 0 where none does.
    """

    scan: int
    lesion: int
    dice: float
    nsd: float
    distance_mm: float | None
    found_id: int


@dataclass(frozen=True)
class TrackingScores:
    """All lesions of a series.

    Args:
        lesions: one entry a true lesion and scan.
        detection: (precision, recall, F1) a scan, lesion by lesion whatever their ids.
        tolerance_mm: of centroid matching.
        first: index of the scan on which the lesions were marked; it counts in none of the means.
    """

    lesions: tuple[LesionScore, ...]
    detection: tuple[tuple[float, float, float], ...]
    tolerance_mm: float
    first: int

    def summary(self) -> dict[str, float]:
        """Means over the lesions of all scans but the marked one; NaN where there is none.

        dice, nsd               of the same id; a lesion that was lost scores 0
        centroid_matched        share of lesions whose centroid is within the tolerance
        centroid_distance_mm    mean over those that have a prediction
        retrieved               share with Dice of 0.5 at least
        identity_kept           share of lesions that were there on the marked scan, and go on under the same id
        identity_switches       how often the id changed from one scan to the next
        lesion_precision, lesion_recall, lesion_f1      of detection, whatever the ids
        """
        later = [s for s in self.lesions if s.scan != self.first]
        distances = [s.distance_mm for s in later if s.distance_mm is not None]
        detected = np.array([d for i, d in enumerate(self.detection) if i != self.first]).reshape(-1, 3)
        precision, recall, f1 = (_mean(detected[:, i].tolist()) for i in range(3))
        return {
            "dice": _mean([s.dice for s in later]),
            "nsd": _mean([s.nsd for s in later]),
            "centroid_matched": _mean([float(_near(s, self.tolerance_mm)) for s in later]),
            "centroid_distance_mm": _mean(distances),
            "retrieved": _mean([float(s.dice >= 0.5) for s in later]),
            "identity_kept": _mean(self._kept()),
            "identity_switches": float(self._switches()),
            "lesion_precision": precision,
            "lesion_recall": recall,
            "lesion_f1": f1,
        }

    def _kept(self) -> list[float]:
        began = {s.lesion: s.found_id for s in self.lesions if s.scan == self.first}
        return [
            float(s.found_id == began[s.lesion] and s.found_id != 0)
            for s in self.lesions
            if s.scan != self.first and s.lesion in began
        ]

    def _switches(self) -> int:
        count = 0
        for lesion in {s.lesion for s in self.lesions}:
            ids = [s.found_id for s in sorted(self.lesions, key=lambda s: s.scan) if s.lesion == lesion]
            seen = [i for i in ids if i]
            count += sum(a != b for a, b in pairwise(seen))
        return count


def _near(score: LesionScore, tolerance_mm: float) -> bool:
    return score.distance_mm is not None and score.distance_mm <= tolerance_mm


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def evaluate_tracking(
    truth: Sequence[Labels],
    predicted: Sequence[Labels],
    spacings_mm: Sequence[Spacing],
    *,
    first: int = 0,
    tolerance_mm: float = 10.0,
    nsd_mm: float = 2.0,
) -> TrackingScores:
    """Scores a tracked series.

    Args:
        truth: (D, H, W) ids, one a scan.
        predicted: likewise.
        spacings_mm: (D, H, W) of each scan.
        first: index of the scan on which lesions were marked.
        tolerance_mm: of centroid matching.
        nsd_mm: tolerance of the normalised surface distance.

    Raises:
        DataError: the series differ in length, or two maps in shape.
    """
    if not len(truth) == len(predicted) == len(spacings_mm):
        raise DataError(
            f"there are {len(truth)} true scans, {len(predicted)} predicted ones and {len(spacings_mm)} spacings",
            "Give one of each a scan.",
            code="shape_mismatch",
        )
    lesions, detection = [], []
    for index, (a, b, spacing) in enumerate(zip(truth, predicted, spacings_mm, strict=True)):
        lesions += [_score(index, int(i), a, b, spacing, nsd_mm) for i in np.unique(a) if i]
        overlap = lesion_overlap(a > 0, b > 0, float(np.prod(spacing)), LesionPolicy())
        detection.append(overlap.detection(LesionPolicy().f1_iou))
    return TrackingScores(tuple(lesions), tuple(detection), tolerance_mm, first)


def _score(
    index: int, lesion: int, truth: Labels, predicted: Labels, spacing: Spacing, nsd_mm: float
) -> LesionScore:
    mask, found = truth == lesion, predicted == lesion
    near = _around(mask | found, margin=2)
    scores = measure(mask[near], found[near], spacing, tolerance_mm=nsd_mm)
    distance = None
    if found.any():
        apart = (np.argwhere(found).mean(0) - np.argwhere(mask).mean(0)) * spacing
        distance = float(np.linalg.norm(apart))
    ids, counts = np.unique(predicted[mask & (predicted > 0)], return_counts=True)
    best = int(ids[counts.argmax()]) if len(ids) else 0
    return LesionScore(index, lesion, scores["dice"], scores[f"nsd@{nsd_mm:g}mm/surfel"], distance, best)


def _around(mask: npt.NDArray[np.bool_], margin: int) -> tuple[slice, ...]:
    """The box of a mask and a margin; what lies beyond takes no part in any score."""
    voxels = np.argwhere(mask)
    low, high = np.maximum(voxels.min(0) - margin, 0), voxels.max(0) + 1 + margin
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def dice_over_rounds(
    segment: Segmenter,
    image: npt.NDArray[np.generic],
    lesion: npt.NDArray[np.bool_],
    spacing_mm: Spacing,
    rng: np.random.Generator,
    *,
    kind: PromptKind = "point",
    rounds: int = 5,
    jitter: Jitter = _READER,
) -> list[float]:
    """Dice after the first prompt and after each correcting click of a simulated reader.

    Args:
        segment: the method.
        image: (D, H, W).
        lesion: bool (D, H, W), the truth.
        spacing_mm: (D, H, W).
        rng: of the reader's hand.
        kind: of the first prompt.
        rounds: of corrections.
        jitter: how far the reader strays.

    Returns:
        `rounds + 1` values; once nothing is wrong, they stay at 1.
    """
    prompts: list[Prompt] = [simulate_prompt(lesion, kind, spacing_mm, rng, jitter)]
    scores: list[float] = []
    for round_ in range(1, rounds + 2):
        found = segment(Request(image, spacing_mm, tuple(prompts)))
        scores.append(
            2 * np.count_nonzero(found & lesion) / (np.count_nonzero(found) + np.count_nonzero(lesion))
        )
        click = simulate_correction(lesion, found, spacing_mm, round_, rng, jitter)
        if click is None:
            return scores + [1.0] * (rounds + 1 - len(scores))
        prompts.append(click)
    return scores
