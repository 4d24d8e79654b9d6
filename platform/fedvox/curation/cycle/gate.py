"""The regression gate: retrained models are judged on the frozen gold set before they take the old ones' place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fedvox.curation.cycle.config import GateSection
from fedvox.curation.propose.proposers import ModelProposer
from fedvox.data.normalize import normalize
from fedvox.data.store import BrickStore
from fedvox.evaluation.bootstrap import bca_interval, resample_weights
from fedvox.evaluation.dice import dice_counts
from fedvox.inference.sliding_window import SlidingWindow, stream_logits

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Change:
    """What the gate says of one structure.

    Args:
        structure: its name.
        before: mean Dice of the old models over the gold cases that have the structure.
        after: of the new ones.
        low: of the interval of the change.
        high: of it.
        passes: whether the change may be no loss.
    """

    structure: str
    before: float
    after: float
    low: float
    high: float
    passes: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def gold_dice(
    proposers: Sequence[ModelProposer], gold: BrickStore, overlap: float, device: torch.device
) -> Array:
    """Dice of the models' averaged prediction, (N, K) with NaN where a structure is in neither.

    Args:
        proposers: at least one, of one recipe.
        gold: the gold set.
        overlap: of neighbouring windows.
        device: where the networks run.
    """
    networks = [proposer.member.network for proposer in proposers]
    recipe = proposers[0].member.recipe
    meta = recipe.meta(gold.meta.channel_names, gold.meta.modality)
    window = SlidingWindow(recipe.patch_size, overlap, False)
    rows = []
    for row in range(len(gold)):
        record = gold.record(row)
        image, label = gold.read_patch(row, (0, 0, 0), record.shape)
        assert label is not None  # the gold set is written with labels
        normalised = torch.as_tensor(normalize(image, record, meta))
        planes = stream_logits(networks, normalised, window, device=device, pad_value=recipe.pad_value)
        predicted = torch.stack([plane.argmax(0).cpu() for plane in planes])
        judged = torch.as_tensor(label.astype(np.int64))
        inside = judged != gold.meta.ignore_index
        counts = dice_counts(judged[inside], predicted[inside], len(gold.meta.structures))
        rows.append(np.where(gold.annotated(row), counts.dice().numpy(), np.nan))
    return np.stack(rows)


def judge(
    before: Array, after: Array, structures: Sequence[str], settings: GateSection, seed: int
) -> list[Change]:
    """Compares two tables of Dice, case by case.

    A structure fails where the whole interval of its change lies below `-tolerance`: the loss is more than chance.

    Args:
        before: (N, K).
        after: the same cases.
        structures: K names.
        settings: of the gate.
        seed: of the bootstrap.
    """
    difference = after - before
    weights = resample_weights(len(difference), settings.resamples, seed)
    alone = np.ones((len(difference), len(difference))) - np.eye(len(difference))
    changes = []
    for index, name in enumerate(structures):
        there = np.isfinite(difference[:, index])
        if index == 0 or not there.any():
            continue
        observed, replicates, jackknife = (
            _means(difference[there, index], drawn[:, there])
            for drawn in (np.ones((1, len(difference))), weights, alone)
        )
        low, high = bca_interval(observed[0], replicates, jackknife, settings.confidence)
        changes.append(
            Change(
                name,
                float(before[there, index].mean()),
                float(after[there, index].mean()),
                float(low[0]),
                float(high[0]),
                bool(high[0] >= -settings.tolerance),
            )
        )
    return changes


def _means(values: Array, weights: Array) -> Array:
    """Weighted means, (B, 1); NaN where nothing was drawn."""
    total = weights.sum(axis=1)
    means: Array = np.divide(weights @ values, total, out=np.full(len(total), np.nan), where=total > 0)
    return means[:, None]
