"""What the cells of the study say together: means with intervals over seeds and patients, and what must hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedvox import storage
from fedvox.evaluation.seeds import SeedEstimate
from fedvox.tracking.config import KINDS
from fedvox.tracking.evaluation import LesionScore, TrackingScores
from fedvox.tracking.study.cells import METHODS, PEERS, Cell

RESAMPLES = 2000
CLASSICAL = ("region-growing", "random-walker")
Cells = Mapping[Cell, dict[str, Any]]
PerPatient = list[list[tuple[float, float]]]
"""Of each seed and patient: a sum and the number of what was summed."""


def read_cells(folder: Path) -> dict[Cell, dict[str, Any]]:
    """Every finished cell in a study's folder."""
    found = {}
    for location in storage.list_files(storage.locate(str(folder)).child("cells")):
        if location.path.endswith(".json"):
            value = json.loads(storage.read_bytes(location))
            found[Cell(value["method"], value["seed"])] = value
    return found


def over_seeds(parts: PerPatient) -> SeedEstimate:
    """The mean of what the patients of each seed say.

    Args:
        parts: seed -> patient -> (sum, count).
    """
    per_seed = np.array([_ratio(p) for p in parts])
    rng = np.random.default_rng(0)
    drawn = np.zeros((RESAMPLES, len(parts)))
    for index, patients in enumerate(parts):
        sums = np.asarray(patients)
        chosen = rng.integers(len(sums), size=(RESAMPLES, len(sums)))
        totals = sums[chosen].sum(axis=1)
        drawn[:, index] = totals[:, 0] / np.maximum(totals[:, 1], 1)
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return SeedEstimate.of(per_seed, float(low), float(high))


def _ratio(patients: Sequence[tuple[float, float]]) -> float:
    total, count = np.asarray(patients).sum(axis=0)
    return float(total / count) if count else float("nan")


# ---- what is measured ----------------------------------------------------------------------------------------


def prompted_scores(cells: Cells, method: str, prompt: str | None, score: str = "dice") -> PerPatient:
    """`score` of segmentation by seed and patient; of one kind of prompt or all."""
    found: PerPatient = []
    for value in _of(cells, method):
        rows = [r for r in value.get("segmentation", []) if prompt in (None, r["prompt"])]
        names = sorted({row["patient"] for row in rows})
        per = [[row[score] for row in rows if row["patient"] == name] for name in names]
        if per:
            found.append([(sum(p), len(p)) for p in per])
    return found


Measure = Callable[[TrackingScores], list[float]]


def tracked_scores(cells: Cells, method: str, measured: Measure) -> PerPatient:
    """A measure of tracking by seed and patient."""
    found: PerPatient = []
    for value in _of(cells, method):
        per = [measured(scores_of(row)) for row in value["tracking"]]
        found.append([(sum(p), len(p)) for p in per])
    return found


def scores_of(row: Mapping[str, Any]) -> TrackingScores:
    """One patient's scores, as `evaluate_tracking` gave them."""
    lesions = tuple(LesionScore(**score) for score in row["lesions"])
    return TrackingScores(lesions, tuple(tuple(d) for d in row["detection"]), 10.0, 0)


def persisting_dice(scores: TrackingScores) -> list[float]:
    """Of lesions that were marked and are still there."""
    return [s.dice for s in _persisting(scores)]


def retrieved(scores: TrackingScores) -> list[float]:
    """Whether a lesion that is still there was found with a Dice of one half at least."""
    return [float(s.dice >= 0.5) for s in _persisting(scores)]


def near(scores: TrackingScores) -> list[float]:
    """Whether its centroid is within 10 mm."""
    return [float(s.distance_mm is not None and s.distance_mm <= 10) for s in _persisting(scores)]


def kept(scores: TrackingScores) -> list[float]:
    """Whether it goes on under its id."""
    began = {s.lesion: s.found_id for s in scores.lesions if s.scan == 0}
    return [float(s.found_id == began[s.lesion] and s.found_id != 0) for s in _persisting(scores)]


def switches(scores: TrackingScores) -> list[float]:
    """Identity switches of the patient."""
    return [scores.summary()["identity_switches"]]


def _persisting(scores: TrackingScores) -> list[LesionScore]:
    marked = {s.lesion for s in scores.lesions if s.scan == 0}
    return [s for s in scores.lesions if s.scan != 0 and s.lesion in marked]


def rounds(cells: Cells, method: str) -> list[float]:
    """Mean Dice after the first prompt and every further click."""
    rows = [row for value in _of(cells, method) for row in value.get("rounds", [])]
    return np.asarray(rows).mean(axis=0).tolist() if rows else []


def _of(cells: Cells, method: str) -> list[dict[str, Any]]:
    chosen = sorted((cell for cell in cells if cell.method == method), key=lambda cell: cell.seed)
    return [cells[cell] for cell in chosen]


# ---- what must hold ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """One claim.

    Attributes:
        text: for people.
        limit: least value.
        value: measured; None where it has not been.
    """

    text: str
    limit: float
    value: float | None

    @property
    def told(self) -> str:
        """`holds`, `missed` or `not measured`."""
        if self.value is None:
            return "not measured"
        return "holds" if self.value >= self.limit else "missed"


def verdicts(cells: Cells) -> list[Verdict]:
    """What must hold, in the order of the page; only seeds that both sides have are compared."""
    ahead = _ahead(cells, lambda c, m: prompted_scores(c, m, None), CLASSICAL)
    return [
        Verdict("prompted segmentation, Dice above the strongest classical peer", 0.10, ahead),
        Verdict(
            "tracking, Dice above registration alone", 0.0,
            _ahead(cells, lambda c, m: tracked_scores(c, m, persisting_dice), ("carried",)),
        ),
        Verdict(
            "tracking, retrieval above registration alone", 0.0,
            _ahead(cells, lambda c, m: tracked_scores(c, m, retrieved), ("carried",)),
        ),
        Verdict("identity kept of lesions that persist", 0.95, _mean(tracked_scores(cells, "prompted", kept))),
        Verdict("a scan done again alone gives the same", 1.0, _mean(_again(cells))),
        Verdict("seeds", 3.0, float(len(_of(cells, "prompted"))) or None),
    ]  # fmt: skip


def _ahead(cells: Cells, of: Callable[[Cells, str], PerPatient], others: Sequence[str]) -> float | None:
    """By how much `prompted` is above the best of the others, on the seeds that all have."""
    common = set.intersection(
        *({cell.seed for cell in cells if cell.method == m} for m in ("prompted", *others))
    )
    shared = {cell: value for cell, value in cells.items() if cell.seed in common}
    mine = _mean(of(shared, "prompted"))
    theirs = [m for m in (_mean(of(shared, other)) for other in others) if m is not None]
    return None if mine is None or not theirs else mine - max(theirs)


def _mean(parts: PerPatient) -> float | None:
    return over_seeds(parts).value if parts else None


def _again(cells: Cells) -> PerPatient:
    return [[(float(row["again"]), 1.0) for row in value["tracking"]] for value in _of(cells, "prompted")]


def tables(cells: Cells) -> str:
    """Both tables of the page, and the rounds, as Markdown."""
    methods = [m for m in (*METHODS, *PEERS) if any(cell.method == m for cell in cells)]
    lines = [f"| method | seeds | all prompts | {' | '.join(KINDS)} | NSD 2 mm |", "|" + "---|" * 8]
    for method in methods:
        every = prompted_scores(cells, method, None)
        if every:
            kinds = [f"{over_seeds(prompted_scores(cells, method, k)).value:.3f}" for k in KINDS]
            nsd = over_seeds(prompted_scores(cells, method, None, "nsd")).value
            lines.append(f"| {method} | {len(every)} | {_told(every)} | {' | '.join(kinds)} | {nsd:.3f} |")
    lines += [
        "",
        "| method | seeds | Dice | retrieved | within 10 mm | identity kept | switches |",
        "|" + "---|" * 7,
    ]
    for method in methods:
        parts = [tracked_scores(cells, method, m) for m in (persisting_dice, retrieved, near, kept)]
        total = sum(s for seed in tracked_scores(cells, method, switches) for s, _ in seed)
        told = " | ".join(_told(p) for p in parts)
        lines.append(f"| {method} | {len(parts[0])} | {told} | {total:.0f} |")
    lines += [
        "",
        "| method | first prompt | " + " | ".join(f"click {i}" for i in range(1, 6)) + " |",
        "|" + "---|" * 7,
    ]
    for method in methods:
        if rounds(cells, method):
            lines.append(f"| {method} | " + " | ".join(f"{r:.3f}" for r in rounds(cells, method)) + " |")
    return "\n".join(lines)


def _told(parts: PerPatient) -> str:
    found = over_seeds(parts)
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
