"""Issue and verify attestations: the only form in which a compliance result reaches the federation.

    envelope = issue(predicate, key)                                              at the assessor's
    verified = verify_attestation(envelope, store, now=…, study=…, …)             at the server

Verification believes nothing it has not checked, in this order: the envelope's only spelling, each
signature and the key behind it, then (and only then) the payload, its serial, its times, and whether it
speaks of this clinic, this study, this node and these questions. Every refusal has its own reason; there is
no partial success.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from fedvox_compliance.canonical import NotCanonical
from fedvox_compliance.catalogue import Catalogue
from fedvox_compliance.dsse import Envelope, Signature, pae, seal
from fedvox_compliance.errors import IntegrityError
from fedvox_compliance.judgement import Assurance
from fedvox_compliance.keys import SigningKey, node_key_fingerprint
from fedvox_compliance.statement import PAYLOAD_TYPE, CatalogueVersion, Predicate, Statement
from fedvox_compliance.trust import RevocationReason, Role, TrustedKey, TrustStore

CLOCK_SKEW = dt.timedelta(minutes=5)
"""How far the assessor's clock may run ahead of the server's."""


class Reason(StrEnum):
    """Why an attestation is refused."""

    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown key"
    BAD_SIGNATURE = "bad signature"
    REVOKED_KEY = "revoked key"
    KEY_NOT_VALID = "key not valid"
    """The key is known, but was not yet or no longer valid when it signed."""
    ROLE_NOT_ALLOWED = "role not allowed"
    TOO_FEW_SIGNATURES = "too few signatures"
    REVOKED_SERIAL = "revoked serial"
    NOT_YET_VALID = "not yet valid"
    EXPIRED = "expired"
    OTHER_CLINIC = "other clinic"
    OTHER_STUDY = "other study"
    OTHER_NODE_KEY = "other node key"
    UNKNOWN_FRAMEWORK_VERSION = "unknown framework version"


class AttestationRefused(IntegrityError):
    """An attestation that must not be used. It counts as no attestation at all.

    Args:
        reason: machine-readable.
        detail: what was found and what was expected.
        remedy: what to do about it.
    """

    def __init__(
        self, reason: Reason, detail: str, remedy: str = "Ask the assessor for a new attestation."
    ) -> None:
        super().__init__(f"attestation refused ({reason.value}): {detail}", remedy)
        self.reason = reason
        self.exit_code = 7 if reason is Reason.EXPIRED else IntegrityError.exit_code


@dataclass(frozen=True)
class VerifiedAttestation:
    """What the federation may rely on.

    Attributes:
        score: in [0, 1], as recomputed by the assessor, cut to four decimals.
        tier: 0 to 4; what the noise policy uses.
        eligible: whether the clinic may take part at all.
        assurance: how well the answers are shown, over all.
        key_ids: who signed.
    """

    serial: str
    clinic: str
    study: str
    node_key: str
    score: float
    tier: int
    eligible: bool
    assurance: Assurance
    key_ids: tuple[str, ...]
    issued_at: dt.datetime
    expires_at: dt.datetime
    statement: Statement


def new_serial() -> str:
    """128 random bits in hexadecimal."""
    return secrets.token_hex(16)


def issue(predicate: Predicate, *keys: SigningKey) -> bytes:
    """Sign a predicate.

    Args:
        predicate: names the first key as the assessor's.
        keys: the assessor's key, and those of further assessors where the study wants several.

    Returns:
        The envelope.

    Raises:
        ValueError: the predicate names another key.
    """
    if not keys or predicate.assessor.key_id != keys[0].public.key_id:
        raise ValueError("the predicate must name the first signing key as the assessor's")
    return seal(PAYLOAD_TYPE, Statement.about(predicate).to_bytes(), *keys).to_bytes()


def countersign(envelope_bytes: bytes, key: SigningKey) -> bytes:
    """Add another assessor's signature, over the same payload.

    Raises:
        AttestationRefused: malformed, or signed by this key already.
    """
    envelope, statement = _open(envelope_bytes)
    if any(s.key_id == key.public.key_id for s in envelope.signatures):
        raise AttestationRefused(
            Reason.MALFORMED, f"{statement.predicate.serial} has this key's signature already", ""
        )
    added = Signature(key.public.key_id, key.sign(pae(envelope.payload_type, envelope.payload)))
    return Envelope(envelope.payload_type, envelope.payload, (*envelope.signatures, added)).to_bytes()


def read_unverified(envelope_bytes: bytes) -> Statement:
    """What an envelope claims, for display only: nothing about it is checked.

    Raises:
        AttestationRefused: malformed.
    """
    return _open(envelope_bytes)[1]


def verify_attestation(
    envelope_bytes: bytes,
    trust_store: TrustStore,
    *,
    now: dt.datetime,
    study: str,
    node_key: bytes | str,
    clinic: str,
    catalogues: Iterable[Catalogue],
) -> VerifiedAttestation:
    """Believe an attestation, or say why not.

    Args:
        envelope_bytes: as the clinic presents it.
        trust_store: from `load_trust_store`, which has checked its own signature.
        now: the present moment, with time zone.
        study: the study that is about to run.
        node_key: the public key with which the presenting node authenticated (PEM, DER, OpenSSH or
            fingerprint).
        clinic: the clinic that the node's key is registered for.
        catalogues: the question catalogues that the study accepts.

    Returns:
        The verified result.

    Raises:
        AttestationRefused: with its `reason`.
    """
    try:
        envelope = Envelope.from_bytes(envelope_bytes)
    except NotCanonical as error:
        raise AttestationRefused(Reason.MALFORMED, str(error)) from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise AttestationRefused(Reason.MALFORMED, f"the payload type is {envelope.payload_type[:80]!r}")
    signers = [_verify_signature(envelope, s, trust_store) for s in envelope.signatures]
    body = _statement(envelope).predicate
    _check_signers(body, signers, trust_store)
    _check_serial_and_times(body, trust_store, now)
    _check_bindings(body, study, node_key, clinic)
    _check_catalogue(body, catalogues)
    return VerifiedAttestation(
        serial=body.serial,
        clinic=body.clinic,
        study=body.study,
        node_key=body.node_key,
        score=float(body.result.score),
        tier=body.result.tier,
        eligible=body.result.eligible,
        assurance=_assurance(body),
        key_ids=tuple(k.key_id for k in signers),
        issued_at=body.issued_at,
        expires_at=body.expires_at,
        statement=Statement.about(body),
    )


def _open(envelope_bytes: bytes) -> tuple[Envelope, Statement]:
    try:
        envelope = Envelope.from_bytes(envelope_bytes)
    except NotCanonical as error:
        raise AttestationRefused(Reason.MALFORMED, str(error)) from error
    return envelope, _statement(envelope)


def _statement(envelope: Envelope) -> Statement:
    try:
        statement = Statement.from_bytes(envelope.payload)
    except NotCanonical as error:
        raise AttestationRefused(Reason.MALFORMED, str(error)) from error
    _assurance(statement.predicate)
    return statement


def _assurance(body: Predicate) -> Assurance:
    for level in Assurance:
        if level.label == body.result.assurance:
            return level
    raise AttestationRefused(Reason.MALFORMED, f"{body.result.assurance!r} is no assurance level")


def _verify_signature(envelope: Envelope, signature: Signature, store: TrustStore) -> TrustedKey:
    """The trusted key behind one signature. Nothing of the payload is read here."""
    key = store.find(signature.key_id)
    if key is None:
        raise AttestationRefused(Reason.UNKNOWN_KEY, f"{signature.key_id[:80]!r} is not in the trust store")
    if not key.key.verifies(signature.value, pae(envelope.payload_type, envelope.payload)):
        raise AttestationRefused(Reason.BAD_SIGNATURE, f"not signed by the key of {key.name}")
    return key


def _check_signers(body: Predicate, signers: list[TrustedKey], store: TrustStore) -> None:
    for key in signers:
        _check_signer(body, key)
    if body.assessor.key_id not in {key.key_id for key in signers}:
        raise AttestationRefused(Reason.BAD_SIGNATURE, "the assessor named in it has not signed it")
    if len(signers) < store.required_signatures:
        needed = store.required_signatures
        raise AttestationRefused(Reason.TOO_FEW_SIGNATURES, f"{len(signers)} of {needed} have signed")


def _check_signer(body: Predicate, key: TrustedKey) -> None:
    end = key.revoked
    if end is not None and (end.reason is RevocationReason.COMPROMISED or body.issued_at >= end.at):
        raise AttestationRefused(Reason.REVOKED_KEY, f"the key of {key.name} is revoked ({end.reason.value})")
    if not key.valid_from <= body.issued_at < key.valid_until:
        period = f"{key.valid_from:%Y-%m-%d} to {key.valid_until:%Y-%m-%d}"
        raise AttestationRefused(Reason.KEY_NOT_VALID, f"the key of {key.name} is valid from {period}")
    leads = key.key_id == body.assessor.key_id
    if Role.ASSESSOR not in key.roles and (leads or Role.REVIEWER not in key.roles):
        what = "sign as assessor" if leads else "countersign"
        raise AttestationRefused(Reason.ROLE_NOT_ALLOWED, f"the key of {key.name} may not {what}")
    if leads and key.name != body.assessor.name:
        raise AttestationRefused(
            Reason.ROLE_NOT_ALLOWED, f"the key belongs to {key.name}, not to {body.assessor.name}"
        )
    if key.studies and body.study not in key.studies:
        raise AttestationRefused(
            Reason.ROLE_NOT_ALLOWED, f"the key of {key.name} may not sign for {body.study!r}"
        )


def _check_serial_and_times(body: Predicate, store: TrustStore, now: dt.datetime) -> None:
    if store.is_serial_revoked(body.serial):
        raise AttestationRefused(Reason.REVOKED_SERIAL, f"{body.serial} has been withdrawn")
    begins = max(body.not_before, body.issued_at)
    if now + CLOCK_SKEW < begins:
        raise AttestationRefused(
            Reason.NOT_YET_VALID, f"valid from {begins:%Y-%m-%d %H:%M} UTC", "Wait, or check the clock."
        )
    if now >= body.expires_at:
        raise AttestationRefused(Reason.EXPIRED, f"expired on {body.expires_at:%Y-%m-%d %H:%M} UTC")


def _check_bindings(body: Predicate, study: str, node_key: bytes | str, clinic: str) -> None:
    if body.clinic != clinic:
        raise AttestationRefused(Reason.OTHER_CLINIC, f"it is about {body.clinic!r}, not {clinic!r}")
    if body.study != study:
        raise AttestationRefused(Reason.OTHER_STUDY, f"it is for {body.study!r}, not {study!r}")
    presented = node_key_fingerprint(node_key)
    if not secrets.compare_digest(body.node_key, presented):
        raise AttestationRefused(
            Reason.OTHER_NODE_KEY, f"it is for the node {body.node_key[:23]}…, not {presented[:23]}…"
        )


def _check_catalogue(body: Predicate, catalogues: Iterable[Catalogue]) -> None:
    if not any(CatalogueVersion.of(catalogue) == body.catalogue for catalogue in catalogues):
        found = body.catalogue
        raise AttestationRefused(
            Reason.UNKNOWN_FRAMEWORK_VERSION,
            f"catalogue {found.version} ({found.sha256[:12]}, profile {found.profile!r}) is not accepted",
            "Answer the present catalogue, and have it assessed again.",
        )
