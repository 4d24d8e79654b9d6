"""Simulated clinics have real answers, real assessments and real attestations."""

import datetime as dt
import json
import shutil

import pytest

from fedvox_compliance.attestation import AttestationRefused
from fedvox_compliance.keys import SigningKey
from fedvox_compliance.scoring import score
from fedvox_compliance.trust import TrustStoreError
from fedvox_compliance.workspace import Workspace
from fedvox_federation.experiment import clinics as clinics_module
from fedvox_federation.experiment.clinics import ROSTER, attested_clinics
from fedvox_federation.site_profiles import PROFILES, StudyOffice, write_answers


def test_tiers_follow_from_answers_and_fall_with_means(clinics):
    tiers = {clinic.profile.name: clinic.standing.tier for clinic in clinics.values()}
    assert tiers == {"university": 4, "well-equipped": 3, "district": 2, "under-resourced": 1}
    assert [clinic.profile.name for clinic in clinics.values()] == list(ROSTER)
    assert [clinic.compliant for clinic in clinics.values()] == [True] * 3 + [False] * 5
    assert all(clinic.standing.eligible and clinic.standing.attested for clinic in clinics.values())


def test_the_folders_are_those_of_the_compliance_program(clinic_folder):
    space = Workspace.open(clinic_folder / "clinic_08")
    report = score(space.assessment, space.catalogue, on=space.today())
    assert report.complete
    assert not report.failed_gates


def test_the_assessors_look_raises_what_the_clinic_could_claim_alone(clinic_folder, clinics):
    space = Workspace.open(clinic_folder / "clinic_01")
    alone = score(space.assessment, space.catalogue, on=space.today()).overall
    assert alone == pytest.approx(0.8, abs=0.01)  # a second person read everything
    assert clinics["clinic_01"].standing.score == 1.0


def test_a_clinic_without_encryption_is_not_eligible(tmp_path):
    office = StudyOffice.open("study")
    space = write_answers(PROFILES["unprepared"], "Unprepared", tmp_path / "clinic")
    _, verified = office.assess(PROFILES["unprepared"], space, SigningKey.generate().public.pem)
    assert (verified.eligible, verified.tier) == (False, 0)


def test_an_attestation_of_another_clinic_is_refused(clinic_folder, tmp_path):
    copied = shutil.copytree(clinic_folder, tmp_path / "clinics")
    shutil.copy(copied / "clinic_01.json", copied / "clinic_08.json")
    with pytest.raises(AttestationRefused, match="other clinic"):
        attested_clinics(copied)


def test_attestations_expire(clinic_folder):
    with pytest.raises(TrustStoreError, match="went stale"):
        attested_clinics(clinic_folder, now=dt.datetime.now(dt.UTC) + dt.timedelta(days=200))


def test_what_an_interrupted_start_left_is_made_anew(clinic_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(clinics_module, "ROSTER", ("under-resourced",))
    (tmp_path / "clinic_01").mkdir()
    (tmp_path / "clinic_01" / "assessment.json").write_text("{")
    assert list(attested_clinics(tmp_path)) == ["clinic_01"]
    assert json.loads((tmp_path / "clinics.json").read_text()) == {"clinic_01": "under-resourced"}
