"""Attestations: the genuine one is believed, and nothing else is, each for its own reason."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime as dt
import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox_compliance.attestation import (
    AttestationRefused,
    Reason,
    countersign,
    issue,
    new_serial,
    read_unverified,
    verify_attestation,
)
from fedvox_compliance.canonical import canonical_json
from fedvox_compliance.catalogue import load_catalogue
from fedvox_compliance.dsse import MAX_ENVELOPE_BYTES, Envelope, pae, seal
from fedvox_compliance.judgement import Assurance
from fedvox_compliance.statement import PAYLOAD_TYPE, score_text
from fedvox_compliance.trust import KeyRevocation, RevocationReason, Role, SerialRevocation, TrustStore

# The order of the group of Ed25519 (RFC 8032, section 5.1): S + L verifies under sloppy implementations.
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def refusal(federation: Any, envelope: bytes, **changes: Any) -> Reason:
    with pytest.raises(AttestationRefused) as caught:
        federation.verify(envelope, **changes)
    assert caught.value.exit_code == (7 if caught.value.reason is Reason.EXPIRED else 6)
    return caught.value.reason


def with_store(federation: Any, **changes: Any) -> TrustStore:
    store: TrustStore = federation.store.model_copy(update=changes)
    return store


def test_a_genuine_attestation_is_believed_with_what_it_says(federation: Any) -> None:
    verified = federation.verify(federation.envelope())
    assert verified.score == 0.6134
    assert (verified.tier, verified.eligible, verified.assurance) == (3, True, Assurance.DOCUMENT)
    assert (verified.clinic, verified.study) == (federation.clinic, federation.study)
    assert verified.key_ids == (federation.assessor.public.key_id,)
    assert verified.expires_at == federation.now + dt.timedelta(days=180)


def test_pre_authentication_encoding_is_that_of_the_dsse_specification() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md, test vector
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_confirms_the_signature_from_the_envelope_alone(federation: Any, tmp_path: Path) -> None:
    document = json.loads(federation.envelope())
    payload = base64.b64decode(document["payload"])
    message = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    (tmp_path / "m").write_bytes(message)
    (tmp_path / "s").write_bytes(base64.b64decode(document["signatures"][0]["sig"]))
    (tmp_path / "k").write_text(federation.assessor.public.pem)
    command = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        "k",
        "-rawin",
        "-in",
        "m",
        "-sigfile",
        "s",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Signature Verified Successfully" in result.stdout, result.stderr


def test_the_payload_is_an_in_toto_statement_about_the_clinics_answers(federation: Any) -> None:
    payload = json.loads(base64.b64decode(json.loads(federation.envelope())["payload"]))
    assert set(payload) == {"_type", "subject", "predicateType", "predicate"}
    assert payload["_type"] == "https://in-toto.io/Statement/v1"
    assert payload["subject"] == [{"name": federation.clinic, "digest": {"sha256": "c1" * 32}}]


def test_no_text_of_an_attestation_claims_conformity(federation: Any) -> None:
    text = json.dumps(read_unverified(federation.envelope()).model_dump(mode="json")).lower()
    assert "compliant" not in text
    assert "certified" not in text
    assert "not a certification" in text


Change = Callable[[Any, SimpleNamespace], tuple[bytes, dict[str, Any]]]


def revoked(federation: Any, reason: RevocationReason, at: dt.datetime) -> TrustStore:
    first, *others = federation.store.keys
    end = KeyRevocation(at=at, reason=reason)
    return with_store(federation, keys=(first.model_copy(update={"revoked": end}), *others))


REFUSALS: dict[str, tuple[Reason, Change]] = {
    "not JSON": (Reason.MALFORMED, lambda f, m: (b"hello", {})),
    "empty": (Reason.MALFORMED, lambda f, m: (b"", {})),
    "huge": (Reason.MALFORMED, lambda f, m: (b" " * (MAX_ENVELOPE_BYTES + 1), {})),
    "a key nobody knows": (Reason.UNKNOWN_KEY, lambda f, m: (f.envelope(m.key(99)), {})),
    "a known key's name under a stranger's signature": (
        Reason.BAD_SIGNATURE,
        lambda f, m: (renamed(f, m), {}),
    ),
    "a stolen key, used before the theft was noticed": (
        Reason.REVOKED_KEY,
        lambda f, m: (f.envelope(), {"store": revoked(f, RevocationReason.COMPROMISED, m.now)}),
    ),
    "a retired key, used after it was retired": (
        Reason.REVOKED_KEY,
        lambda f, m: (f.envelope(), {"store": revoked(f, RevocationReason.RETIRED, m.now - 2 * m.day)}),
    ),
    "a key before its time": (
        Reason.KEY_NOT_VALID,
        lambda f, m: (
            f.envelope(
                issued_at=m.now - 301 * m.day, not_before=m.now - 301 * m.day, expires_at=m.now + m.day
            ),
            {},
        ),
    ),
    "an observer": (Reason.ROLE_NOT_ALLOWED, lambda f, m: (f.envelope(m.key(4)), {})),
    "a reviewer who signs as the assessor": (
        Reason.ROLE_NOT_ALLOWED,
        lambda f, m: (f.envelope(m.key(3)), {}),
    ),
    "an observer who countersigns": (
        Reason.ROLE_NOT_ALLOWED,
        lambda f, m: (countersign(f.envelope(), m.key(4)), {}),
    ),
    "an assessor under another's name": (
        Reason.ROLE_NOT_ALLOWED,
        lambda f, m: (f.envelope(assessor__name="B. Second"), {}),
    ),
    "an assessor of another study": (Reason.ROLE_NOT_ALLOWED, lambda f, m: (f.envelope(m.key(5)), {})),
    "one signature where the study wants two": (
        Reason.TOO_FEW_SIGNATURES,
        lambda f, m: (
            f.envelope(result__assurance="verified"),
            {"store": with_store(f, required_signatures=2)},
        ),
    ),
    "a withdrawn serial": (
        Reason.REVOKED_SERIAL,
        lambda f, m: (
            f.envelope(),
            {
                "store": with_store(
                    f, revoked_serials=(SerialRevocation(serial="0123456789abcdef" * 2, at=m.now),)
                )
            },
        ),
    ),
    "not yet begun": (
        Reason.NOT_YET_VALID,
        lambda f, m: (f.envelope(not_before=m.now + m.day, expires_at=m.now + 2 * m.day), {}),
    ),
    "issued in the future": (Reason.NOT_YET_VALID, lambda f, m: (f.envelope(issued_at=m.now + m.day), {})),
    "ended this second": (Reason.EXPIRED, lambda f, m: (f.envelope(expires_at=m.now), {})),
    "ended long ago": (Reason.EXPIRED, lambda f, m: (f.envelope(), {"now": m.now + 181 * m.day})),
    "replayed by another clinic": (
        Reason.OTHER_CLINIC,
        lambda f, m: (f.envelope(), {"clinic": "Hôpital Sud"}),
    ),
    "the clinic's name in other case": (
        Reason.OTHER_CLINIC,
        lambda f, m: (f.envelope(), {"clinic": f.clinic.lower()}),
    ),
    "replayed in another study": (
        Reason.OTHER_STUDY,
        lambda f, m: (f.envelope(), {"study": "MAMA-MIA 2028"}),
    ),
    "replayed from another node": (
        Reason.OTHER_NODE_KEY,
        lambda f, m: (f.envelope(), {"node_key": m.node_pem(8)}),
    ),
    "answers to another catalogue": (
        Reason.UNKNOWN_FRAMEWORK_VERSION,
        lambda f, m: (f.envelope(), {"catalogues": [load_catalogue("hipaa")]}),
    ),
    "no catalogue accepted": (
        Reason.UNKNOWN_FRAMEWORK_VERSION,
        lambda f, m: (f.envelope(), {"catalogues": []}),
    ),
    "the same version with one framework reworded": (
        Reason.UNKNOWN_FRAMEWORK_VERSION,
        lambda f, m: (f.envelope(), {"catalogues": [reworded(f.catalogue)]}),
    ),
}


def renamed(federation: Any, make: SimpleNamespace) -> bytes:
    envelope = Envelope.from_bytes(federation.envelope(make.key(99)))
    lie = dataclasses.replace(envelope.signatures[0], key_id=federation.assessor.public.key_id)
    return dataclasses.replace(envelope, signatures=(lie,)).to_bytes()


def reworded(catalogue: Any) -> Any:
    frameworks = dict(catalogue.frameworks)
    frameworks["GDPR"] = dataclasses.replace(frameworks["GDPR"], sha256="0" * 64)
    return dataclasses.replace(catalogue, frameworks=frameworks)


@pytest.mark.parametrize("case", REFUSALS)
def test_each_abuse_is_refused_for_its_own_reason(case: str, federation: Any, make: SimpleNamespace) -> None:
    reason, change = REFUSALS[case]
    envelope, expectations = change(federation, make)
    assert refusal(federation, envelope, **expectations) is reason


def test_every_reason_is_reached_by_some_abuse() -> None:
    assert {reason for reason, _ in REFUSALS.values()} == set(Reason)


def test_a_retired_key_keeps_what_it_signed_before(federation: Any, make: SimpleNamespace) -> None:
    store = revoked(federation, RevocationReason.RETIRED, make.now)
    assert federation.verify(federation.envelope(), store=store).tier == 3


@pytest.mark.parametrize("second", [2, 3])
def test_an_assessor_and_another_key_satisfy_a_study_that_wants_two(
    second: int, federation: Any, make: SimpleNamespace
) -> None:
    store = with_store(federation, required_signatures=2)
    envelope = countersign(federation.envelope(), make.key(second))
    assert set(federation.verify(envelope, store=store).key_ids) == {
        make.key(1).public.key_id,
        make.key(second).public.key_id,
    }


def test_one_assessor_cannot_sign_twice(federation: Any, make: SimpleNamespace) -> None:
    with pytest.raises(AttestationRefused, match="signature already"):
        countersign(federation.envelope(), federation.assessor)
    twice = json.loads(federation.envelope())
    twice["signatures"] *= 2
    assert refusal(federation, canonical_json(twice)) is Reason.MALFORMED


def test_a_second_signature_from_a_stranger_spoils_a_good_one(federation: Any, make: SimpleNamespace) -> None:
    assert refusal(federation, countersign(federation.envelope(), make.key(99))) is Reason.UNKNOWN_KEY


def test_the_named_assessor_must_be_among_the_signers(federation: Any, make: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="first signing key"):
        issue(federation.predicate(), make.key(2))
    envelope = Envelope.from_bytes(federation.envelope())
    other = make.key(2)
    swapped = seal(PAYLOAD_TYPE, envelope.payload, other).to_bytes()
    assert refusal(federation, swapped) is Reason.BAD_SIGNATURE


def test_a_signature_over_another_payload_type_is_not_taken(federation: Any) -> None:
    payload = Envelope.from_bytes(federation.envelope()).payload
    other = seal("application/json", payload, federation.assessor)
    assert refusal(federation, other.to_bytes()) is Reason.MALFORMED
    relabelled = dataclasses.replace(other, payload_type=PAYLOAD_TYPE)
    assert refusal(federation, relabelled.to_bytes()) is Reason.BAD_SIGNATURE


def test_signatures_of_two_clinics_cannot_be_swapped(federation: Any) -> None:
    mine = json.loads(federation.envelope())
    theirs = json.loads(federation.envelope(clinic="Hôpital Sud", serial="f" * 32))
    mine["signatures"], theirs["signatures"] = theirs["signatures"], mine["signatures"]
    assert refusal(federation, canonical_json(mine)) is Reason.BAD_SIGNATURE
    assert refusal(federation, canonical_json(theirs), clinic="Hôpital Sud") is Reason.BAD_SIGNATURE


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = list(items)
    if not found:
        yield path
    for name, item in found:
        yield from leaves(item, (*path, name))


def changed_leaf(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str) and value:
        return value[:-1] + ("1" if value[-1] != "1" else "2")
    return "x"


def field_edits(envelope: bytes) -> Iterator[bytes]:
    """Change, remove or add each field of the statement, and wrap it as neatly as the original."""
    document = json.loads(envelope)
    payload = base64.b64decode(document["payload"])
    for path in leaves(json.loads(payload)):
        for action in ("change", "remove", "add"):
            statement = json.loads(payload)
            parent = statement
            for step in path[:-1]:
                parent = parent[step]
            if action == "change":
                parent[path[-1]] = changed_leaf(parent[path[-1]])
            elif action == "remove":
                del parent[path[-1]]
            elif isinstance(parent, dict):
                parent["added"] = 1
            yield canonical_json(document | {"payload": base64.b64encode(canonical_json(statement)).decode()})


def other_spellings(envelope: bytes) -> Iterator[bytes]:
    """The same JSON, or the same base64, written in other ways."""
    document = json.loads(envelope)
    yield json.dumps(document).encode()
    yield json.dumps(document, indent=1).encode()
    yield envelope + b"\n"
    yield b"\xef\xbb\xbf" + envelope
    yield envelope.decode().encode("utf-16")
    yield json.dumps(dict(reversed(document.items())), separators=(",", ":")).encode()
    yield envelope.replace(b'"payload"', b'"pay\\u006coad"')
    for name in ("payload", "payloadType", "signatures"):
        member = json.dumps({name: document[name]})[1:-1].encode()
        yield b"{" + member + b"," + envelope[1:]  # a duplicate key before
        yield envelope[:-1] + b"," + member + b"}"  # and behind
        yield envelope[:-1] + b',"' + name.upper().encode() + b'":1}'
    for text, put in base64_fields(document):
        for other in sloppy_base64(text):
            yield canonical_json(put(other))


def base64_fields(document: dict[str, Any]) -> Iterator[tuple[str, Callable[[str], dict[str, Any]]]]:
    signature = document["signatures"][0]
    yield document["payload"], lambda text: document | {"payload": text}
    yield signature["sig"], lambda text: document | {"signatures": [signature | {"sig": text}]}


def sloppy_base64(text: str) -> Iterator[str]:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bare = text.rstrip("=")
    yield from (
        bare,
        text + "=",
        text + "==",
        "=" + text,
        text + "\n",
        " " + text,
        text[:4] + "\n" + text[4:],
    )
    yield from (
        text.replace("+", "-").replace("/", "_") + "",
        text[:8] + "*" + text[8:],
        text + "A===",
        "\u0410" + text,
    )
    if len(bare) % 4:  # bits behind the end: other last characters that decode to the same bytes
        for shift in range(1, 4):
            yield bare[:-1] + alphabet[alphabet.index(bare[-1]) ^ shift] + "=" * (len(text) - len(bare))


def forged_signatures(federation: Any, envelope: bytes) -> Iterator[bytes]:
    """Signatures that weak implementations of Ed25519 accept."""
    document = json.loads(envelope)
    signature = document["signatures"][0]
    raw = base64.b64decode(signature["sig"])
    scalar = int.from_bytes(raw[32:], "little")
    candidates = [raw[:32] + (scalar + n * GROUP_ORDER).to_bytes(32, "little") for n in range(1, 16)]
    candidates += [
        bytes(64),
        b"\x01" + bytes(63),
        raw[:32] + bytes(32),
        bytes(32) + raw[32:],
        raw[::-1],
        b"\xff" * 64,
    ]
    candidates += [raw[:63], raw + b"\0", b""]
    for value in candidates:
        yield canonical_json(
            document | {"signatures": [signature | {"sig": base64.b64encode(value).decode()}]}
        )
    yield canonical_json(document | {"signatures": []})
    yield canonical_json(document | {"signatures": [signature | {"keyid": ""}]})
    yield canonical_json(document | {"signatures": [{"sig": signature["sig"]}]})
    yield canonical_json(document | {"signatures": signature})


def byte_mutations(envelope: bytes) -> Iterator[bytes]:
    """A flipped bit in every byte, every truncation, and random deletions, insertions and swaps of bytes."""
    rng = random.Random(20261124)
    for position in range(len(envelope)):
        flipped = bytearray(envelope)
        flipped[position] ^= 1 << rng.randrange(8)
        yield bytes(flipped)
        yield envelope[:position]
    for _ in range(1000):
        a, b = sorted(rng.sample(range(len(envelope)), 2))
        yield envelope[:a] + envelope[b:]
        yield envelope[:a] + bytes([rng.randrange(256)]) + envelope[a:]
        yield envelope[:a] + envelope[a : a + 1] + envelope[a:]
        swapped = bytearray(envelope)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        yield bytes(swapped)


@pytest.fixture(scope="module")
def genuine(federation: Any) -> bytes:
    envelope: bytes = federation.envelope()
    return envelope


@pytest.mark.parametrize(
    ("mutate", "at_least"),
    [(field_edits, 100), (other_spellings, 40), (byte_mutations, 5000)],
    ids=["field edits", "other spellings", "bytes"],
)
def test_no_mutated_envelope_is_ever_accepted(
    mutate: Callable[[bytes], Iterator[bytes]], at_least: int, federation: Any, genuine: bytes
) -> None:
    mutants = {mutant for mutant in mutate(genuine) if mutant != genuine}
    assert len(mutants) >= at_least
    allowed = {Reason.MALFORMED, Reason.BAD_SIGNATURE, Reason.UNKNOWN_KEY}
    assert {refusal(federation, mutant) for mutant in mutants} <= allowed


def test_no_forged_signature_is_accepted(federation: Any, genuine: bytes) -> None:
    mutants = list(forged_signatures(federation, genuine))
    assert {refusal(federation, mutant) for mutant in mutants} <= {
        Reason.MALFORMED,
        Reason.BAD_SIGNATURE,
        Reason.UNKNOWN_KEY,
    }
    assert Reason.BAD_SIGNATURE in {refusal(federation, mutant) for mutant in mutants}


@pytest.mark.parametrize(
    "changes",
    [
        {"score": 0.6134},
        {"score": "0.61340"},
        {"score": "1.0001"},
        {"score": "-0.5000"},
        {"score": "0,6134"},
        {"score": "٠.6134"},
        {"tier": 3.5},
        {"tier": "3"},
        {"tier": True},
        {"tier": -1},
        {"tier": 4},
        {"score": "0.8001"},
        {"gates_passed": False},
        {"eligible": 1},
        {"eligible": "true"},
        {"assurance": "excellent"},
        {"on": "24.11.2026"},
    ],
)
def test_even_a_trusted_key_cannot_sign_nonsense(changes: dict[str, Any], federation: Any) -> None:
    statement = json.loads(Envelope.from_bytes(federation.envelope()).payload)
    statement["predicate"]["result"] |= changes
    signed = seal(PAYLOAD_TYPE, canonical_json(statement), federation.assessor).to_bytes()
    assert refusal(federation, signed) is Reason.MALFORMED


def test_an_attestation_for_more_than_a_year_cannot_be_made_or_used(
    federation: Any, make: SimpleNamespace
) -> None:
    with pytest.raises(ValueError, match="more than 366 days"):
        federation.predicate(expires_at=make.now + 400 * make.day)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_without_a_traceback(data: bytes, federation: Any) -> None:
    with contextlib.suppress(AttestationRefused):
        federation.verify(data)
        pytest.fail("accepted")


@given(score=st.floats(0, 1))
def test_the_written_score_is_never_above_the_computed_one(score: float) -> None:
    written = float(score_text(score))
    assert written <= score < written + 1e-4 + 1e-12


def test_serials_do_not_repeat() -> None:
    assert len({new_serial() for _ in range(1000)}) == 1000


def test_the_verifier_reads_nothing_from_the_clock_or_the_disk(federation: Any, genuine: bytes) -> None:
    digest = hashlib.sha256(genuine).hexdigest()
    first = verify_attestation(
        genuine,
        federation.store,
        now=federation.now,
        study=federation.study,
        node_key=federation.node,
        clinic=federation.clinic,
        catalogues=iter([federation.catalogue]),
    )
    assert first == federation.verify(genuine)
    assert hashlib.sha256(federation.envelope()).hexdigest() == digest  # Ed25519 is deterministic


def test_roles_are_not_inherited_from_the_statement(federation: Any, make: SimpleNamespace) -> None:
    observer_only = with_store(federation, keys=(make.trusted(make.key(1), "X", Role.OBSERVER),))
    assert refusal(federation, federation.envelope(), store=observer_only) is Reason.ROLE_NOT_ALLOWED
