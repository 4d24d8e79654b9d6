"""Rounds with clinics in this process: who counts, what is written, and how a killed server goes on."""

import csv
import dataclasses
import functools
import io
import json
import logging
import math
import os
import time

import numpy as np
import pytest

from fedvox import storage
from fedvox.errors import CheckpointError, ConfigError, DataError, RunError
from fedvox.storage import locate
from fedvox_federation.protocol import Refusal, encode_reply
from fedvox_federation.server.app import TakenOver, only_server
from fedvox_federation.server.checks import Remembered
from fedvox_federation.server.exchange import Time
from fedvox_federation.server.journal import Journal
from fedvox_federation.server.rounds import Federation, TooFewClinics
from fedvox_federation.server.snapshot import Snapshot, load_snapshot, save_snapshot
from fedvox_federation.server.strategies import build_aggregator


class Clock:
    def __init__(self):
        self.seconds, self.pauses = 0.0, []

    @property
    def time(self):
        return Time(now=lambda: self.seconds, sleep=self.sleep)

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.seconds += seconds


class Killed(BaseException):
    """As SIGKILL: nothing catches it."""


@pytest.fixture
def start_run(fed, tmp_path):
    """Starts a server on `clinics`, or goes on with the run in the folder."""

    def start(clinics, config=None, *, folder="run", judge=None, clock=None):
        config = config or fed.config()
        journal = Journal(locate(tmp_path / folder))
        snapshot = load_snapshot(journal.state) or Snapshot(0, fed.arrays)
        journal.begin(config, after_round=snapshot.round_number)
        remembered = Remembered.from_plain(snapshot.memory) if snapshot.memory else None
        grid = clinics if isinstance(clinics, fed.grid) else fed.grid(clinics)
        federation = Federation(
            config,
            grid,
            build_aggregator(
                config.strategy.name, config.strategy.options, weighting=config.strategy.weighting
            ),
            fed.checker(config, remembered=remembered),
            journal,
            snapshot,
            base_sha256="base",
            judge=judge,
            clock=(clock or Clock()).time,
        )
        federation.grid, federation.journal = grid, journal
        return federation

    return start


def good(fed, number, **changes):
    return lambda order, arrays: fed.honest(order, arrays, number, **changes)


def everybody(fed, count=4):
    return {number: good(fed, number) for number in range(1, count + 1)}


def verdicts(federation, round_number=1):
    return {
        row["clinic"]: (row["verdict"], row["reason"])
        for row in federation.journal.clinics
        if row["round"] == round_number
    }


def equal(first, second):
    return all((first[name] == second[name]).all() for name in first)


def test_the_model_after_a_round_is_the_weighted_mean_of_the_accepted_updates(fed, start_run):
    clinics = {1: good(fed, 1, patients=20), 2: good(fed, 2, patients=60)}
    federation = start_run(clinics, fed.config(rounds=1))
    result = federation.run()
    order = federation.grid.sent[0][0]
    one, two = (
        fed.honest(order, fed.arrays, 1, patients=20),
        fed.honest(order, fed.arrays, 2, patients=60),
    )
    assert result["w"] == pytest.approx(0.25 * one.arrays["w"] + 0.75 * two.arrays["w"], abs=1e-6)


def test_tables_say_what_every_clinic_sent_spent_and_was_worth(fed, start_run, tmp_path):
    federation = start_run(
        {1: good(fed, 1, epsilon_spent=1.25), 2: good(fed, 2, epsilon_spent=0.5)}, fed.config(rounds=1)
    )
    federation.run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "clinics.jsonl").read_text().splitlines()]
    assert [row["clinic"] for row in rows] == ["hospital_01", "hospital_02"]
    assert rows[0].items() >= {"epsilon": 1.25, "noise_multiplier": 3.0, "tier": 4, "weight": 0.5}.items()
    assert rows[0].items() >= {"loss": 1.0, "dice_before": 0.5, "dice_after": 0.55, "seconds": 1.5}.items()
    line = json.loads((tmp_path / "run" / "rounds.jsonl").read_text())
    assert (line["epsilon"], line["worst_clinic"]) == (1.25, "hospital_01")  # the largest, not the mean
    table = list(csv.DictReader(io.StringIO((tmp_path / "run" / "clinics.csv").read_text())))
    assert [row["verdict"] for row in table] == ["accepted", "accepted"]


def test_clinics_that_fail_stay_silent_decline_or_lie_are_named_and_the_run_finishes(fed, start_run):
    def dies(order, arrays):
        raise RuntimeError("/data/patients/Meyer_Anna.nii.gz is damaged")

    def nan(order, arrays):
        return fed.honest(order, arrays, 4, arrays={**arrays, "b": np.full(3, np.nan, np.float32)})

    def huge(order, arrays):
        return fed.honest(order, arrays, 5, arrays={k: v + np.float32(1e20) for k, v in arrays.items()})

    def wrong_shape(order, arrays):
        return fed.honest(order, arrays, 6, arrays={**arrays, "b": np.zeros(9, np.float32)})

    def garbage(order, arrays):
        content = encode_reply(fed.honest(order, arrays, 7))
        content["metrics"] = type(content["metrics"])({"round_number": [1, 2]})
        return content

    clinics = {
        1: good(fed, 1), 2: good(fed, 2), 3: dies, 4: nan, 5: huge, 6: wrong_shape, 7: garbage,
        8: lambda order, arrays: None, 9: good(fed, 9, arrays={}, refusal=Refusal.BUDGET_EXHAUSTED),
    }  # fmt: skip
    federation = start_run(clinics)
    result = federation.run()
    assert verdicts(federation, 3) == {
        "hospital_01": ("accepted", ""),
        "hospital_02": ("accepted", ""),
        "node 3": ("failed", "flower-2"),
        "hospital_04": ("rejected", "not-finite"),
        "hospital_05": ("rejected", "too-long"),
        "hospital_06": ("rejected", "shape"),
        "node 7": ("rejected", "unreadable"),
        "node 8": ("late", ""),
        "hospital_09": ("declined", "budget-exhausted"),
    }
    alone = start_run({1: good(fed, 1), 2: good(fed, 2)}, folder="alone").run()
    assert equal(result, alone)
    everything = "".join(path.read_text() for path in federation.journal.run.location.local_path.glob("*.*"))
    assert "Meyer" not in everything


def test_a_replayed_update_does_not_enter_a_second_round(fed, start_run):
    sent = {}

    def replays(order, arrays):
        first = sent.setdefault("first", fed.honest(order, arrays, 3))
        return dataclasses.replace(first, round_number=order.round_number, epsilon_spent=order.round_number)

    federation = start_run({1: good(fed, 1), 2: good(fed, 2), 3: replays})
    federation.run()
    assert [verdicts(federation, n)["hospital_03"] for n in (1, 2, 3)] == [
        ("accepted", ""),
        ("rejected", "replayed"),
        ("rejected", "replayed"),
    ]


def test_a_third_of_the_clinics_drops_out_and_the_run_finishes(fed, start_run):
    grid = fed.grid(everybody(fed, 10))

    def leaves(order, arrays):
        if order.round_number == 2:
            for node in (1, 2, 3):
                grid.clinics.pop(node, None)
        return fed.honest(order, arrays, 10)

    grid.clinics[10] = leaves
    federation = start_run(grid)
    federation.run()
    assert [line["accepted"] for line in federation.journal.rounds] == [10, 10, 7]
    assert {line["outcome"] for line in federation.journal.rounds} == {"aggregated"}


def test_too_few_updates_stop_the_run_with_names_and_it_can_be_resumed(fed, start_run):
    clinics = {1: good(fed, 1), 2: lambda order, arrays: None}
    with pytest.raises(TooFewClinics, match="1 updates can be used, and 2 are needed; node 2 late"):
        start_run(clinics).run()
    federation = start_run(everybody(fed, 2))
    federation.run()
    assert [line["round"] for line in federation.journal.rounds] == [1, 2, 3]


def test_too_few_updates_can_leave_the_model_as_it_is(fed, start_run):
    def absent_in_the_second(order, arrays):
        return None if order.round_number == 2 else fed.honest(order, arrays, 2)

    clinics = {1: good(fed, 1), 2: absent_in_the_second}
    federation = start_run(clinics, fed.config(server={"on_too_few": "skip"}))
    federation.run()
    assert [line["outcome"] for line in federation.journal.rounds] == ["aggregated", "skipped", "aggregated"]
    sent = {order.round_number: arrays for order, arrays, _ in federation.grid.sent}
    assert equal(sent[2], sent[3])


def test_waiting_asks_only_those_again_that_are_missing(fed, start_run):
    clock, calls = Clock(), []

    def third_time(order, arrays):
        calls.append(order.round_number)
        return fed.honest(order, arrays, 2) if len(calls) == 3 else None

    config = fed.config(rounds=1, server={"on_too_few": "wait", "ask_again_s": 60.0})
    federation = start_run({1: good(fed, 1), 2: third_time}, config, clock=clock)
    federation.run()
    assert federation.grid.asked == [(1, 1), (1, 2), (1, 2), (1, 2)]
    assert [pause for pause in clock.pauses if pause > 1] == [60.0, 60.0]


def test_waiting_ends(fed, start_run):
    clock = Clock()
    config = fed.config(server={"on_too_few": "wait", "ask_again_s": 60.0, "give_up_s": 200.0})
    with pytest.raises(TooFewClinics):
        start_run({1: good(fed, 1), 2: lambda order, arrays: None}, config, clock=clock).run()
    assert clock.seconds <= 200


def test_waiting_for_more_supernodes_than_exist_says_so_with_counts_and_gives_up(fed, start_run, caplog):
    clock = Clock()
    config = fed.config(server={"min_clinics": 5, "connect_timeout_s": 25.0})
    with pytest.raises(
        TooFewClinics, match="round 1 needs 5 clinics; 3 are connected, after 25 s"
    ) as stopped:
        start_run(everybody(fed, 3), config, clock=clock).run()
    assert "--num-supernodes" in stopped.value.remedy
    told = [record.message for record in caplog.records if "waiting" in record.message]
    assert len(told) == 3
    assert told[0] == "round 1 needs 5 clinics; 3 are connected; waiting for 25 s more"


def test_krum_waits_for_the_number_that_its_proof_needs(fed, start_run):
    config = fed.config(strategy={"name": "krum", "options": {"num_malicious_nodes": 1}})
    with pytest.raises(TooFewClinics, match="needs 5 clinics") as stopped:
        start_run(everybody(fed, 4), config).run()
    assert "Krum itself needs 5" in stopped.value.remedy


def test_a_bad_update_can_end_the_run(fed, start_run):
    clinics = {**everybody(fed, 3), 4: good(fed, 4, arrays={"w": np.zeros(1, np.float32)})}
    with pytest.raises(RunError, match=r"hospital_04 rejected \(names\)"):
        start_run(clinics, fed.config(server={"on_bad_update": "stop"})).run()


def test_the_run_ends_early_and_well_when_every_budget_is_spent(fed, start_run):
    def spent(number):
        def answer(order, arrays):
            if order.round_number == 1:
                return fed.honest(order, arrays, number)
            return fed.honest(order, arrays, number, arrays={}, refusal=Refusal.BUDGET_EXHAUSTED)

        return answer

    federation = start_run({1: spent(1), 2: spent(2)})
    federation.run()
    assert len(federation.journal.rounds) == 1


def test_deadline_and_proximal_mu_go_out_with_the_order(fed, start_run):
    config = fed.config(
        rounds=1, strategy={"name": "fedprox", "options": {"proximal_mu": 0.25}}, server={"deadline_s": 7.0}
    )
    federation = start_run(everybody(fed, 2), config)
    federation.run()
    order, _, ttl = federation.grid.sent[0]
    assert (order.proximal_mu, order.config_sha256) == (0.25, config.sha256)
    assert 7 < ttl < 60  # a node that comes later than the deadline does not train for nobody


@pytest.mark.parametrize("killed_in", ["asking", "tables", "state"])
@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
def test_a_killed_server_goes_on_and_ends_with_the_same_bits(
    fed, start_run, monkeypatch, strategy, killed_in
):
    options = {"server_momentum": 0.9} if strategy == "fedavgm" else {}
    config = fed.config(rounds=4, strategy={"name": strategy, "options": options})
    whole = start_run(everybody(fed), config, folder="whole").run()

    def kill(*_args, **_kwargs):
        raise Killed

    clinics = everybody(fed)
    federation = start_run(clinics, config)
    if killed_in == "asking":
        federation.grid.clinics[4] = lambda order, arrays: (
            kill() if order.round_number == 3 else fed.honest(order, arrays, 4)
        )
        with pytest.raises(Killed):
            federation.run()
    else:
        where = "save_snapshot" if killed_in == "state" else "clinic_row"
        from fedvox_federation.server import rounds

        original, count = getattr(rounds, where), []

        def third(*args, **kwargs):
            count.append(1)
            limit = 2 if killed_in == "state" else 8
            return original(*args, **kwargs) if len(count) <= limit else kill()

        monkeypatch.setattr(rounds, where, third)
        with pytest.raises(Killed):
            federation.run()
        monkeypatch.setattr(rounds, where, original)
    again = start_run(everybody(fed), config)
    result = again.run()
    assert again.grid.asked[0][0] == 3
    assert equal(result, whole)
    rows = [(row["round"], row["clinic"]) for row in again.journal.clinics]
    assert len(rows) == len(set(rows)) == 16
    assert [line["round"] for line in again.journal.rounds] == [1, 2, 3, 4]


def test_an_update_of_before_the_kill_is_known_after_it(fed, start_run):
    start_run(everybody(fed, 3), fed.config(rounds=3)).run()
    folder_config = fed.config(rounds=3)
    federation = start_run(everybody(fed, 3), folder_config)
    assert len(federation._checker.remembered.updates) == 9
    assert federation.run() is federation.arrays  # nothing is left to do
    assert federation.grid.asked == []


def test_answers_are_told_as_they_come_and_who_is_silent_is_waited_for_until_the_deadline(
    fed, start_run, federation_command, tmp_path, caplog
):
    """One clinic in thirty seconds; the last of four never."""
    clock = Clock()
    grid = fed.grid({**everybody(fed, 3), 4: lambda order, arrays: None})
    pull, shown = grid.pull_messages, []

    def slowly(ids):
        due = int(clock.seconds // 30)
        came = pull([one for one in grid._waiting if one in ids][: max(0, due - (4 - len(ids)))])
        if came and clock.seconds > 60:
            shown.append(federation_command("status", tmp_path / "run").out)
        return came

    grid.pull_messages = slowly
    config = fed.config(rounds=1, server={"deadline_s": 150.0, "min_clinics": 3})
    with caplog.at_level(logging.INFO, "fedvox_federation"):
        start_run(grid, config, clock=clock).run()
    assert "round 1: 2 of 4 have answered, 61 s" in caplog.text
    assert "training (round 1), 2 of 4 have answered" in shown[-1]
    assert 150 <= clock.seconds < 152
    assert max(clock.pauses) <= 1


def until_taken(may_write):
    for _ in range(500):
        time.sleep(0.01)
        try:
            may_write()
        except TakenOver as told:
            assert "taken over by process 1 on elsewhere" in str(told)  # noqa: PT017
            return
    pytest.fail("never told")


def test_a_second_server_is_kept_from_a_run_and_learns_who_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "lease", functools.partial(storage.lease, beat_s=0.02, stale_s=2.0))
    folder = locate(tmp_path / "run")
    with only_server(folder) as may_write:
        with pytest.raises(TakenOver, match=f"process {os.getpid()}"), only_server(folder):
            pytest.fail("two servers")
        may_write()
    with only_server(folder) as may_write:  # given back
        other = dataclasses.replace(storage.Holder.this_process(), pid=1, host="elsewhere")
        (tmp_path / "run" / "server.json").write_text(json.dumps(dataclasses.asdict(other)))
        until_taken(may_write)


def test_a_server_that_was_taken_over_writes_nothing_of_its_round(fed, start_run):
    federation = start_run(everybody(fed))

    def lost():
        raise TakenOver("run was taken over")

    federation._may_write = lost
    with pytest.raises(TakenOver):
        federation.run()
    assert federation.journal.rounds == []
    assert load_snapshot(federation.journal.state) is None


def test_a_run_is_not_resumed_with_other_settings(fed, start_run):
    start_run(everybody(fed, 2), fed.config(rounds=2)).run()
    with pytest.raises(ConfigError, match="began with other settings: rounds"):
        start_run(everybody(fed, 2), fed.config(rounds=5))
    start_run(everybody(fed, 2), fed.config(rounds=2, server={"deadline_s": 9.0}))  # the server's own affair


def test_a_damaged_table_is_named_and_does_not_keep_the_run_from_going_on(fed, start_run, tmp_path):
    start_run(everybody(fed, 2), fed.config(rounds=2)).run()
    table = tmp_path / "run" / "clinics.jsonl"
    table.write_text(table.read_text()[:-20])
    with pytest.raises(DataError, match=r"clinics\.jsonl: is damaged"):
        Journal(locate(tmp_path / "run"))
    table.rename(tmp_path / "away.jsonl")
    start_run(everybody(fed, 2), fed.config(rounds=2)).run()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("status.json", '{"phase": "x", "name": 3, "rounds": "a", "updated": "b"}'),
        ("status.json", "[1]"),
        ("rounds.jsonl", '{"round": 1}'),
        ("rounds.jsonl", "[1]"),
        ("clinics.jsonl", '{"clinic": 1}'),
    ],
)
def test_status_of_a_run_whose_files_are_of_another_shape_is_one_line(
    fed, start_run, federation_command, tmp_path, file, content
):
    start_run(everybody(fed), fed.config(rounds=1)).run()
    (tmp_path / "run" / file).write_text(content)
    found = federation_command("status", tmp_path / "run")
    assert found.code == 2
    assert "Traceback" not in found.err


def test_a_torn_state_is_not_taken_and_the_one_before_is(tmp_path):
    folder = locate(tmp_path)
    for number in (1, 2, 3):
        save_snapshot(folder, Snapshot(number, {"w": np.full(3, number, np.float32)}, {"m_t/w": np.ones(3)}))
    assert len(list(tmp_path.iterdir())) == 4  # two rounds, two files each
    newest = tmp_path / "round-0003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    found = load_snapshot(folder)
    assert (found.round_number, found.arrays["w"].tolist()) == (2, [2, 2, 2])
    (tmp_path / "round-0002.json").write_text("{")
    with pytest.raises(CheckpointError, match="none of the 2 saved states is whole"):
        load_snapshot(folder)
    assert load_snapshot(locate(tmp_path / "nothing")) is None


def test_infinite_epsilon_of_a_run_without_noise_is_told_as_no_guarantee(fed, start_run, federation_command):
    config = fed.config(rounds=2, privacy={"policy": fed.no_noise})
    clinics = {n: good(fed, n, noise=0.0, epsilon_spent=math.inf) for n in (1, 2)}
    federation = start_run(clinics, config)
    federation.run()
    shown = federation_command("status", federation.journal.run.location.uri)
    assert shown.code == 0
    assert "ε of the federation no guarantee" in shown.out


def test_status_shows_how_far_and_who_was_refused(fed, start_run, federation_command, tmp_path):
    clinics = {**everybody(fed, 3), 4: good(fed, 4, noise=0.1)}
    federation = start_run(clinics, judge=lambda arrays: 0.625)
    federation.run()
    shown = federation_command("status", tmp_path / "run")
    assert "3 of 3 rounds done" in shown.out
    assert "rejected (noise)" in shown.out
    assert "Dice of the new model 0.6250, ε of the federation 1.5 (hospital_01)" in shown.out
    value = federation_command("status", tmp_path / "run", "--json").json
    assert value["round_lines"][-1]["accepted"] == 3
    assert {row["clinic"]: row["reason"] for row in value["clinics"]}["hospital_04"] == "noise"
    missing = federation_command("status", tmp_path)
    assert missing.code == 2
    assert "no federation's run directory" in missing.err


def test_a_clinic_cannot_put_a_formula_into_the_spreadsheet(fed, start_run, tmp_path):
    clinics = {**everybody(fed, 2), 3: good(fed, 3, clinic="=1+1_03")}
    start_run(clinics, fed.config(rounds=1)).run()
    names = [row["clinic"] for row in csv.DictReader((tmp_path / "run" / "clinics.csv").open())]
    assert "'=1+1_03" in names


def test_curves_are_drawn_for_few_and_many_clinics_and_for_none_that_share_scores(fed, start_run, tmp_path):
    from fedvox_federation.server.figures import draw_curves

    for count, changes in (
        (3, {}),
        (12, {"loss": math.nan, "dice_before": math.nan, "dice_after": math.nan}),
    ):
        clinics = {n: good(fed, n, **changes) for n in range(1, count + 1)}
        federation = start_run(clinics, folder=f"run{count}")
        federation.run()
        draw_curves(federation.journal, "study")
        assert (tmp_path / f"run{count}" / "figures" / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_directory_on_s3_resumes_too(fed, bucket):
    folder = locate(f"{bucket}/study/state")
    save_snapshot(folder, Snapshot(4, {"w": np.ones(2, np.float32)}, memory={"patients": {"a": 3}}))
    found = load_snapshot(folder)
    assert (found.round_number, dict(found.memory)) == (4, {"patients": {"a": 3}})
