"""The label store: nothing lost, nothing twice, nobody overwritten."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import sqlalchemy

from fedvox.curation.store import LabelStore, NewCase, NewItem, NewVersion, Source, Verdict
from fedvox.errors import ConfigError, DataError, FedvoxError, LabelConflict, StorageError

SHAPE = (4, 5, 6)


@pytest.fixture
def store(tmp_path):
    made = LabelStore.create(
        tmp_path / "collection", name="test", structures=("background", "liver", "spleen"), images="/nowhere"
    )
    made.add_cases([NewCase(f"c{n}", SHAPE, (1.0, 1.0, 1.5)) for n in range(3)], actor="test")
    made.add_cases([NewCase("gold", SHAPE, (1.0, 1.0, 1.5), gold=True)], actor="test")
    for case in ("c0", "c1", "c2", "gold"):
        made.add_version(case, mask(1), Source("import", "annotators"), round=0, actor="test", move_head=True)
    yield made
    made.close()


def mask(value, extra=0):
    volume = np.zeros(SHAPE, np.uint8)
    volume[1:3] = value
    volume[0, 0, :extra] = 1
    return volume


def verdict(case="c0", revision=1, reviewer="ann", **fields):
    return Verdict(case, revision, reviewer, **fields)


def test_a_mask_comes_back_as_it_was_and_the_same_mask_is_stored_once(store):
    first = store.add_version("c0", mask(2), Source("model", "a", "00"), round=1, actor="t")
    again = store.add_version("c1", mask(2), Source("model", "a", "00"), round=1, actor="t")
    assert first.mask_sha256 == again.mask_sha256
    np.testing.assert_array_equal(store.read_mask(first), mask(2))
    assert len(list(store.masks.names())) == 2


def test_a_proposal_moves_no_head_and_the_same_proposal_twice_is_one_version(store):
    source = Source("model", "a", "00")
    one = store.add_version("c0", mask(2), source, round=1, actor="t")
    assert store.add_version("c0", mask(2), source, round=1, actor="t") == one
    assert store.case("c0").head == 1
    assert [version.number for version in store.versions("c0")] == [1, 2]


def test_of_two_reviewers_on_one_case_the_second_is_told_and_nothing_is_overwritten(store):
    store.edit(verdict(), mask(2), parent=1)
    with pytest.raises(LabelConflict, match="somebody decided meanwhile") as caught:
        store.edit(verdict(reviewer="bob"), mask(1, extra=3), parent=1)
    assert caught.value.exit_code == 2
    assert [version.reviewer for version in store.versions("c0")] == ["", "ann"]
    np.testing.assert_array_equal(store.read_mask(store.version("c0", store.case("c0").head)), mask(2))


def test_of_eight_reviewers_at_once_exactly_one_decides(store):
    outcomes = []

    def decide(number):
        try:
            store.edit(verdict(reviewer=f"r{number}"), mask(1, extra=number % 6 + 1), parent=1)
            outcomes.append("done")
        except LabelConflict:
            outcomes.append("told")

    threads = [threading.Thread(target=decide, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["done"] + ["told"] * 7
    assert len(store.versions("c0")) == 2
    assert store.audit.verify() == len(store.audit.entries())


def test_a_decision_sent_twice_is_written_once(store):
    sent = verdict(request_id="page-1")
    assert store.accept(sent, 1) == store.accept(sent, 1)
    assert len(store.reviews(case_id="c0")) == 1
    assert store.case("c0").revision == 2


def test_rolling_back_makes_the_old_label_the_head_and_keeps_the_history(store):
    store.rounds.open({}, actor="t")
    store.edit(verdict(), mask(2), parent=1)
    store.rounds.close(1, actor="t")
    store.rounds.open({}, actor="t")
    store.roll_back("c0", 1, expected_revision=2, actor="lead", reason="the edit was wrong")
    assert store.case("c0").head == 1
    assert [store.heads(at_round=number)["c0"] for number in (0, 1, 2)] == [1, 2, 1]
    assert len(store.versions("c0")) == 2


def test_the_gold_set_is_frozen(store):
    with pytest.raises(DataError, match="frozen gold set"):
        store.accept(verdict("gold"), 1)
    with pytest.raises(DataError, match="frozen gold set"):
        store.add_version("gold", mask(2), Source("import", "x"), round=0, actor="t", move_head=True)


def test_a_case_that_was_deleted_meanwhile_is_told(store):
    store.delete_case("c0", actor="lead", reason="consent withdrawn")
    with pytest.raises(DataError) as caught:
        store.accept(verdict(), 1)
    assert caught.value.code == "case_deleted"
    assert "c0" not in store.heads()
    assert store.versions("c0")


@pytest.mark.parametrize(
    ("volume", "code"),
    [
        (np.zeros((4, 5, 7), np.uint8), "shape_mismatch"),
        (np.full(SHAPE, 3, np.uint8), "unknown_label"),
        (np.full(SHAPE, -1, np.int16), "unknown_label"),
        (np.zeros(SHAPE, np.float32), "not_integer"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_and_nothing_is_written(store, volume, code):
    with pytest.raises(DataError) as caught:
        store.edit(verdict(), volume, parent=1)
    assert caught.value.code == code
    assert len(store.versions("c0")) == 1


def test_voxels_that_nobody_judged_may_be_stored(store):
    volume = mask(1)
    volume[0] = 255
    version = store.add_version("c0", volume, Source("import", "x"), round=0, actor="t")
    assert (store.read_mask(version)[0] == 255).all()


def test_two_reviewers_get_different_cases_and_one_gets_the_same_again(store):
    number = store.rounds.open({}, actor="t")
    items = [NewItem("c0", "queue", 2.0, 1.0, 1.0), NewItem("c1", "queue", 1.0, 1.0, 1.0)]
    store.queue.replace(number, items, actor="t")
    assert store.queue.next("ann").case_id == "c0"
    assert store.queue.next("ann").case_id == "c0"
    assert store.queue.next("bob").case_id == "c1"
    assert store.queue.next("eve") is None


def test_a_lease_that_ended_is_open_again_and_its_answer_is_refused(store):
    store.queue.replace(store.rounds.open({}, actor="t"), [NewItem("c0", "queue", 2.0, 1.0, 1.0)], actor="t")
    late = store.queue.next("ann", lease_s=-1.0)
    assert store.queue.next("bob").id == late.id
    with pytest.raises(LabelConflict, match="bob has taken"):
        store.accept(verdict(item=late.id), 1)


def test_a_second_reader_sees_what_the_first_saw_and_moves_no_head(store):
    number = store.rounds.open({}, actor="t")
    items = [NewItem("c0", "queue", 2.0, 1.0, 1.0), NewItem("c0", "double", 1.0, 1.0, 1.0)]
    store.queue.replace(number, items, actor="t")
    first = store.queue.next("ann")
    store.edit(verdict(item=first.id), mask(2), parent=1)
    assert store.queue.next("ann") is None
    second = store.queue.next("bob")
    assert (second.purpose, store.shown_version(second)) == ("double", 1)
    review = store.accept(verdict(revision=2, reviewer="bob", item=second.id), 1)
    assert (review.seen, review.result, store.case("c0").head) == (1, 1, 2)


def test_history_cannot_be_changed_through_the_database(store):
    for statement in ("UPDATE audit SET actor='x'", "DELETE FROM versions", "UPDATE moves SET head=9"):
        with (
            pytest.raises(sqlalchemy.exc.IntegrityError, match="append-only"),
            store.database.engine.begin() as connection,
        ):
            connection.exec_driver_sql(statement)


def test_a_line_of_the_log_that_was_changed_by_other_means_is_found(store):
    path = store.location.local_path / "curation.db"
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TRIGGER audit_no_update")
        raw.execute("UPDATE audit SET actor='nobody' WHERE sequence=2")
    with pytest.raises(DataError, match="line 2 of the audit log"):
        store.audit.verify()


def test_a_locked_database_is_one_clear_error(store):
    impatient = LabelStore.open(store.location.uri, timeout_s=0.1)
    holder = sqlite3.connect(store.location.local_path / "curation.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StorageError, match=r"(?s)locked by another process.*nothing was written"):
            impatient.accept(verdict(), 1)
    finally:
        holder.close()
    assert impatient.accept(verdict(), 1).result == 1


def test_a_full_database_is_one_clear_error(store):
    pages = {}

    def small(connection, _):
        connection.execute(f"PRAGMA max_page_count={pages['now']}")

    with store.database.read() as connection:
        pages["now"] = connection.exec_driver_sql("PRAGMA page_count").scalar()
    store.database.engine.dispose()
    sqlalchemy.event.listen(store.database.engine, "connect", small)
    with pytest.raises(StorageError, match="cannot grow"):
        store.add_cases([NewCase(f"n{n}", SHAPE, (1.0, 1.0, 1.0)) for n in range(2000)], actor="t")
    assert len(store.cases()) == 4


def test_a_folder_that_is_no_store_and_a_database_that_is_none_are_told(tmp_path, store):
    with pytest.raises(DataError, match="holds no label store"):
        LabelStore.open(tmp_path)
    (store.location.local_path / "curation.db").write_bytes(b"no database at all" * 100)
    store.close()
    with pytest.raises(FedvoxError):
        LabelStore.open(store.location.uri).cases()


def test_a_password_in_the_url_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="carries a password"):
        LabelStore.create(
            tmp_path / "x", name="x", structures=("background", "a"), images="/n",
            database="postgresql+psycopg://me:secret@host/db",
        )  # fmt: skip


def test_tokens_are_kept_as_hashes(store):
    token = store.people.admit("ann", "reviewer", actor="lead")
    assert store.people.by_token(token).role == "reviewer"
    assert token.encode() not in (store.location.local_path / "curation.db").read_bytes()
    store.people.dismiss("ann", actor="lead")
    assert store.people.by_token(token) is None


def test_masks_that_no_version_knows_are_garbage_and_only_they_are_collected(store):
    orphan = store.write_mask("c0", mask(2, extra=4))
    assert store.garbage() == [orphan]
    assert store.collect_garbage(actor="t") == 0  # too young: it may be about to get its row
    assert store.collect_garbage(actor="t", min_age_s=-1) == 1
    assert store.garbage() == []
    assert store.missing_masks() == []
    with pytest.raises(DataError, match="not in the store"):
        store.record_versions([NewVersion("c0", orphan, Source("model", "a"))], actor="t")


_WRITER = """
import sys, numpy as np
from fedvox.curation.store import LabelStore, Source, Verdict
store = LabelStore.open(sys.argv[1])
print("ready", flush=True)
n = 0
while True:
    n += 1
    volume = np.zeros((4, 5, 6), np.uint8)
    volume.reshape(-1)[: n % 100] = 1 + n % 2
    case = store.case("c0")
    store.edit(Verdict("c0", case.revision, "ann", request_id=f"{sys.argv[2]}-{n}"), volume, parent=case.head)
    print(n, flush=True)
"""


@pytest.mark.integration
def test_kill_9_at_any_moment_loses_and_doubles_no_version(store):
    confirmed = 0
    for attempt in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, store.location.uri, str(attempt)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert writer.stdout.readline().strip() == "ready"
        time.sleep(0.05 + 0.037 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        lines = writer.stdout.read().split()
        writer.wait()
        confirmed += len(lines)
    versions, reviews = store.versions("c0"), store.reviews(case_id="c0")
    assert [version.number for version in versions] == list(range(1, len(versions) + 1))
    assert confirmed <= len(reviews) <= confirmed + 3  # at most the one that was being told is more
    assert len(versions) == len(reviews) + 1
    assert len({(review.seen, review.result) for review in reviews}) == len(reviews)
    assert store.case("c0").head == versions[-1].number
    assert store.case("c0").revision == len(versions)
    assert store.missing_masks() == []
    assert store.audit.verify() == len(store.audit.entries())
    for version in versions:
        store.read_mask(version)


def test_the_store_can_be_sent_to_another_process(store):
    import pickle

    assert json.loads(json.dumps(sorted(pickle.loads(pickle.dumps(store)).heads()))) == [
        "c0",
        "c1",
        "c2",
        "gold",
    ]
