"""The trust store as a file: read with every check, written whole, changed only by the root key."""

from __future__ import annotations

import base64
import datetime as dt
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedvox_compliance.canonical import NotCanonical, canonical_json, parse_strict
from fedvox_compliance.dsse import strict_base64
from fedvox_compliance.files import write_atomic
from fedvox_compliance.keys import PublicKey, SigningKey
from fedvox_compliance.trust import (
    KeyRevocation,
    RevocationReason,
    Rotation,
    SerialRevocation,
    SignedTrustStore,
    StoreSignature,
    TrustedKey,
    TrustStore,
    TrustStoreError,
    current_root,
    store_message,
)

MAX_STORE_BYTES = 32 * 1024 * 1024
STORE_VALID_DAYS = 90
"""How long a signed store is believed before the root key must sign it again."""


def load_trust_store(
    path: Path, *, root: PublicKey, now: dt.datetime, min_sequence: int = 1, allow_stale: bool = False
) -> TrustStore:
    """Read a trust store and believe it only if the root key signed exactly this.

    Args:
        path: the file.
        root: the pinned root key (or an earlier one, from which signed rotations lead to the present one).
        now: the present moment, with time zone.
        min_sequence: the highest sequence seen before; older stores are refused as rolled back.
        allow_stale: read a store past its `valid_until`, to renew it; never for verification.

    Raises:
        TrustStoreError: missing, malformed, not signed by the root key, stale, from the future, or rolled
            back.
    """
    raw = _read(path)
    document = _validate(path, raw)
    message = store_message(raw["signed"])
    signer = current_root(document.signed, root)
    signed = any(
        s.key_id == signer.key_id and signer.verifies(strict_base64(s.signature), message)
        for s in document.signatures
    )
    if not signed:
        raise TrustStoreError(
            f"{path}: not signed by the root key {signer.key_id[:16]}…",
            "Get the file again from the coordinator, and check which root key is pinned.",
        )
    _check_freshness(path, document.signed, now, min_sequence, allow_stale)
    return document.signed


def save_trust_store(path: Path, store: TrustStore, *roots: SigningKey) -> None:
    """Sign a store and write it atomically, readable by people.

    Args:
        path: file to write or replace.
        store: what to sign.
        roots: the root key; both the old and the new one while a rotation of the root is under way.
    """
    signed = store.model_dump(mode="json", by_alias=True)
    message = store_message(signed)
    signatures = [
        StoreSignature(
            key_id=key.public.key_id, signature=base64.b64encode(key.sign(message)).decode("ascii")
        )
        for key in roots
    ]
    document = {"signed": signed, "signatures": [s.model_dump(mode="json") for s in signatures]}
    write_atomic(path, json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8") + b"\n", mode=0o644)


def new_store(name: str, now: dt.datetime, *, required_signatures: int = 1) -> TrustStore:
    """An empty store, with sequence 1."""
    return TrustStore(
        name=name,
        updated_at=now,
        valid_until=now + dt.timedelta(days=STORE_VALID_DAYS),
        required_signatures=required_signatures,
    )


def renew(store: TrustStore, now: dt.datetime) -> TrustStore:
    """The same store with the next sequence, fresh for another `STORE_VALID_DAYS`."""
    return _changed(store, now)


def add_key(store: TrustStore, key: TrustedKey, now: dt.datetime) -> TrustStore:
    """A store that also trusts `key`.

    Raises:
        TrustStoreError: the key is listed already (also when it is revoked: a revoked key never comes back).
    """
    if store.find(key.key_id) is not None:
        raise TrustStoreError(
            f"the key {key.key_id[:16]}… is listed already", "Make a new key; a revoked one stays revoked."
        )
    return _changed(store, now, keys=(*store.keys, key))


def add_rotated_key(
    store: TrustStore, rotation: Rotation, valid_until: dt.datetime, now: dt.datetime
) -> TrustStore:
    """A store in which an endorsed new key takes the place of the old one, which is retired.

    The new key gets the old one's name, roles and studies, never more.

    Raises:
        TrustStoreError: the old key is not listed, is revoked, or did not sign.
    """
    old = store.find(rotation.old.key_id)
    if old is None or not rotation.holds():
        raise TrustStoreError(
            "the rotation is not signed by a key of this store", "Let the assessor's old key sign it."
        )
    if old.revoked is not None:
        raise TrustStoreError(
            f"the old key of {old.name} is revoked ({old.revoked.reason.value})",
            "Add the new key with the root key instead.",
        )
    new = TrustedKey(
        public_key=rotation.new_key,
        name=old.name,
        roles=old.roles,
        valid_from=rotation.at,
        valid_until=valid_until,
        studies=old.studies,
        endorsement=rotation,
    )
    grown = add_key(store, new, now)
    retired = KeyRevocation(at=now, reason=RevocationReason.RETIRED, note="rotated")
    keys = tuple(
        k.model_copy(update={"revoked": retired}) if k.key_id == old.key_id else k for k in grown.keys
    )
    return grown.model_copy(update={"keys": keys})


def revoke_key(
    store: TrustStore, key_id: str, reason: RevocationReason, now: dt.datetime, note: str = ""
) -> TrustStore:
    """A store in which a key is revoked. `key_id` may be shortened to its first 16 digits or more.

    A retired key may still be declared compromised; nothing weakens a revocation.

    Raises:
        TrustStoreError: no such key, or it is revoked as compromised already.
    """
    matches = [key for key in store.keys if len(key_id) >= 16 and key.key_id.startswith(key_id)]
    if len(matches) != 1:
        raise TrustStoreError(
            f"{len(matches)} keys match {key_id!r}", "Give at least 16 digits, as `trust show` prints them."
        )
    target = matches[0]
    if target.revoked is not None and target.revoked.reason is RevocationReason.COMPROMISED:
        raise TrustStoreError(f"the key of {target.name} is revoked as compromised already")
    end = KeyRevocation(at=now, reason=reason, note=note)
    keys = tuple(key.model_copy(update={"revoked": end}) if key is target else key for key in store.keys)
    return _changed(store, now, keys=keys)


def revoke_serial(store: TrustStore, serial: str, now: dt.datetime, note: str = "") -> TrustStore:
    """A store in which one attestation is withdrawn.

    Raises:
        TrustStoreError: not a serial, or withdrawn already.
    """
    if store.is_serial_revoked(serial):
        raise TrustStoreError(f"the attestation {serial} is withdrawn already")
    try:
        item = SerialRevocation(serial=serial, at=now, note=note)
    except ValidationError as error:
        if error.errors()[0]["loc"] != ("serial",):
            raise TrustStoreError("the note is too long", "Say why in a sentence.") from error
        raise TrustStoreError(
            f"{serial!r} is not a serial", "A serial has 32 hexadecimal digits; `verify` prints it."
        ) from error
    return _changed(store, now, revoked_serials=(*store.revoked_serials, item))


def rotate_root(store: TrustStore, old: SigningKey, new: PublicKey, now: dt.datetime) -> TrustStore:
    """A store that leads from the old root key to a new one; sign it with both."""
    return _changed(store, now, root_rotations=(*store.root_rotations, Rotation.make(old, new, now)))


def _changed(store: TrustStore, now: dt.datetime, **update: Any) -> TrustStore:
    moment = now.astimezone(dt.UTC).replace(microsecond=0)
    bookkeeping = {
        "sequence": store.sequence + 1,
        "updated_at": moment,
        "valid_until": moment + dt.timedelta(days=STORE_VALID_DAYS),
    }
    changed = store.model_copy(update=bookkeeping | update)
    return TrustStore.model_validate_json(canonical_json(changed.model_dump(mode="json", by_alias=True)))


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STORE_BYTES + 1)
    except OSError as error:
        raise TrustStoreError(
            f"{path}: {error.strerror}", "Name the trust store that the coordinator gave you."
        ) from error
    if len(data) > MAX_STORE_BYTES:
        raise TrustStoreError(f"{path}: larger than {MAX_STORE_BYTES} bytes", "This is not a trust store.")
    try:
        raw = parse_strict(data)
    except NotCanonical as error:
        raise TrustStoreError(f"{path}: {error}", "Get the file again from the coordinator.") from error
    if not isinstance(raw, dict):
        raise TrustStoreError(f"{path}: not a trust store", "Get the file again from the coordinator.")
    return raw


def _validate(path: Path, raw: dict[str, Any]) -> SignedTrustStore:
    try:
        return SignedTrustStore.model_validate_json(canonical_json(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TrustStoreError(
            f"{path}: {where}: {first['msg']}", "Get the file again from the coordinator."
        ) from error


def _check_freshness(
    path: Path, store: TrustStore, now: dt.datetime, min_sequence: int, allow_stale: bool
) -> None:
    if store.sequence < min_sequence:
        raise TrustStoreError(
            f"{path}: sequence {store.sequence} is older than {min_sequence}, seen before",
            "Get the present file; an old one may lack revocations.",
        )
    if store.updated_at > now + dt.timedelta(minutes=5):
        raise TrustStoreError(
            f"{path}: signed in the future ({store.updated_at:%Y-%m-%d})", "Check this machine's clock."
        )
    if now >= store.valid_until and not allow_stale:
        raise TrustStoreError(
            f"{path}: went stale on {store.valid_until:%Y-%m-%d}",
            "Ask the coordinator to run `trust renew` and send it.",
        )
