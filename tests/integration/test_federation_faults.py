"""Clinics and server die, lie and stay silent, in Flower's own simulation with real training and real ledgers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from fedvox.data.records import StoreMeta
from fedvox.data.store_writer import StoreWriter
from fedvox.models.registry import build_model
from fedvox.storage import locate
from fedvox.training.release import ModelInfo, load_release, write_release
from fedvox_federation.privacy.ledger import PrivacyLedger, verify
from fedvox_federation.server.journal import Journal
from fedvox_federation.server.snapshot import load_snapshot

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).with_name("faulty_federation.py")
STRUCTURES = ("background", "ball")
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
    "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0",
}  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Twenty patients of 20³ voxels, and weights to start from."""
    folder = tmp_path_factory.mktemp("material")
    meta = StoreMeta("balls", ("T1",), "MR", STRUCTURES, {"all": (0, 1)}, "zscore", (1.0, 1.0, 1.0))
    writer = StoreWriter.create(str(folder / "store"), meta)
    grid = np.stack(np.meshgrid(*[np.arange(20)] * 3, indexing="ij"))
    for number in range(20):
        rng = np.random.default_rng(number)
        centre = rng.integers(6, 14, 3).reshape(3, 1, 1, 1)
        label = (((grid - centre) ** 2).sum(0) < 25).astype(np.uint8)
        image = (label * 300.0 + rng.normal(0, 40, label.shape)).astype(np.int16)
        writer.add_case(
            f"p{number:02d}", image[None], label, source="all", label_set="all", spacing_mm=(1.0, 1.0, 1.0)
        )
    writer.finish()
    torch.manual_seed(7)
    network = build_model("mednext-v2-nano", in_channels=1, classes=2, deep_supervision=True)
    info = ModelInfo(
        name="mednext-v2-nano", options={"deep_supervision": True}, structures=STRUCTURES, channel_names=("T1",),
        patch_size=(16, 16, 16), spacing_mm=(1.0, 1.0, 1.0), normalization="zscore", intensity=None, modality="MR",
    )  # fmt: skip
    write_release(network, info, locate(str(folder / "weights")))
    return folder


class Run:
    """A federation in a process of its own, and what it leaves."""

    def __init__(self, folder, material, hospitals, faults, **sections):
        self.folder = folder
        self.config = {
            "name": "balls", "rounds": 3, "pretrained": str(material / "weights"), "output": str(folder / "runs"),
            "task": {"patches_per_patient": 1},
            "training": {"steps": 2, "lr": 0.01, "device": "cpu", "evaluate": "never"},
            "privacy": {"expected_batch": 1.0, "delta": 1e-3, "epsilon": 12.0},
            "clinics": {
                "store": str(material / "store"), "folder": str(folder / "clinics"), "held_out_fraction": 0.0,
                "partition": {"kind": "iid", "hospitals": hospitals},
            },
            **sections,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(self.config))
        (folder / "faults.json").write_text(json.dumps(faults))

    def start(self, **environment):
        self.log = (self.folder / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(self.folder / "config.json"), str(self.folder / "faults.json")],
            env={**os.environ, **ENVIRONMENT, **environment}, stdout=self.log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        return self

    def output(self):
        return Path(self.log.name).read_text()

    def finish(self, expect=0):
        code = self.process.wait(300)
        assert (code == 0) == (expect == 0), self.output()[-6000:]
        return self

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def happened(self, hospital, round_number):
        """Whether a hospital has answered a round."""
        return (self.folder / "clinics" / "faults" / f"sent-hospital_{hospital:02d}-{round_number}").exists()

    def wait_for(self, condition):
        deadline = time.monotonic() + 500
        while not condition():
            assert self.process.poll() is None, self.output()[-6000:]
            assert time.monotonic() < deadline, self.output()[-6000:]
            time.sleep(0.1)

    @property
    def directory(self):
        return self.folder / "runs" / "balls"

    @property
    def journal(self):
        return Journal(locate(self.directory))

    def verdicts(self, round_number):
        rows = [row for row in self.journal.clinics if row["round"] == round_number]
        return {row["clinic"].removeprefix("hospital_"): (row["verdict"], row["reason"]) for row in rows}

    def ledgers(self):
        root = self.folder / "clinics" / "balls" / "clinics"
        return {path.parent.name: path for path in sorted(root.glob("hospital_*/ledger"))}

    def check_accounts(self):
        """Every ledger holds, every update in the model is in it once, and the table tells what it tells."""
        for name, folder in self.ledgers().items():
            verify(folder, recompute=True)
            account = PrivacyLedger(folder).account()
            sent = Counter(one.update_sha256 for one in account.reservations.values() if one.update_sha256)
            assert set(sent.values()) <= {1}
            rows = [row for row in self.journal.clinics if row["clinic"] == name]
            used = [row["update_sha256"] for row in rows if row["verdict"] == "accepted"]
            assert len(used) == len(set(used))
            assert set(used) <= set(sent)
            committed = [
                (one.run, one.round_number) for one in account.reservations.values() if one.update_sha256
            ]
            assert len(committed) == len(set(committed))  # no round was sent twice
            assert account.recompute() == pytest.approx(account.epsilon, rel=1e-3)
            told = [row["epsilon"] for row in rows if row["verdict"] == "accepted"]
            assert told == sorted(told)
            assert told[-1] <= account.epsilon + 1e-9


@pytest.fixture
def nothing_left_running():
    """Ray's processes end with a killed run; whatever a failed test has left is ended here."""
    yield
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _ours():
        time.sleep(0.5)
    left = _ours()
    for process in left:
        os.kill(int(process), signal.SIGKILL)
    assert not left


def _ours():
    me, found = str(os.getpid()), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # ended, or somebody else's
            continue
        if f"FEDVOX_FAULTS_OF={me}".encode() in variables:
            found.append(process.name)
    return found


@pytest.fixture(autouse=True)
def _marked(monkeypatch):
    monkeypatch.setenv("FEDVOX_FAULTS_OF", str(os.getpid()))


@pytest.fixture(scope="module")
def faulty(material, tmp_path_factory):
    """Ten hospitals, three rounds, and everything that can go wrong with a clinic."""
    faults = {
        "3/1": "nan", "4/1": "huge", "5/1": "shape", "6/2": "kill", "7/2": "replay",
        "1/3": "raise", "2/3": "raise", "3/3": "raise",
    }  # fmt: skip
    return Run(tmp_path_factory.mktemp("faulty"), material, 10, faults).start().finish()


def test_spoiled_updates_are_named_and_stay_out_of_the_model(faulty):
    first = faulty.verdicts(1)
    assert first["03"] == ("rejected", "not-finite")
    assert first["04"] == ("rejected", "too-long")
    assert first["05"] == ("rejected", "shape")
    assert [first[f"{n:02d}"] for n in (1, 2, 6, 7, 8, 9, 10)] == [("accepted", "")] * 7
    assert faulty.verdicts(2)["07"] == ("rejected", "replayed")


def test_a_clinic_killed_in_mid_round_misses_that_round_and_takes_part_in_the_next(faulty):
    assert faulty.verdicts(2)["06"] == ("failed", "flower-0")
    assert faulty.verdicts(3)["06"] == ("accepted", "")
    open_steps = PrivacyLedger(faulty.ledgers()["hospital_06"]).account().left_open
    assert [(one.round_number, one.counted.steps) for one in open_steps] == [(2, 2)]  # it counts in full


def test_a_third_of_the_clinics_drops_out_and_the_run_finishes_with_the_rest(faulty):
    third = faulty.verdicts(3)
    assert {name for name, (verdict, _) in third.items() if verdict == "failed"} == {"01", "02", "03"}
    assert [line["outcome"] for line in faulty.journal.rounds] == ["aggregated"] * 3
    assert json.loads((faulty.directory / "status.json").read_text())["phase"] == "finished"


def test_accounts_hold_and_nothing_is_counted_twice(faulty):
    faulty.check_accounts()
    assert len(faulty.ledgers()) == 10


def test_an_exceptions_text_is_in_nothing_that_the_server_writes(faulty):
    for path in faulty.directory.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".csv", ".yaml"):
            assert "Meyer" not in path.read_text()


def test_the_final_model_is_a_release_with_finite_weights(faulty):
    model, info = load_release(str(faulty.directory / "final"))
    assert info.provenance["clinics"] == 10
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    start, _ = load_release(faulty.config["pretrained"])
    trained = {
        name for name, value in model.state_dict().items() if not torch.equal(value, start.state_dict()[name])
    }
    state = load_snapshot(faulty.journal.state)
    assert trained == set(state.arrays)


def test_a_killed_server_resumes_and_no_clinic_pays_twice_for_what_it_had_sent(
    material, tmp_path, nothing_left_running
):
    run = Run(tmp_path, material, 4, {"4/2": "hang"}).start()
    run.wait_for(lambda: all(run.happened(n, 2) for n in (1, 2, 3)))
    run.wait_for(lambda: (tmp_path / "clinics" / "faults" / "hanging").exists())
    run.kill()
    before = load_snapshot(run.journal.state)
    assert before.round_number == 1
    run.start().finish()
    assert "going on after round 1 of 3" in run.output()
    second = {row["clinic"]: row for row in run.journal.clinics if row["round"] == 2}
    assert [second[f"hospital_0{n}"]["replayed"] for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert [line["round"] for line in run.journal.rounds] == [1, 2, 3]
    assert len(run.journal.clinics) == 12
    run.check_accounts()
    accounts = {name: PrivacyLedger(folder).account() for name, folder in run.ledgers().items()}
    booked = {
        name: [one.round_number for one in account.reservations.values()]
        for name, account in accounts.items()
    }
    # The one that was killed in training has booked its second round twice and sent it once, which leaves too little
    # of its patients' budget for the third. The others have paid nothing for being asked again.
    assert booked.pop("hospital_04") == [1, 2, 2]
    assert set(map(tuple, booked.values())) == {(1, 2, 3)}
    assert len(accounts["hospital_04"].left_open) == 1
    assert run.verdicts(3)["04"] == ("declined", "budget-exhausted")


def test_a_run_with_fewer_supernodes_than_a_round_needs_says_so_and_ends(material, tmp_path):
    server = {"min_clinics": 3, "connect_timeout_s": 4.0}
    run = Run(tmp_path, material, 2, {}, server=server).start().finish(expect=1)
    assert "round 1 needs 3 clinics; 2 are connected, after 4 s" in run.output()
    assert json.loads((run.directory / "status.json").read_text())["phase"] == "stopped"


@pytest.mark.slow
def test_a_round_ends_at_its_deadline_without_the_clinic_that_is_late(material, tmp_path):
    run = (
        Run(tmp_path, material, 3, {"3/2": "dawdle"}, rounds=2, server={"deadline_s": 60.0}).start().finish()
    )
    assert run.verdicts(2)["03"] == ("late", "")
    assert [line["outcome"] for line in run.journal.rounds] == ["aggregated"] * 2
    assert 60 <= run.journal.rounds[1]["seconds"] < 75
    # It was trained and booked all the same, since the clinic cannot know.
    booked = PrivacyLedger(run.ledgers()["hospital_03"]).account().reservations.values()
    assert [one.round_number for one in booked] == [1, 2]
