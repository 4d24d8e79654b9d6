"""A small federation to attest in: a root, assessors of several roles, a clinic, a study, a node."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedvox_compliance import __version__
from fedvox_compliance.assessment import Answer, Entry, Evidence
from fedvox_compliance.attestation import issue, verify_attestation
from fedvox_compliance.catalogue import Catalogue, load_catalogue
from fedvox_compliance.evidence import copy_into_folder
from fedvox_compliance.keys import SigningKey, node_key_fingerprint
from fedvox_compliance.statement import (
    AnswersRef,
    Assessor,
    CatalogueVersion,
    Checks,
    Engine,
    Predicate,
    Result,
)
from fedvox_compliance.trust import Role, TrustedKey, TrustStore
from fedvox_compliance.workspace import Workspace

NOW = dt.datetime(2026, 11, 24, 8, 0, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def key(number: int) -> SigningKey:
    """The same key pair in every run."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


def node_pem(number: int) -> bytes:
    """A node's public key, P-384 as Flower's nodes have."""
    public = ec.derive_private_key(number, ec.SECP384R1()).public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclasses.dataclass(frozen=True)
class Federation:
    """Everything that a verification needs, with the values that make it succeed."""

    catalogue: Catalogue
    store: TrustStore
    now: dt.datetime = NOW
    study: str = "MAMA-MIA 2027"
    clinic: str = "Klinikum Nordstadt"
    node: bytes = node_pem(7)
    assessor: SigningKey = dataclasses.field(default_factory=lambda: key(1))

    def predicate(self, **changes: Any) -> Predicate:
        """A genuine statement, with some fields replaced (nested ones as `result__tier`)."""
        body = Predicate(
            serial="0123456789abcdef" * 2,
            clinic=self.clinic,
            study=self.study,
            node_key=node_key_fingerprint(self.node),
            answers=AnswersRef(id="ab" * 16, sha256="c1" * 32, history_head="d2" * 32, history_length=311),
            catalogue=CatalogueVersion.of(self.catalogue),
            engine=Engine(name="fedvox-compliance", version=__version__),
            result=Result(
                on="2026-11-23",
                score="0.6134",
                tier=3,
                eligible=True,
                gates_passed=True,
                complete=True,
                assurance="document",
            ),
            checks=Checks(
                commitment="e3" * 32,
                nonce="f4" * 32,
                share="0.10",
                population=220,
                gates=19,
                drawn=21,
                confirmed=40,
                not_shown=0,
            ),
            assessor=Assessor(name="Dr. A. Prüfer", key_id=self.assessor.public.key_id),
            issued_at=NOW - DAY,
            not_before=NOW - DAY,
            expires_at=NOW + 180 * DAY,
        )
        return replace_fields(body, changes)

    def envelope(self, *signers: SigningKey, **changes: Any) -> bytes:
        """A signed envelope; the first signer is named as the assessor unless changed."""
        keys = signers or (self.assessor,)
        lead = keys[0].public.key_id
        listed = self.store.find(lead)
        changes = {"assessor__key_id": lead, "assessor__name": listed.name if listed else "Nobody"} | changes
        return issue(self.predicate(**changes), *keys)

    def verify(self, envelope: bytes, **changes: Any) -> Any:
        """Verify as the server would, with some expectations replaced."""
        expected = {
            "now": self.now,
            "study": self.study,
            "clinic": self.clinic,
            "node_key": self.node,
            "catalogues": [self.catalogue],
        } | changes
        return verify_attestation(envelope, expected.pop("store", self.store), **expected)


def replace_fields(body: Predicate, changes: dict[str, Any]) -> Predicate:
    document = body.model_dump(mode="python")
    for path, value in changes.items():
        target: dict[str, Any] = document
        *parents, last = path.split("__")
        for parent in parents:
            target = target[parent]
        target[last] = value
    return Predicate.model_validate(document)


def trusted(signer: SigningKey, name: str, *roles: Role, **changes: Any) -> TrustedKey:
    fields = {
        "public_key": signer.public.base64,
        "name": name,
        "roles": roles,
        "valid_from": NOW - 300 * DAY,
        "valid_until": NOW + 300 * DAY,
    } | changes
    return TrustedKey(**fields)


def fill(space: Workspace, *, author: str, documents: bool = True) -> None:
    """Answer every control with yes, each on one shared document if wanted, in one transaction."""
    day = NOW.date()
    source = space.folder.parent / f"{space.folder.name}-policy.txt"
    source.write_text("Information security policy, signed and dated.\n")
    path, digest = copy_into_folder(space.folder, source)
    shown = (Evidence(path=path, sha256=digest, title="Policy", effective=day),) if documents else ()
    entry = Entry(answer=Answer.YES, author=author, answered_on=day, maturity=3, evidence=shown)
    space.apply(dict.fromkeys(space.catalogue.controls, entry), action="import", author=author)
    for question in space.catalogue.scope_questions:
        space.state_scope(question, True, author=author)


@pytest.fixture(scope="session")
def documented_clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clinic") / "nordstadt"
    space = Workspace.create(folder, clinic="Klinikum Nordstadt", author="A. Meyer", clock=lambda: NOW)
    fill(space, author="A. Meyer")
    return folder


@pytest.fixture
def clinic(documented_clinic: Path, tmp_path: Path) -> Path:
    """A folder in which everything is answered yes, on one document, by one person."""
    folder = tmp_path / "nordstadt"
    shutil.copytree(documented_clinic, folder)
    return folder


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return load_catalogue("combined")


@pytest.fixture(scope="session")
def federation(catalogue: Catalogue) -> Federation:
    store = TrustStore(
        name="test",
        updated_at=NOW - DAY,
        valid_until=NOW + 80 * DAY,
        keys=(
            trusted(key(1), "Dr. A. Prüfer", Role.ASSESSOR),
            trusted(key(2), "B. Second", Role.ASSESSOR),
            trusted(key(3), "C. Reviewer", Role.REVIEWER),
            trusted(key(4), "D. Observer", Role.OBSERVER),
            trusted(key(5), "E. Elsewhere", Role.ASSESSOR, studies=("Another study",)),
        ),
    )
    return Federation(catalogue, store)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """Builders for tests: `make.key(n)`, `make.node_pem(n)`, `make.trusted(...)`, `make.fill(...)`."""
    builders: dict[str, Callable[..., Any]] = {
        "key": key,
        "node_pem": node_pem,
        "trusted": trusted,
        "fill": fill,
    }
    return SimpleNamespace(**builders, now=NOW, day=DAY)
