"""Validation on whole volumes: sliding window, arg-max, Dice per structure and case.

Case j is predicted by worker j mod w. Structures that a case's source does not annotate are left out of its
Dice; what the network predicts there counts neither for nor against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedvox.data.loader import normalize
from fedvox.data.store import BrickStore
from fedvox.errors import DamagedCase, DataError
from fedvox.evaluation.dice import DiceCounts, dice_counts
from fedvox.inference.sliding_window import SlidingWindow, stream_logits
from fedvox.training.loss import IGNORE, merge_unannotated
from fedvox.training.world import World


@dataclass(frozen=True)
class ValidationResult:
    """Dice on the held-out cases.

    Attributes:
        case_ids: one name a row.
        dice: `(N, K)`, NaN where neither reference nor prediction has the structure, or nobody annotated it.
        structures: K names, background first.
        damaged: cases whose file is damaged, with the reason; their rows are NaN.
    """

    case_ids: tuple[str, ...]
    dice: np.ndarray
    structures: tuple[str, ...]
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def per_structure(self) -> dict[str, float]:
        """Mean Dice over cases of every foreground structure that some case has."""
        means = {name: self.dice[:, k] for k, name in enumerate(self.structures) if k > 0}
        return {
            name: float(np.nanmean(column)) for name, column in means.items() if not np.isnan(column).all()
        }

    @property
    def mean_foreground(self) -> float:
        """Mean of the structures' means; NaN if no case has any structure."""
        values = list(self.per_structure.values())
        return float(np.mean(values)) if values else float("nan")

    def to_json(self) -> dict[str, Any]:
        """For `validation/step-….json`."""
        cases = {
            case_id: {name: None if np.isnan(v) else round(float(v), 6)
                      for name, v in zip(self.structures[1:], row[1:], strict=True)}
            for case_id, row in zip(self.case_ids, self.dice, strict=True)
        }  # fmt: skip
        return {
            "mean_foreground_dice": self.mean_foreground,
            "per_structure": self.per_structure,
            "cases": cases,
        }


def predict_case(
    model: nn.Module, store: BrickStore, row: int, window: SlidingWindow, device: torch.device,
    autocast: torch.dtype | None = None,
) -> tuple[np.ndarray, Tensor, Tensor]:  # fmt: skip
    """Image, reference and predicted labels of one stored case.

    Returns:
        image `(C, D, H, W)` as stored, reference `(D, H, W)` and prediction `(D, H, W)` as integer tensors
        on CPU.
    """
    image, label = store.read_patch(row, (0, 0, 0), store.record(row).shape)
    if label is None:
        raise DataError(
            f"case {store.record(row).case_id!r} of {store.location.uri} has no label to be judged by",
            "Hold out labelled cases (data.validation_cases).",
        )
    normalised = torch.as_tensor(normalize(image, store.record(row), store.meta))
    annotated = torch.as_tensor(store.annotated(row), device=device)[None]
    # Plane by plane: the logits of a whole CT in 168 structures would take 67 GB.
    prediction = torch.empty(normalised.shape[1:], dtype=torch.int64)
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for index, logits in enumerate(stream_logits([model], normalised, window, device=device)):
            prediction[index] = merge_unannotated(logits[None], annotated)[0].argmax(0)
    reference = torch.as_tensor(label.astype(np.int64))
    return image, reference.masked_fill(reference == store.meta.ignore_index, IGNORE), prediction


def validate(
    model: nn.Module,
    store: BrickStore,
    rows: Sequence[int],
    window: SlidingWindow,
    world: World,
    *,
    autocast: torch.dtype | None = None,
    on_case: Callable[[int], None] | None = None,
) -> ValidationResult:
    """Dice of the held-out cases; every worker must call it and gets the whole result.

    Args:
        model: network without a DDP wrapper; its training mode is restored afterwards.
        store: where the cases are.
        rows: manifest rows of the held-out cases.
        window: patch and overlap.
        world: the workers that share the cases.
        autocast: bf16 on GPUs, None for full precision.
        on_case: told the number of cases this worker has done.
    """
    structures = store.meta.structures
    counts = torch.zeros(len(rows), 3, len(structures), dtype=torch.float64)
    damaged: dict[str, str] = {}
    was_training = model.training
    model.eval()
    try:
        for done, position in enumerate(range(world.rank, len(rows), world.size), start=1):
            try:
                _, reference, prediction = predict_case(
                    model, store, rows[position], window, world.device, autocast
                )
            except DamagedCase as error:
                damaged[store.case_ids[rows[position]]] = error.message
                continue
            ignored = reference < 0
            found = dice_counts(reference[~ignored], prediction[~ignored], len(structures))
            counts[position] = torch.stack([found.intersection, found.reference, found.prediction])
            if on_case is not None:
                on_case(done)
    finally:
        model.train(was_training)
    counts = world.sum(counts).cpu()
    dice = DiceCounts(counts[:, 0], counts[:, 1], counts[:, 2]).dice().numpy()
    damaged = world.merge(damaged)
    case_ids = tuple(store.case_ids[row] for row in rows)
    judged = np.array([store.annotated(row) for row in rows]).reshape(dice.shape)
    judged[[case_id in damaged for case_id in case_ids]] = False
    return ValidationResult(case_ids, np.where(judged, dice, np.nan), tuple(structures), damaged)
