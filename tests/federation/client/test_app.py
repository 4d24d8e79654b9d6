"""The ClientApp's body: who the SuperNode is, which code it answers to, and messages that are none."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedvox.errors import ConfigError
from fedvox_federation.bundle import approve, bundle_sha256
from fedvox_federation.client.app import answer, introduce
from fedvox_federation.client.model import build
from fedvox_federation.client.sites import real_clinic
from fedvox_federation.config import ClinicConfig, from_run_config
from fedvox_federation.privacy.ledger import PrivacyLedger
from fedvox_federation.privacy.noise_policy import NO_PRIVACY, UNATTESTED
from fedvox_federation.protocol import ClinicReply, Refusal, RoundOrder, decode_reply, encode_order


@pytest.fixture
def app(tmp_path, make_config):
    """An app bundle with a study in it; its code is not what runs here, which these tests do not ask about."""
    root = tmp_path / "app"
    (root / "federation").mkdir(parents=True)
    (root / "federation" / "flower_entry.py").write_text("# an app\n")
    config = make_config(privacy={"admit_unattested": True})
    (root / "study.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return root


@pytest.fixture
def ask(app, make_config, monkeypatch):
    """Sends an order to a SuperNode of some node configuration; gives its reply."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)

    def send(node_config, *, run_config=None, content=None, how=answer):
        config = make_config(privacy={"admit_unattested": True})
        model = build(config).federated
        order = RoundOrder(config.name, 1, config.rounds, config.sha256, model.base_sha256)
        content = content or encode_order(order, model.arrays())
        context = Context(
            run_id=1, node_id=42, node_config=node_config, state=RecordDict(),
            run_config=run_config or {"config": "study.yaml", "set": ""},
        )  # fmt: skip
        message = Message(content=content, message_type="train", dst_node_id=42)
        return decode_reply(how(message, context, app).content)

    return send


@pytest.fixture
def own_file(tmp_path, ball_store):
    values = {
        "name": "Klinik Nord", "store": ball_store, "folder": str(tmp_path / "own"), "budget_epsilon": 8.0,
        "budget_delta": 1e-3, "patient_pattern": r"(p\d+)-",
    }  # fmt: skip
    path = tmp_path / "clinic.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_simulated_hospital_answers(ask):
    reply = ask({"partition-id": 1, "num-partitions": 2})
    assert (reply.refusal, reply.clinic) == (None, "hospital_02")


def test_a_clinic_answers_to_code_that_it_approved_and_to_no_other(ask, app, own_file, tmp_path, caplog):
    node = {"clinic": str(own_file)}
    first = ask(node)
    assert (first.refusal, first.clinic) == (Refusal.BUNDLE_NOT_APPROVED, "Klinik Nord")
    assert bundle_sha256(app) in caplog.text
    approved = approve(tmp_path / "own" / "approved-bundles.json", app, by="Dr. No")
    reply = ask(node)
    assert (reply.refusal, reply.clinic, reply.bundle_sha256) == (None, "Klinik Nord", approved.sha256)
    (app / "federation" / "flower_entry.py").write_text("# another app\n")
    caplog.clear()
    assert ask(node).refusal is Refusal.BUNDLE_NOT_APPROVED
    assert approved.sha256 in caplog.text
    assert bundle_sha256(app) in caplog.text


def test_a_clinics_own_log_tells_how_far_its_training_is(ask, app, own_file, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fedvox_federation.dp_sgd.training.TELL_EVERY_S", 0.0)
    approve(tmp_path / "own" / "approved-bundles.json", app, by="test")
    with caplog.at_level("WARNING", "fedvox_federation"):  # what it is in a process of Flower's
        caplog.handler.setLevel("INFO")
        assert ask({"clinic": str(own_file)}).refusal is None
    assert "step 1 of 2" in caplog.text
    assert "round 1: mean loss" in caplog.text


def test_a_clinic_reads_no_configuration_from_outside_the_approved_app(ask, app, own_file, tmp_path):
    approve(tmp_path / "own" / "approved-bundles.json", app, by="Dr. No")
    shutil.copy(app / "study.yaml", tmp_path / "elsewhere.yaml")
    for place in (str(tmp_path / "elsewhere.yaml"), "../elsewhere.yaml"):
        reply = ask({"clinic": str(own_file)}, run_config={"config": place, "set": ""})
        assert reply.refusal is Refusal.CONFIG


@pytest.mark.parametrize("node", [{}, {"clinic": "/nowhere.yaml"}, {"partition-id": 99}])
def test_a_supernode_that_does_not_know_who_it_is_says_so_by_a_code(ask, node):
    assert ask(node).refusal is Refusal.CONFIG


def test_a_message_that_is_no_order_gets_a_code(ask):
    content = RecordDict({"config": ConfigRecord({"run": "x"})})
    assert ask({"partition-id": 0}, content=content).refusal is Refusal.BAD_ORDER
    assert ask({"partition-id": 0}, content=content, how=introduce).refusal is Refusal.BAD_ORDER


def test_a_supernode_says_which_clinic_it_is_and_nothing_else(ask, own_file, tmp_path):
    node = {"partition-id": 1, "num-partitions": 2}
    simulated, real = ask(node, how=introduce), ask({"clinic": str(own_file)}, how=introduce)
    assert (simulated.refusal, simulated.clinic) == (None, ask(node).clinic)
    assert (real.refusal, real.clinic, real.round_number) == (None, "Klinik Nord", 1)
    assert real == dataclasses.replace(ClinicReply("Klinik Nord", real.run, 1), **{
        name: getattr(real, name) for name in ("loss", "dice_before", "dice_after")  # NaN, which equals nothing
    })  # fmt: skip
    assert not (tmp_path / "own").exists()
    for nobody in ({}, {"clinic": "/nowhere.yaml"}, {"partition-id": 99}):
        assert ask(nobody, how=introduce).refusal is Refusal.CONFIG


def test_an_attestation_that_does_not_hold_counts_as_none(make_config, own_file, tmp_path, caplog):
    for name in ("attestation.json", "trust.json", "root.pub", "node.pub"):
        (tmp_path / name).write_text("{}")
    trust = {"attestation": str(tmp_path / "attestation.json"), "trust_store": str(tmp_path / "trust.json"),
             "root_key": str(tmp_path / "root.pub"), "node_key": str(tmp_path / "node.pub")}  # fmt: skip
    own = ClinicConfig(**{**yaml.safe_load(own_file.read_text()), "trust": trust})
    clinic = real_clinic(make_config(), own)
    assert clinic.standing == UNATTESTED
    assert clinic.attestation == ""
    assert "does not hold" in caplog.text


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """This checkout's app, where nobody edits it meanwhile."""
    here, there = Path(__file__).resolve().parents[3], tmp_path_factory.mktemp("app")
    shutil.copy(here / "pyproject.toml", there)
    for root in ("platform", "federation", "compliance", "jobs/configs"):
        shutil.copytree(here / root, there / root, ignore=shutil.ignore_patterns("__pycache__"))
    return there


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pathspec")
def test_the_bundle_that_flower_makes_of_a_checkout_has_the_checkouts_hash(copied, tmp_path):
    from flwr.cli.build import build_fab_from_disk

    archive = tmp_path / "app.zip"
    archive.write_bytes(build_fab_from_disk(copied))
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    assert bundle_sha256(tmp_path / "unpacked") == bundle_sha256(copied)


def test_the_bundles_packages_win_over_installed_ones(copied):
    """Without the entry, Python would find the version that happens to be installed."""
    code = (
        "from federation.flower_entry import use_this_bundle\nuse_this_bundle()\n"
        "import fedvox_federation, fedvox, fedvox_compliance\n"
        "print(*(m.__file__ for m in (fedvox, fedvox_federation, fedvox_compliance)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=copied, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name.startswith(str(copied)) for name in done.stdout.split())
    late = "import fedvox_federation\n" + code
    done = subprocess.run([sys.executable, "-c", late], cwd=copied, capture_output=True, text=True)
    assert "was imported from" in done.stderr


def test_a_simulation_runs_the_version_in_the_apps_folder_and_not_the_installed_one(copied, write_config):
    told = copied / "federation" / "fedvox_federation" / "cli_simulation.py"
    told.write_text(told.read_text().replace(" rounds of ", " turns of "))
    command = [sys.executable, "-m", "fedvox_federation.cli_simulation", "--app", str(copied)]
    done = subprocess.run(
        [*command, "--config", str(write_config()), "--dry-run"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2 turns of 2 steps" in done.stdout


def test_a_server_cannot_make_a_clinic_fetch_weights_from_an_address(make_config, own_file, monkeypatch):
    """`s3://somebody/$SECRET` would tell a variable of the clinic's environment to whoever answers there."""
    monkeypatch.setattr("fedvox_federation.client.sites.build", lambda *_, **__: pytest.fail("was opened"))
    config = make_config(pretrained="s3://somebody/$AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="fetches nothing"):
        real_clinic(config, ClinicConfig(**yaml.safe_load(own_file.read_text())))


def ordered(ask, app, own_file, overrides, rounds):
    """What a clinic answers to rounds of a run with overrides of the server's."""
    run_config = {"config": "study.yaml", "set": overrides}
    config = from_run_config(run_config, app)
    model = build(config).federated
    for number in rounds:
        order = RoundOrder(config.name, number, config.rounds, config.sha256, model.base_sha256)
        content = encode_order(order, model.arrays())
        yield ask({"clinic": str(own_file)}, run_config=run_config, content=content)


def test_a_run_under_another_name_goes_on_with_the_same_budget(ask, app, own_file, tmp_path):
    approve(tmp_path / "own" / "approved-bundles.json", app, by="test")
    first = list(ordered(ask, app, own_file, "name=one privacy.policy.name=uniform", (1, 2)))
    (second,) = ordered(ask, app, own_file, "name=two privacy.policy.name=uniform", (1,))
    assert [reply.refusal for reply in (*first, second)] == [None, None, Refusal.BUDGET_EXHAUSTED]
    account = PrivacyLedger(tmp_path / "own" / "ledger").account()
    assert {one.run for one in account.reservations.values()} == {"one"}


@pytest.mark.parametrize(
    "overrides",
    [
        "privacy.epsilon=1000",
        "privacy.delta=0.05 privacy.epsilon=100",
        "rounds=1000 privacy.epsilon=500",
        "privacy.clipping_norm=1e6 privacy.epsilon=1000",
        "privacy.largest_sample_rate=1.0 privacy.expected_batch=100 privacy.epsilon=1000",
        f"'privacy.policy={{name: none, options: {{acknowledge: {NO_PRIVACY}}}}}'",
    ],
)
def test_whatever_a_server_orders_the_clinics_budget_holds(ask, app, own_file, overrides, tmp_path):
    """The overrides of a run are the server's own; the clinic's ledger is not."""
    approve(tmp_path / "own" / "approved-bundles.json", app, by="test")
    for reply in ordered(ask, app, own_file, overrides, (1, 2, 1, 2)):
        assert reply.refusal is not None or reply.epsilon_spent <= 8.0
    ledger = tmp_path / "own" / "ledger"
    if ledger.exists():
        assert PrivacyLedger(ledger).account().recompute() <= 8.0
