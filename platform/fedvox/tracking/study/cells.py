"""One method with one seed: trained as every promptable network is, judged by patients of unseen kinds of lesions.

A finished cell is a JSON file and is not repeated; an unfinished training goes on from its checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from fedvox import storage
from fedvox.config import validate
from fedvox.evaluation.metrics import measure
from fedvox.storage import Location
from fedvox.tracking.config import KINDS, LesionConfig
from fedvox.tracking.evaluation import dice_over_rounds, evaluate_tracking
from fedvox.tracking.lesion_training import train
from fedvox.tracking.network import NetworkSegmenter, load_segmenter
from fedvox.tracking.observers import prompted
from fedvox.tracking.prompt_simulation import simulate_prompt
from fedvox.tracking.prompts import encode
from fedvox.tracking.registration import RegistrationConfig
from fedvox.tracking.segmenters import SEGMENTERS, Request, Segmenter, build_segmenter
from fedvox.tracking.study.patients import Judge, KeptRegistrations, judges, seen, teachers
from fedvox.tracking.track import Anchor, Tracker, TrackState, step, track
from fedvox.training.world import World

STEPS = 320
PATIENTS = 3
ROUNDS = 5

METHODS: Mapping[str, dict[str, Any]] = {
    "prompted": {},
    "no-dense": {"prompts": {"dense": False}},
    "no-synthetic": {"synthetic": False},
    "unprompted": {"prompts": {"dense": False, "target": "all"}},
}
"""Trained methods, and in what they differ."""

PEERS: tuple[str, ...] = tuple(SEGMENTERS)

_BOX_MM = 36.0  # to either side of a lesion: what segmentation is judged in
_LEAST_VOXELS = 10  # fewer are no lesion that a reader would mark
_NSD_MM = 2.0


@dataclass(frozen=True)
class Cell:
    """A method with a seed."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.method}.{self.seed}"


def config_of(cell: Cell, folder: Path, steps: int = STEPS) -> LesionConfig:
    """The training of a cell, whose run directory lies in `folder`/runs."""
    changes = METHODS[cell.method]
    is_simulated = changes.get("synthetic", True)
    synthetic = {"kinds": seen(cell.seed), "distinct": 120, "share": 0.75}
    values = {
        "name": cell.name, "storage": str(folder / "runs"), "seed": cell.seed, "steps": steps,
        "global_batch_size": 2, "log_every": 25, "optimizer": {"lr": 4e-3, "warmup_steps": min(20, steps // 10)},
        "model": {
            "name": "resenc-unet-tiny", "deep_supervision": False,
            "options": {"features": [8, 24, 48], "blocks": [1, 1, 2], "decoder_convs": [1, 1],
                        "recompute_activations": False},
        },
        "patch_size": [24, 24, 24], "spacing_mm": [2, 2, 2],
        "data": {
            "stores": [{"uri": teachers(folder, cell.seed), "instances": "values", "validation_fraction": 0}],
            "synthetic": synthetic if is_simulated else None, "follow_ups": is_simulated,
        },
        "prompts": {"follow_up_share": 0.3, "corrected_share": 0.2, **changes.get("prompts", {})},
        "validation": {"every_steps": 10 * steps, "lesions": 8},
        "checkpoint": {"every_steps": 150, "keep": 1}, "compute": {"num_workers": 0, "torch_threads": 1},
    }  # fmt: skip
    return validate(LesionConfig, values, source=f"study cell {cell.name}")


def run_cell(cell: Cell, folder: Path, *, steps: int = STEPS, patients: int = PATIENTS) -> dict[str, Any]:
    """Trains and judges a cell, or reads what was found before.

    Args:
        cell: a trained method or a peer.
        folder: for patients, runs and results.
        steps: of training.
        patients: that judge.
    """
    location = result_of(cell, folder)
    if storage.exists(location):
        found: dict[str, Any] = json.loads(storage.read_bytes(location))
        return found
    cpu = time.process_time()
    segment = segmenter_of(cell, folder, steps)
    trained = time.process_time() - cpu
    asked = judges(folder, cell.seed, patients)
    value = {
        "schema": "fedvox.lesions.cell/1", "method": cell.method, "seed": cell.seed, "steps": steps,
        "trained_cpu_s": round(trained, 1), **judged(segment, asked, folder),
    }  # fmt: skip
    storage.write_atomic(location, json.dumps(value).encode())
    return value


def result_of(cell: Cell, folder: Path) -> Location:
    """Where a cell's result lies."""
    return storage.locate(str(folder)).child("cells", f"{cell.name}.json")


def segmenter_of(cell: Cell, folder: Path, steps: int = STEPS) -> Segmenter:
    """The method, trained as far as it is not yet."""
    if cell.method in PEERS:
        return build_segmenter(cell.method)
    config = config_of(cell, folder, steps)
    run = folder / "runs" / cell.name / "final"
    if not (run / "model.json").is_file():
        train(config, World())
    network = load_segmenter(str(run))
    return Touching(network) if config.prompts.target == "all" else network


@dataclass(frozen=True)
class Touching:
    """A network that segments every lesion in sight: of those, the ones that the marks touch.

    Args:
        network: that was trained so.
    """

    network: NetworkSegmenter

    def __call__(self, request: Request) -> npt.NDArray[np.bool_]:
        """The lesion's mask, bool (D, H, W)."""
        found = np.ascontiguousarray(self.network(request))
        parts = cc3d.connected_components(found, connectivity=6)
        marks = encode(request.prompts, request.image.shape, request.spacing_mm)[[0, 2, 4, 6]].max(0) > 0
        kept = np.unique(parts[marks])
        return np.asarray(np.isin(parts, kept[kept > 0]))


# ---- judging -------------------------------------------------------------------------------------------------


def judged(segment: Segmenter, asked: Sequence[Judge], folder: Path) -> dict[str, Any]:
    """What unseen patients say of a method: `segmentation`, `rounds`, `tracking`."""
    tracker = Tracker(
        prompted(segment),
        registration=RegistrationConfig(stage="affine"),
        register=KeptRegistrations(folder / "registrations"),
    )
    value: dict[str, Any] = {"tracking": [followed(judge, tracker) for judge in asked]}
    if segment is not SEGMENTERS["carried"]:
        value["segmentation"] = [row for judge in asked for row in segmented(judge, segment)]
        value["rounds"] = [row for judge in asked for row in refined(judge, segment)]
    return value


def segmented(judge: Judge, segment: Segmenter) -> list[dict[str, Any]]:
    """Every lesion of every scan from every kind of prompt: Dice, NSD and seconds."""
    rows = []
    for index, (image, lesions, spacing) in enumerate(_parts(judge)):
        for lesion in np.unique(lesions):
            if lesion == 0 or np.count_nonzero(lesions == lesion) < _LEAST_VOXELS:
                continue
            part, mask = _around(image, lesions == lesion, spacing)
            for number, kind in enumerate(KINDS):
                rng = np.random.default_rng([index, int(lesion), number])
                prompt = simulate_prompt(mask, kind, spacing, rng)
                began = time.process_time()
                said = segment(Request(part, spacing, (prompt,)))
                spent = time.process_time() - began
                scores = measure(mask, said, spacing, tolerance_mm=_NSD_MM)
                rows.append({
                    "patient": judge.name, "scan": index, "lesion": int(lesion), "prompt": kind,
                    "dice": round(scores["dice"], 5), "nsd": round(scores[f"nsd@{_NSD_MM:g}mm/surfel"], 5),
                    "cpu_s": round(spent, 4),
                })  # fmt: skip
    return rows


def refined(judge: Judge, segment: Segmenter) -> list[list[float]]:
    """Dice over rounds of clicks, of every lesion of the second scan, from a point."""
    image, lesions, spacing = list(_parts(judge))[1]
    found = []
    for lesion in np.unique(lesions):
        if lesion == 0 or np.count_nonzero(lesions == lesion) < _LEAST_VOXELS:
            continue
        part, mask = _around(image, lesions == lesion, spacing)
        rng = np.random.default_rng([1, int(lesion)])
        scores = dice_over_rounds(segment, part, mask, spacing, rng, rounds=ROUNDS)
        found.append([round(float(s), 5) for s in scores])
    return found


def followed(judge: Judge, tracker: Tracker) -> dict[str, Any]:
    """The patient's lesions, marked on the first scan by the truth, through the others."""
    spacings = [scan.geometry.spacing_mm for scan in judge.scans]
    cpu = time.process_time()
    states = track(judge.scans, {0: Anchor(judge.lesions[0])}, tracker)
    spent = time.process_time() - cpu
    scores = evaluate_tracking(judge.lesions, [s.lesions for s in states], spacings)
    return {
        "patient": judge.name,
        "cpu_s": round(spent, 2),
        "lesions": [asdict(score) for score in scores.lesions],
        "detection": [list(row) for row in scores.detection],
        "again": _same_alone(judge, states, tracker),
        "overlap": [None if s.quality is None else round(s.quality.overlap, 4) for s in states],
    }


def _same_alone(judge: Judge, states: Sequence[TrackState], tracker: Tracker) -> bool:
    """Whether the last scan, done again by itself, gives the same."""
    again = step(states[-2], judge.scans[-2], judge.scans[-1], tracker)
    return bool((again.lesions == states[-1].lesions).all() and again.events == states[-1].events)


def _parts(judge: Judge) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any], tuple[float, float, float]]]:
    return [
        (scan.data[0], lesions, scan.geometry.spacing_mm)
        for scan, lesions in zip(judge.scans, judge.lesions, strict=True)
    ]


def _around(
    image: npt.NDArray[Any], mask: npt.NDArray[np.bool_], spacing_mm: Sequence[float]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The part of a scan around a lesion: more would cost time and change nothing."""
    voxels = np.argwhere(mask)
    reach = np.ceil(_BOX_MM / np.asarray(spacing_mm)).astype(int)
    low = np.maximum(voxels.min(0) - reach, 0)
    high = np.minimum(voxels.max(0) + 1 + reach, mask.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return image[box], mask[box]
