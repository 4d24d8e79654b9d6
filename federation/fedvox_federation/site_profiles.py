"""Kinds of hospitals, from a university clinic to one that may not take part: what they can show, and their scanners.

    folder = write_answers(PROFILES["under-resourced"], "Kreisklinik", folder)     # as fedvox-compliance writes it
    verified = assess_clinic(PROFILES["under-resourced"], folder, study, node_key, assessor)

A profile does not contain a score. It says up to how many person-days of effort a control is in place there, how its
answers are shown, and how much of it an assessor looked at. From that come a real folder of answers with documents, a
real assessment by sampling, and a real signed attestation, which is verified as a federation's server does it. Whatever
score and tier come out are the compliance package's.

The clinics are made up. What small hospitals lack is plausible, not measured: that effort decides it is an assumption.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from fedvox_compliance.assess import Purpose, attest, extend, must_extend, record_finding, start
from fedvox_compliance.assessment import Answer, Entry, Evidence, SecondPerson, claim_sha256
from fedvox_compliance.assessor_record import AssessorRecord, Finding
from fedvox_compliance.attestation import VerifiedAttestation, issue, verify_attestation
from fedvox_compliance.catalogue import Control, Protection
from fedvox_compliance.evidence import copy_into_folder
from fedvox_compliance.keys import SigningKey
from fedvox_compliance.trust import Role, TrustedKey, TrustStore
from fedvox_compliance.trust_file import add_key, new_store
from fedvox_compliance.workspace import Workspace
from fedvox_federation.acquisition import ScannerEffects

_AUTHOR, _COLLEAGUE, _ASSESSOR = "A. Meyer", "B. Beck", "Dr. C. Prüfer"
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class SiteProfile:
    """A kind of hospital.

    Attributes:
        name: in commands and configurations.
        in_place_up_to: effort in person-days up to which a control is in place.
        partly_up_to: effort up to which it is in place in part; above it is not.
        documented: whether answers other than those to gates come with a document.
        second_person: whether a colleague reads every answer.
        looked_at: share of the answers beside gates at which the assessor looks.
        encrypted: whether patient data are encrypted at rest, without which nobody takes part.
        scanner: what it does to images.
    """

    name: str
    in_place_up_to: int
    partly_up_to: int
    documented: bool = True
    second_person: bool = False
    looked_at: float = 0.1
    encrypted: bool = True
    scanner: ScannerEffects = field(default_factory=ScannerEffects)


_GOOD = ScannerEffects(bias=0.05, noise=0.05)
_AGED = ScannerEffects(bias=0.2, noise=0.15, resolution=(0.7, 1.0, 1.0))
_WORN = ScannerEffects(bias=0.4, noise=0.3, gamma=1.4, resolution=(0.5, 0.8, 0.8))

PROFILES: Mapping[str, SiteProfile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            SiteProfile("university", 13, 13, second_person=True, looked_at=1.0, scanner=_GOOD),
            SiteProfile("well-equipped", 8, 13, scanner=_GOOD),
            SiteProfile("district", 2, 5, scanner=_AGED),
            SiteProfile("under-resourced", 1, 2, scanner=_WORN),
            SiteProfile("unprepared", 1, 2, documented=False, encrypted=False, scanner=_WORN),
        )
    }
)
"""By name, from the best equipped to one that is not eligible."""


def write_answers(
    profile: SiteProfile, clinic: str, folder: Path, *, now: dt.datetime | None = None
) -> Workspace:
    """A clinic's folder of answers and documents, as `fedvox-compliance` reads it.

    Args:
        profile: what kind of clinic.
        clinic: its name.
        folder: new or empty.
        now: when it was answered; the present by default.

    Raises:
        UsageError: the folder holds an assessment already.
    """
    moment = now or dt.datetime.now(dt.UTC)
    space = Workspace.create(folder, clinic=clinic, author=_AUTHOR, clock=lambda: moment)
    documents = _write_documents(space, moment.date())
    entries = {
        control.id: _entry(profile, control, documents[control.theme], moment.date())
        for control in space.catalogue.controls.values()
    }
    space.apply(entries, action="import", author=_AUTHOR)
    for question in space.catalogue.scope_questions:
        space.state_scope(question, True, author=_AUTHOR)
    return space


def _write_documents(space: Workspace, day: dt.date) -> dict[str, Evidence]:
    """One document a theme."""
    found = {}
    for theme in space.catalogue.themes:
        source = space.folder / f"{theme}.txt"
        source.write_text(f"{space.assessment.clinic}: what is done about {theme}.\n", encoding="utf-8")
        path, digest = copy_into_folder(space.folder, source)
        source.unlink()
        found[theme] = Evidence(path=path, sha256=digest, title=theme, effective=day)
    return found


def _entry(profile: SiteProfile, control: Control, document: Evidence, day: dt.date) -> Entry:
    answer = _answer(profile, control)
    shown = (profile.documented or control.gate is not None) and answer is not Answer.NO
    entry = Entry(answer=answer, author=_AUTHOR, answered_on=day, evidence=(document,) if shown else ())
    if not profile.second_person or answer is Answer.NO:
        return entry
    second = SecondPerson(name=_COLLEAGUE, date=day, claim=claim_sha256(control.id, entry))
    return entry.model_copy(update={"second_person": second})


def _answer(profile: SiteProfile, control: Control) -> Answer:
    if control.protects is Protection.ENCRYPTION and not profile.encrypted:
        return Answer.NO
    if control.gate is not None or control.effort <= profile.in_place_up_to:
        return Answer.YES
    return Answer.PARTLY if control.effort <= profile.partly_up_to else Answer.NO


@dataclass(frozen=True)
class StudyOffice:
    """Who assesses and who is trusted, in a simulation: a key that lives as long as the process.

    Attributes:
        study: name of the study.
        key: the assessor's.
        store: in which that key is trusted.
    """

    study: str
    key: SigningKey
    store: TrustStore

    @classmethod
    def open(cls, study: str, now: dt.datetime | None = None) -> StudyOffice:
        """With a key of its own."""
        moment = now or dt.datetime.now(dt.UTC)
        key = SigningKey.generate()
        trusted = TrustedKey(
            public_key=key.public.base64,
            name=_ASSESSOR,
            roles=(Role.ASSESSOR,),
            valid_from=moment - _DAY,
            valid_until=moment + 365 * _DAY,
        )
        return cls(study, key, add_key(new_store("simulation", moment), trusted, moment))

    def assess(
        self,
        profile: SiteProfile,
        space: Workspace,
        node_key: bytes | str,
        *,
        now: dt.datetime | None = None,
        seed: int = 0,
    ) -> tuple[bytes, VerifiedAttestation]:
        """Draw, look, recompute, sign, and verify as a server does.

        Args:
            profile: how much the assessor looks at.
            space: the clinic's answers.
            node_key: of the clinic's node.
            now: when.
            seed: of the assessor's nonce, which for a real assessment is secret and random.

        Returns:
            The envelope, and what it says once verified.
        """
        moment = now or dt.datetime.now(dt.UTC)
        record = _look(profile, space, moment.date(), seed)
        purpose = Purpose(self.study, node_key)
        predicate, _ = attest(record, space.folder, space.catalogue, purpose, self.key.public, now=moment)
        envelope = issue(predicate, self.key)
        return envelope, verify_attestation(
            envelope,
            self.store,
            now=moment,
            study=self.study,
            node_key=node_key,
            clinic=space.assessment.clinic,
            catalogues=[space.catalogue],
        )


def _look(profile: SiteProfile, space: Workspace, day: dt.date, seed: int) -> AssessorRecord:
    """An assessor who confirms what has a document, and finds the rest not shown."""
    nonce = hashlib.sha256(f"{seed} {space.assessment.clinic}".encode()).hexdigest()
    folder, catalogue = space.folder, space.catalogue
    record = start(folder, catalogue, assessor=_ASSESSOR, nonce=nonce, on=day, share=profile.looked_at)
    record = _found(record, space, day)
    while must_extend(record):
        record = _found(extend(record, space.assessment, catalogue), space, day)
    return record


def _found(record: AssessorRecord, space: Workspace, day: dt.date) -> AssessorRecord:
    for control in record.open_controls:
        shown = bool(space.entry(control).evidence)
        record = record_finding(
            record,
            space.folder,
            space.assessment,
            control,
            Finding.CONFIRMED if shown else Finding.NOT_SHOWN,
            on=day,
            note="" if shown else "no document",
        )
    return record
