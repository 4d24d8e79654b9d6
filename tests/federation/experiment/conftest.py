"""The experiment's clinics: really assessed ones, and made-up standings where only arithmetic is asked."""

import logging

import pytest

from fedvox_federation.experiment.clinics import AttestedClinic, attested_clinics
from fedvox_federation.privacy.noise_policy import Standing
from fedvox_federation.site_profiles import PROFILES


@pytest.fixture(scope="session")
def clinic_folder(tmp_path_factory):
    """Folders of answers, attestations and a trust store of all eight clinics."""
    folder = tmp_path_factory.mktemp("experiment") / "clinics"
    attested_clinics(folder)
    return folder


@pytest.fixture(scope="session")
def clinics(clinic_folder):
    """All eight, verified."""
    return attested_clinics(clinic_folder)


@pytest.fixture
def clinic_of_tier():
    """A clinic of a given tier, made up."""

    def make(tier, name="clinic"):
        return AttestedClinic(name, PROFILES["district"], Standing(0.2 * tier, tier, True, True))

    return make


@pytest.fixture(autouse=True)
def _quiet_flower():
    logging.getLogger("flwr").setLevel(logging.WARNING)
