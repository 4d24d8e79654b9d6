"""Networks of any origin through our own sliding window: reading, grids, normalisation, averaging, writing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedvox.errors import RunError

if TYPE_CHECKING:
    from fedvox.inference.ensemble import Ensemble
    from fedvox.inference.predictor import CaseOutcome


def predict_windows(
    ensemble: Ensemble,
    images: Path,
    output: Path,
    *,
    mirror: bool,
    overlap: float,
    device: str,
    threads: int | None,
) -> None:
    """Segment every case of a folder, and tell of each on stderr.

    Raises:
        DataError: cases lack channels.
        RunError: cases failed; the others are done.
    """
    from fedvox.inference.config import PredictConfig
    from fedvox.inference.inputs import find_cases
    from fedvox.inference.predictor import Predictor
    from fedvox.inference.run import run_in_process

    config = PredictConfig(
        images=str(images),
        output=str(output),
        mirror=mirror,
        overlap=overlap,
        device=device,
        torch_threads=threads,
    )
    cases = find_cases(str(images), ensemble.channel_names, modality=ensemble.modality or None)
    failed = []
    for outcome in run_in_process(Predictor(ensemble, config), cases):
        print(f"{outcome.case_id} {outcome.status} {outcome.message}", file=sys.stderr)  # noqa: T201
        if outcome.status not in ("done", "skipped"):
            failed.append(outcome)
    _tell(failed, len(cases))


def _tell(failed: Sequence[CaseOutcome], count: int) -> None:
    if failed:
        raise RunError(f"{len(failed)} of {count} cases failed: {failed[0].message}", failed[0].remedy)
