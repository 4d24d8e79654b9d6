"""A real clinic with a real attestation: what it says about itself, it has verified."""

import pytest

from fedvox_compliance.keys import SigningKey
from fedvox_compliance.trust_file import save_trust_store
from fedvox_federation.client.clinic import take_part
from fedvox_federation.client.sites import presented_attestation, real_clinic
from fedvox_federation.config import ClinicConfig
from fedvox_federation.credentials import make_node_key
from fedvox_federation.privacy.noise_policy import UNATTESTED
from fedvox_federation.protocol import RoundOrder
from fedvox_federation.site_profiles import PROFILES, StudyOffice, write_answers


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    """Answers, an assessor's signature under them for one node, and a trust store."""
    folder = tmp_path_factory.mktemp("papers")
    node_key = make_node_key(folder / "node")
    office, root = StudyOffice.open("brains"), SigningKey.generate()
    space = write_answers(PROFILES["district"], "Klinik Nord", folder / "answers")
    envelope, verified = office.assess(PROFILES["district"], space, node_key.read_bytes())
    (folder / "attestation.json").write_bytes(envelope)
    save_trust_store(folder / "trust.json", office.store, root)
    (folder / "root.pub").write_text(root.public.pem)
    trust = {"attestation": "attestation.json", "trust_store": "trust.json", "root_key": "root.pub"}
    values = {name: str(folder / file) for name, file in trust.items()} | {"node_key": str(node_key)}
    return values, verified


@pytest.fixture
def open_clinic(papers, ball_store, tmp_path, make_config):
    def make(study="brains", **changes):
        own = ClinicConfig(
            name="Klinik Nord", store=ball_store, folder=str(tmp_path / "own"), budget_epsilon=8.0,
            budget_delta=1e-3, patient_pattern=r"(p\d+)-", trust={**papers[0], **changes},
        )  # fmt: skip
        return real_clinic(make_config(study=study), own)

    return make


def test_its_standing_is_that_of_its_attestation_and_the_envelope_goes_along(open_clinic, papers):
    clinic = open_clinic()
    verified = papers[1]
    assert (clinic.standing.tier, clinic.standing.score) == (verified.tier, verified.score)
    assert 0 < verified.tier < 4
    config, model = clinic.config, clinic.task.model
    order = RoundOrder(config.name, 1, config.rounds, config.sha256, model.base_sha256)
    reply = take_part(model.arrays(), order, clinic)
    assert (reply.refusal, reply.tier, reply.score) == (None, verified.tier, verified.score)
    assert reply.attestation
    assert reply.node_key.startswith("ecdsa-sha2-nistp384")


def test_an_attestation_for_another_study_or_node_counts_as_none(open_clinic, tmp_path, caplog):
    assert open_clinic(study="hearts").standing == UNATTESTED
    other = make_node_key(tmp_path / "other")
    assert open_clinic(node_key=str(other)).standing == UNATTESTED
    assert "other study" in caplog.text
    assert "other node key" in caplog.text


def test_a_supernode_that_says_who_it_is_shows_its_attestation(open_clinic, papers):
    own = ClinicConfig(
        name="Klinik Nord", store="-", folder="-", budget_epsilon=8.0, budget_delta=1e-3, trust=papers[0]
    )
    assert presented_attestation(own) == open_clinic().attestation
    lost = own.trust.model_copy(update={"attestation": "/nowhere"})
    assert presented_attestation(own.model_copy(update={"trust": lost})) == ""
