"""A reviewer who knows the truth, and repairs only what the queue puts before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedvox.curation.queueing.priority import FURTHER
from fedvox.curation.store import LabelStore, QueueItem, Review, Verdict
from fedvox.data.store import BrickStore

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SimulatedReviewer:
    """Answers a store's queue.

    Args:
        store: whose queue.
        truth: the brick store of the true labels.
        name: of the reviewer.
        look_s: seconds for a look.
        repair_s: seconds for a repair of one structure, on top; each further one takes a quarter of it.
        misses: share of the wrong labels that the reviewer lets pass.
        seed: of what is missed.
    """

    store: LabelStore
    truth: BrickStore
    name: str = "simulated"
    look_s: float = 30.0
    repair_s: float = 180.0
    misses: float = 0.0
    seed: int = 0

    def answer_all(self) -> list[Review]:
        """Takes items until none is left for this reviewer."""
        reviews = []
        while (item := self.store.queue.next(self.name)) is not None:
            reviews.append(self.answer(item))
        return reviews

    def answer(self, item: QueueItem) -> Review:
        """Accepts a label that is right, and replaces one that is wrong by the truth."""
        store, case = self.store, self.store.case(item.case_id)
        shown = store.shown_version(item)
        right = self._truth(item.case_id)
        wrong = 0 if shown is None else self._wrong_structures(item.case_id, shown, right)
        verdict = Verdict(
            case.case_id, case.revision, self.name, self.look_s + self._repair_s(wrong), item=item.id,
            request_id=f"{self.name}-{item.id}",
        )  # fmt: skip
        rng = np.random.default_rng([self.seed, item.id])
        if shown is None or (wrong and rng.random() >= self.misses):
            return store.edit(verdict, right, parent=shown or 1, tool="simulated")
        return store.accept(verdict, shown)

    def _repair_s(self, wrong: int) -> float:
        return self.repair_s * (1 + FURTHER * (wrong - 1)) if wrong else 0.0

    def _wrong_structures(self, case_id: str, version: int, right: Array) -> int:
        mask = self.store.read_mask(self.store.version(case_id, version))
        different = mask != right
        return len(set(np.unique(mask[different])) | set(np.unique(right[different]))) - (
            1 if different.any() else 0
        )

    def _truth(self, case_id: str) -> Array:
        row = next(row for row, one in enumerate(self.truth.case_ids) if one == case_id)
        label = self.truth.read_patch(row, (0, 0, 0), self.truth.record(row).shape)[1]
        assert label is not None  # simulated cases all have one
        return label
