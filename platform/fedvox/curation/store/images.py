"""The images of a collection, by case id, out of the brick store that holds them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from fedvox.data.bricks import CaseReader
from fedvox.data.store import BrickStore
from fedvox.errors import DataError

Array = np.ndarray[Any, Any]


class Images:
    """Images of a brick store, which is opened when the first one is asked for.

    Args:
        uri: of the brick store.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @cached_property
    def store(self) -> BrickStore:
        """The brick store."""
        return BrickStore.open(self.uri)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Case id -> row in the brick store."""
        return {case_id: row for row, case_id in enumerate(self.store.case_ids)}

    def reader(self, case_id: str) -> CaseReader:
        """The image of a case, open for reading patches.

        Raises:
            DataError: unknown_case, where the brick store does not have it.
        """
        row = self.rows.get(case_id)
        if row is None:
            raise DataError(f"case {case_id!r} has no image in {self.uri}", "Ingest it.", code="unknown_case")
        return self.store.reader(row)

    def read(self, case_id: str) -> Array:
        """The image of a case, (C, D, H, W) in its stored type.

        Raises:
            DataError: unknown_case, where the brick store does not have it.
            DamagedCase: it fails its checksum.
        """
        reader = self.reader(case_id)
        return reader.read_patch((0, 0, 0), reader.shape)[0]
