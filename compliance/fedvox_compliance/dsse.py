"""DSSE envelopes with exactly one spelling, and Ed25519 signatures over typed payloads.

    signature = Ed25519(PAE(payload type, payload))        so a signature made for one purpose serves no other
    envelope  = canonical JSON of {payload, payloadType, signatures: [{keyid, sig}, …]}

The Dead Simple Signing Envelope lets readers ignore unknown members, accept two alphabets of base64 and any
white space. Here the envelope must be canonical too: the same attestation is never two different files.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from fedvox_compliance.canonical import NotCanonical, canonical_json, parse_canonical
from fedvox_compliance.keys import SigningKey

MAX_ENVELOPE_BYTES = 64 * 1024
"""An attestation has about 2 kB; anything far beyond is refused before it is parsed."""


@dataclass(frozen=True)
class Signature:
    """One signature: the signer's key identifier (64 hexadecimal digits) and 64 bytes."""

    key_id: str
    value: bytes


@dataclass(frozen=True)
class Envelope:
    """A payload, its type, and the signatures over both, ordered by key identifier."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def to_bytes(self) -> bytes:
        """The only serialised form of this envelope."""
        document = {
            "payload": base64.b64encode(self.payload).decode("ascii"),
            "payloadType": self.payload_type,
            "signatures": [
                {"keyid": s.key_id, "sig": base64.b64encode(s.value).decode("ascii")}
                for s in sorted(self.signatures, key=lambda s: s.key_id)
            ],
        }
        return canonical_json(document)

    @classmethod
    def from_bytes(cls, data: bytes) -> Envelope:
        """Read an envelope.

        Raises:
            NotCanonical: too large, not canonical JSON, unknown or missing members, sloppy base64, no
                signature or two by the same key.
        """
        if len(data) > MAX_ENVELOPE_BYTES:
            raise NotCanonical(f"the envelope has {len(data)} bytes; {MAX_ENVELOPE_BYTES} is the most")
        document = _members(parse_canonical(data), "the envelope", "payload", "payloadType", "signatures")
        if not isinstance(document["payloadType"], str) or not isinstance(document["signatures"], list):
            raise NotCanonical("payloadType must be text and signatures a list")
        signatures = tuple(_signature(item) for item in document["signatures"])
        key_ids = [s.key_id for s in signatures]
        if not signatures or key_ids != sorted(set(key_ids)):
            raise NotCanonical("an envelope needs at least one signature, one for each key, ordered by key")
        return cls(document["payloadType"], strict_base64(document["payload"]), signatures)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding of DSSE v1: what is signed in place of the bare payload."""
    kind = payload_type.encode("utf-8")
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])


def seal(payload_type: str, payload: bytes, *keys: SigningKey) -> Envelope:
    """Sign a payload with one key or several."""
    message = pae(payload_type, payload)
    return Envelope(payload_type, payload, tuple(Signature(k.public.key_id, k.sign(message)) for k in keys))


def strict_base64(text: Any) -> bytes:
    """Decode base64 of the standard alphabet, refusing every other spelling of the same bytes.

    Raises:
        NotCanonical: not text, foreign characters, wrong padding, or bits set behind the end.
    """
    if not isinstance(text, str):
        raise NotCanonical("base64 must be text")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise NotCanonical(f"not base64: {error}") from error
    if base64.b64encode(data).decode("ascii") != text:
        raise NotCanonical("base64 with bits behind its end")
    return data


def _signature(item: Any) -> Signature:
    members = _members(item, "a signature", "keyid", "sig")
    key_id, value = members["keyid"], strict_base64(members["sig"])
    if not isinstance(key_id, str) or len(value) != 64:
        raise NotCanonical("a signature needs a key identifier and 64 bytes")
    return Signature(key_id, value)


def _members(value: Any, what: str, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise NotCanonical(f"{what} must have exactly the members {', '.join(names)}")
    return value
