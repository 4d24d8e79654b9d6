"""What a clinic answered, on its own disk: an order that comes twice gets the same answer, for nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedvox import storage
from fedvox.errors import DataError
from fedvox_federation.protocol import Array, Arrays, ClinicReply, RoundOrder, arrays_sha256

log = logging.getLogger(__name__)

_KEPT_ROUNDS = 2


def order_sha256(order: RoundOrder, arrays: Mapping[str, Array]) -> str:
    """Of what was asked, arrays included."""
    asked = json.dumps(dataclasses.asdict(order), sort_keys=True)
    return hashlib.sha256(f"{asked}\0{arrays_sha256(arrays)}".encode()).hexdigest()


class ReplyCache:
    """The last rounds' replies of one run.

    Args:
        folder: of the run, in the clinic's own; made when first written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, reply: ClinicReply, asked: str) -> None:
        """Put a reply on disk, for good when this returns; older rounds are dropped."""
        place = self.folder / f"round-{reply.round_number:05d}"
        write_arrays(place / "arrays.npz", reply.arrays)
        facts = {k: v for k, v in vars(reply).items() if k not in ("arrays", "refusal")}
        text = json.dumps({"asked": asked, "reply": facts}, indent=1)
        storage.write_atomic(storage.locate(place / "reply.json"), text.encode())
        for old in sorted(self.folder.glob("round-*"))[:-_KEPT_ROUNDS]:
            shutil.rmtree(old)

    def find(self, order: RoundOrder, asked: str, update_sha256: str) -> ClinicReply | None:
        """The reply to exactly this order, if it is still there and holds the update that the ledger committed."""
        place = self.folder / f"round-{order.round_number:05d}"
        try:
            value: dict[str, Any] = json.loads((place / "reply.json").read_text())
            arrays = read_arrays(place / "arrays.npz")
        except (OSError, ValueError, DataError) as damaged:
            log.warning("%s: no answer to send again: %s", place, damaged)
            return None
        if value["asked"] != asked or arrays_sha256(arrays) != update_sha256:
            return None
        return ClinicReply(**{**value["reply"], "arrays": arrays, "replayed": True})


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Arrays by name as a NumPy archive, written atomically."""
    buffer = io.BytesIO()
    members: dict[str, Any] = {f"array_{n}": value for n, value in enumerate(arrays.values())}
    np.savez(buffer, **members, names=np.array(list(arrays), str))
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_atomic(storage.locate(path), buffer.getvalue())


def read_arrays(path: Path) -> Arrays:
    """The inverse of `write_arrays`; nothing is unpickled.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {str(name): archive[f"array_{n}"] for n, name in enumerate(archive["names"])}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: is damaged ({error})", "Restore it from a backup.", file=str(path)
        ) from error
