"""Whom the server believes: signed attestations for this study, clinic and node, and nobody's own word."""

import dataclasses
import datetime as dt
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedvox.errors import ConfigError
from fedvox_compliance import __version__
from fedvox_compliance.attestation import issue
from fedvox_compliance.catalogue import load_catalogue
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
from fedvox_compliance.trust import Role, TrustedKey
from fedvox_compliance.trust_file import add_key, new_store, save_trust_store
from fedvox_federation.config import ProfileSection, StudyTrustSection
from fedvox_federation.privacy.noise_policy import UNATTESTED, Standing
from fedvox_federation.protocol import ClinicReply
from fedvox_federation.server.checks import Fault, ReplyChecker, Verdict
from fedvox_federation.server.standings import AttestationRegistry, ProfileRegistry

NOW = dt.datetime(2026, 11, 24, 8, 0, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def signing_key(number):
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


def node_key(number):
    public = ec.derive_private_key(number, ec.SECP384R1()).public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


ASSESSOR, STRANGER, NODE = signing_key(1), signing_key(2), node_key(7)


def envelope(
    key=ASSESSOR, *, study="study", clinic="Nord", tier=3, score="0.6134", eligible=True, expires=180
):
    catalogue = load_catalogue()
    return issue(
        Predicate(
            serial="0123456789abcdef" * 2,
            clinic=clinic,
            study=study,
            node_key=node_key_fingerprint(NODE),
            answers=AnswersRef(id="ab" * 16, sha256="c1" * 32, history_head="d2" * 32, history_length=311),
            catalogue=CatalogueVersion.of(catalogue),
            engine=Engine(name="fedvox-compliance", version=__version__),
            result=Result(
                on="2026-11-23", score=score, tier=tier, eligible=eligible, gates_passed=True, complete=True,
                assurance="document",
            ),
            checks=Checks(
                commitment="e3" * 32, nonce="f4" * 32, share="0.10", population=220, gates=19, drawn=21,
                confirmed=40, not_shown=0,
            ),
            assessor=Assessor(name="Dr. C. Prüfer", key_id=key.public.key_id),
            issued_at=NOW - DAY,
            not_before=NOW - DAY,
            expires_at=NOW + expires * DAY,
        ),
        key,
    ).decode()  # fmt: skip


@pytest.fixture(scope="module")
def store():
    trusted = TrustedKey(
        public_key=ASSESSOR.public.base64,
        name="Dr. C. Prüfer",
        roles=(Role.ASSESSOR,),
        valid_from=NOW - 300 * DAY,
        valid_until=NOW + 300 * DAY,
    )
    return add_key(new_store("study office", NOW), trusted, NOW)


@pytest.fixture
def registry(store):
    return AttestationRegistry("study", store, (load_catalogue(),), now=lambda: NOW)


def presented(text, clinic="Nord"):
    return ClinicReply(clinic=clinic, run="study", round_number=1, score=1.0, tier=4, attestation=text)


def test_a_verified_attestation_gives_its_score_and_not_the_clinics_word(registry):
    found = registry.judge(presented(envelope()), NODE)
    assert found.standing == Standing(0.6134, 3, eligible=True, attested=True)
    assert found.note == ""


@pytest.mark.parametrize(
    ("reason", "text", "node"),
    [
        ("no attestation", "", NODE),
        ("attestation: malformed", "{}", NODE),
        ("attestation: unknown key", envelope(STRANGER), NODE),
        ("attestation: other study", envelope(study="another"), NODE),
        ("attestation: other clinic", envelope(clinic="Süd"), NODE),
        ("attestation: other node key", envelope(), node_key(8)),
        ("the node's key is unknown", envelope(), b""),
        ("attestation: the node's key is in no known form", envelope(), b"\x00" * 32),
    ],
)
def test_what_does_not_verify_counts_as_no_attestation_and_says_why(registry, reason, text, node):
    found = registry.judge(presented(text), node)
    assert (found.standing, found.note) == (UNATTESTED, reason)


def test_the_signature_of_one_attestation_does_not_carry_another(registry):
    genuine, better = json.loads(envelope()), json.loads(envelope(tier=4, score="0.9134"))
    forged = json.dumps(
        {**better, "signatures": genuine["signatures"]}, separators=(",", ":"), sort_keys=True
    )
    found = registry.judge(presented(forged), NODE)
    assert (found.standing, found.note) == (UNATTESTED, "attestation: bad signature")


def test_an_attestation_can_expire_in_the_middle_of_a_run(store):
    clock = [NOW]
    registry = AttestationRegistry("study", store, (load_catalogue(),), now=lambda: clock[0])
    reply = presented(envelope(expires=1))
    assert registry.judge(reply, NODE).standing.attested
    clock[0] = NOW + 2 * DAY
    assert registry.judge(reply, NODE).note == "attestation: expired"


def test_a_server_without_a_trust_store_believes_nobody(fed):
    registry = AttestationRegistry.load("study", None)
    assert registry.judge(presented(envelope()), NODE).note == "the server has no trust store"


def test_the_trust_store_is_believed_only_under_its_root_key(tmp_path, store):
    root, other = signing_key(9), signing_key(10)
    fresh = new_store("study office", dt.datetime.now(dt.UTC).replace(microsecond=0))
    save_trust_store(tmp_path / "trust.json", fresh, root)
    for name, key in (("root.pub", root), ("other.pub", other)):
        (tmp_path / name).write_text(key.public.pem)
    files = {"trust_store": str(tmp_path / "trust.json")}
    section = StudyTrustSection(**files, root_key=str(tmp_path / "root.pub"))
    assert AttestationRegistry.load("study", section).trust == fresh
    with pytest.raises(ConfigError, match=r"^server\.trust: "):
        AttestationRegistry.load("study", StudyTrustSection(**files, root_key=str(tmp_path / "other.pub")))
    with pytest.raises(ConfigError, match=r"^server\.trust: "):
        AttestationRegistry.load("study", StudyTrustSection(trust_store=str(tmp_path / "no"), root_key="no"))


def test_unattested_and_ineligible_clinics_stay_out_unless_the_study_admits_the_first(fed, registry):
    order = fed.order()
    honest = fed.honest(order, fed.arrays, noise=20.0, clinic="Nord")

    def verdict(text, *, node=NODE, admit=False):
        config = fed.config(privacy={"admit_unattested": admit})
        checker = ReplyChecker(config, registry, simulation=False)
        reply = dataclasses.replace(honest, attestation=text)
        found = checker.check(reply, order, fed.arrays, node_key=node)
        return found.verdict, found.reason

    assert verdict(envelope()) == (Verdict.ACCEPTED, "")
    assert verdict("") == (Verdict.REJECTED, Fault.NOT_ELIGIBLE)
    assert verdict("", admit=True) == (Verdict.ACCEPTED, "")
    assert verdict(envelope(eligible=False), admit=True) == (Verdict.REJECTED, Fault.NOT_ELIGIBLE)
    assert verdict(envelope(), node=node_key(8), admit=True) == (
        Verdict.ACCEPTED,
        "",
    )  # as score 0, by its noise


def test_simulated_hospitals_have_the_standing_that_they_were_dealt_in_turn():
    registry = ProfileRegistry((ProfileSection(score=0.9, tier=4), ProfileSection(attested=False)))
    tiers = [registry.judge(presented("", f"hospital_{n:02d}"), b"").standing for n in (1, 2, 3)]
    assert [(one.tier, one.attested) for one in tiers] == [(4, True), (0, False), (4, True)]
    assert registry.judge(presented("", "hospital_x"), b"").standing == UNATTESTED


def test_a_server_of_real_clinics_never_takes_a_simulations_profile(fed, tmp_path):
    """The grid of real SuperNodes is not the one of a simulation, whatever the clinics call themselves."""
    import torch

    from fedvox.models.registry import build_model
    from fedvox.storage import locate
    from fedvox.training.release import ModelInfo, write_release
    from fedvox_federation.client.model import build
    from fedvox_federation.server.app import serve
    from fedvox_federation.server.journal import Journal
    from fedvox_federation.server.rounds import TooFewClinics

    torch.manual_seed(0)
    info = ModelInfo(
        name="mednext-v2-nano", options={"deep_supervision": True}, structures=("background", "ball"),
        channel_names=("T1",), patch_size=(16, 16, 16), spacing_mm=(1.0, 1.0, 1.0), normalization="zscore",
        intensity=None,
    )  # fmt: skip
    write_release(
        build_model("mednext-v2-nano", in_channels=1, classes=2), info, locate(str(tmp_path / "weights"))
    )
    config = fed.config(pretrained=str(tmp_path / "weights"), output=str(tmp_path / "runs"))
    start = build(config).federated.arrays()
    grid = fed.grid({n: lambda order, arrays, n=n: fed.honest(order, arrays, n) for n in (1, 2, 3)})
    with pytest.raises(TooFewClinics, match=r"hospital_01 rejected \(not-eligible\)"):
        serve(grid, config)
    assert {name: value.shape for name, value in grid.sent[0][1].items()} == {
        name: value.shape for name, value in start.items()
    }
    status = Journal(locate(tmp_path / "runs" / "study")).run.read_json("status.json")
    assert (status["phase"], status["rounds_done"]) == ("stopped", 0)
