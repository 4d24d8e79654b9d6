"""An edited mask that comes through the browser: streamed to a file, checked, told, and kept until it is confirmed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.concurrency import run_in_threadpool

from fedvox.curation.exchange.difference import changes
from fedvox.curation.exchange.edited import ENDINGS, read_edited
from fedvox.curation.review.sessions import Session, Uploaded
from fedvox.curation.review.views import Reading
from fedvox.curation.store import LabelStore
from fedvox.errors import DataError


async def receive_upload(
    store: LabelStore,
    session: Session,
    reading: Reading,
    version: int,
    name: str,
    stream: AsyncIterator[bytes],
    *,
    allow_empty: bool,
) -> dict[str, Any]:
    """Takes an edited mask in.

    Args:
        store: where its mask is written; no version knows it until the person confirms.
        session: remembers it.
        reading: of the case.
        version: number of the version that was edited.
        name: of the file, as the browser tells it.
        stream: its bytes.
        allow_empty: take a mask without any structure.

    Returns:
        What it changes, as JSON holds it.

    Raises:
        DataError: see `read_edited`; or unchanged, unknown_version.
    """
    ending = next((one for one in ENDINGS if name.lower().endswith(one)), None)
    if ending is None:
        raise DataError(
            f"{name or 'the file'} is neither NIfTI nor NRRD",
            f"Save the mask with one of the endings {', '.join(ENDINGS)}.",
            code="unsupported_type",
        )
    with tempfile.TemporaryDirectory(prefix="fedvox-upload-") as folder:
        # Of the name only letters that are safe are kept; it is shown in messages.
        path = Path(folder) / (
            re.sub(r"[^A-Za-z0-9._-]", "_", Path(name).name[: -len(ending)])[-80:] + ending
        )
        with path.open("wb") as file:
            async for part in stream:
                file.write(part)
        return await run_in_threadpool(_check, store, session, reading, version, path, allow_empty)


def _check(
    store: LabelStore, session: Session, reading: Reading, version: int, path: Path, allow_empty: bool
) -> dict[str, Any]:
    case = reading.case
    before = store.read_mask(reading.version(version))
    try:
        mask = read_edited(path, case, store.structures, allow_empty=allow_empty)
    except DataError as error:
        message = error.message.replace(str(path), path.name)  # where it lay in between is nobody's concern
        raise DataError(message, error.remedy, code=error.code, file=path.name) from None
    if np.array_equal(mask, before):
        raise DataError(
            f"{path.name} is the same mask as version {version}",
            "If it is right as it is, accept it.",
            code="unchanged",
        )
    session.uploaded = Uploaded(case.case_id, store.write_mask(case.case_id, mask), version, path.name)
    told = changes(before, mask, store.structures, case.spacing_mm)
    return {"file": path.name, "parent": version, "changes": [asdict(one) for one in told if one.changed]}
