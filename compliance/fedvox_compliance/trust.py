"""Whom the federation believes: the signed list of assessors' keys, their roles, and what is revoked.

    root key (offline, pinned by the server)
      └── signs the trust store: assessor keys with roles, validity and studies; revoked keys and serials
            └── an assessor key signs attestations, and may endorse its own successor

The file is JSON that people can read and review: {"signed": {...}, "signatures": [...]}, the signature
being over the canonical form of "signed", so that white space is free and nothing else is. Every change
raises `sequence`; a server that remembers the last one cannot be handed an old store in which a revocation
is missing. `valid_until` makes a store that nobody tends go stale instead of trusted for ever.
"""

from __future__ import annotations

import base64
import datetime as dt
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from fedvox_compliance.assessment import Line, Name, Prose, Sha256
from fedvox_compliance.canonical import canonical_json
from fedvox_compliance.dsse import pae, strict_base64
from fedvox_compliance.errors import IntegrityError
from fedvox_compliance.instant import Instant, format_instant
from fedvox_compliance.keys import PublicKey, SigningKey

STORE_TYPE = "application/vnd.fedvox.trust-store+json"
ROTATION_TYPE = "application/vnd.fedvox.key-rotation+json"
MAX_VALIDITY_DAYS = 366
"""A clinic's state is looked at yearly (45 CFR 164.308(a)(8)); no attestation is valid for longer."""

Serial = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Base64Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{43}=$")]
Base64Signature = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{86}==$")]


class TrustStoreError(IntegrityError):
    """The trust store is damaged, unsigned, stale, rolled back, or contradicts itself."""


class Role(StrEnum):
    """What a key may do."""

    ASSESSOR = "assessor"
    """Signs attestations of any assurance level."""
    REVIEWER = "reviewer"
    """Countersigns what an assessor has signed; alone it counts nothing."""
    OBSERVER = "observer"
    """Listed, so that its signatures are recognised, but signs nothing that counts."""


class RevocationReason(StrEnum):
    """Why a key is revoked, which decides what becomes of its older signatures."""

    COMPROMISED = "compromised"
    """Somebody else may have the key: nothing it ever signed counts, since a thief can write any date."""
    RETIRED = "retired"
    """The holder stopped using it: what it signed before stays valid."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class KeyRevocation(_Model):
    """A key's end."""

    at: Instant
    reason: RevocationReason
    note: Prose = ""


class SerialRevocation(_Model):
    """One attestation's end, such as after evidence turned out false."""

    serial: Serial
    at: Instant
    note: Prose = ""


class Rotation(_Model):
    """An old key's signed word that a new one takes its place (`signature` is over the other fields)."""

    old_key: Base64Key
    new_key: Base64Key
    at: Instant
    signature: Base64Signature

    @property
    def old(self) -> PublicKey:
        """The key that vouches."""
        return _public(self.old_key)

    @property
    def new(self) -> PublicKey:
        """The key that is vouched for."""
        return _public(self.new_key)

    def holds(self) -> bool:
        """Whether the old key really signed this."""
        return self.old.verifies(
            strict_base64(self.signature), _rotation_message(self.old_key, self.new_key, self.at)
        )

    @classmethod
    def make(cls, old: SigningKey, new: PublicKey, at: dt.datetime) -> Self:
        """Let the old key sign for the new one."""
        moment = at.astimezone(dt.UTC).replace(microsecond=0)
        signature = old.sign(_rotation_message(old.public.base64, new.base64, moment))
        return cls(old_key=old.public.base64, new_key=new.base64, at=moment, signature=_base64(signature))


class TrustedKey(_Model):
    """One assessor's key.

    Attributes:
        studies: the studies it may sign for; empty means all.
        endorsement: where the key came by rotation, its predecessor's word.
    """

    public_key: Base64Key
    name: Name
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    valid_from: Instant
    valid_until: Instant
    studies: tuple[Name, ...] = ()
    endorsement: Rotation | None = None
    revoked: KeyRevocation | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.valid_until <= self.valid_from:
            raise ValueError(f"the key of {self.name} ends before it begins")
        if self.endorsement is not None and self.endorsement.new_key != self.public_key:
            raise ValueError(f"the endorsement of {self.name}'s key is for another key")
        return self

    @property
    def key(self) -> PublicKey:
        """The key itself."""
        return _public(self.public_key)

    @property
    def key_id(self) -> str:
        """Its identifier."""
        return self.key.key_id


class TrustStore(_Model):
    """Everything the root key vouches for at one moment.

    Attributes:
        sequence: raised by every change.
        valid_until: after this, the store must be signed afresh, even if nothing changed.
        required_signatures: how many different keys must sign an attestation; one of them the assessor's.
        root_rotations: from the first root key to the present one, oldest first.
    """

    schema_: Annotated[Literal["fedvox.trust-store/1"], Field(alias="schema")] = "fedvox.trust-store/1"
    name: Line = ""
    sequence: Annotated[int, Field(ge=1)] = 1
    updated_at: Instant
    valid_until: Instant
    required_signatures: Annotated[int, Field(ge=1, le=9)] = 1
    root_rotations: tuple[Rotation, ...] = ()
    keys: Annotated[tuple[TrustedKey, ...], Field(max_length=1000)] = ()
    revoked_serials: Annotated[tuple[SerialRevocation, ...], Field(max_length=100_000)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        ids = [key.key_id for key in self.keys]
        if len(set(ids)) != len(ids):
            raise ValueError("a key is listed twice")
        for key in self.keys:
            if key.endorsement is not None:
                self._check_endorsement(key, key.endorsement)
        return self

    def _check_endorsement(self, key: TrustedKey, word: Rotation) -> None:
        old = self.find(word.old.key_id)
        if old is None or not word.holds():
            raise ValueError(f"the endorsement of {key.name}'s key is not signed by a key of this store")
        if set(key.roles) - set(old.roles) or (old.studies and set(key.studies or ("*",)) - set(old.studies)):
            raise ValueError(f"the key of {key.name} has more rights than the key that endorsed it")

    def find(self, key_id: str) -> TrustedKey | None:
        """The key with this identifier, if the store lists it."""
        return next((key for key in self.keys if key.key_id == key_id), None)

    def is_serial_revoked(self, serial: str) -> bool:
        """Whether the attestation with this serial has been withdrawn."""
        return any(item.serial == serial for item in self.revoked_serials)


class StoreSignature(_Model):
    """A root key's signature over the canonical form of the store."""

    key_id: Sha256
    signature: Base64Signature


class SignedTrustStore(_Model):
    """What the file holds."""

    signed: TrustStore
    signatures: Annotated[tuple[StoreSignature, ...], Field(min_length=1, max_length=4)]


def current_root(store: TrustStore, pinned: PublicKey) -> PublicKey:
    """Follow the rotations from the pinned root key to the one that must sign now.

    Raises:
        TrustStoreError: a rotation is not signed by its old key.
    """
    root = pinned
    for rotation in store.root_rotations:
        if not rotation.holds():
            raise TrustStoreError(
                "a rotation of the root key is not signed by the old one", "Get a fresh trust store."
            )
        if rotation.old == root:
            root = rotation.new
    return root


def store_message(signed: object) -> bytes:
    """What a root key signs: the typed, canonical form of the store as it stands in the file."""
    return pae(STORE_TYPE, canonical_json(signed))


def _rotation_message(old: str, new: str, at: dt.datetime) -> bytes:
    return pae(ROTATION_TYPE, canonical_json({"old_key": old, "new_key": new, "at": format_instant(at)}))


def _public(base64_key: str) -> PublicKey:
    return PublicKey(strict_base64(base64_key))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
