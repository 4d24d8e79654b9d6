"""The privacy ledger: what it counts, what it refuses, and what a crash or a hand can do to it."""

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fedvox.errors import ConfigError, StorageError
from fedvox_federation.errors import BudgetExhausted, LedgerDamaged, PrivacyError
from fedvox_federation.privacy import Phase, chain, epsilon
from fedvox_federation.privacy.chain import HEAD_FILE, LEDGER_FILE
from fedvox_federation.privacy.ledger import PrivacyLedger, Terms, verify

TERMS = Terms(site="Klinik Nord", dataset="sha256:abc", epsilon=3.0, delta=1e-5, accountant="rdp")
STEP = Phase(2.0, 0.1, 5)
UPDATE = "ab" * 32
forked = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


@pytest.fixture(scope="module", autouse=True)
def _accountant_is_loaded():
    """Once, so that forked processes share it."""
    epsilon(2.0, 0.1, 5, 1e-5, accountant="rdp")


@pytest.fixture
def ledger(tmp_path):
    return PrivacyLedger.create(tmp_path / "ledger", TERMS)


def train_round(ledger, number, phase=STEP):
    booked = ledger.reserve(run="study", round_number=number, phase=phase)
    ledger.commit(booked, update_sha256=UPDATE)
    return booked


def test_epsilon_composes_over_rounds_runs_and_restarts(ledger):
    train_round(ledger, 1)
    booked = PrivacyLedger(ledger.folder).reserve(run="other study", round_number=1, phase=Phase(3.0, 0.2, 7))
    PrivacyLedger(ledger.folder).commit(booked, update_sha256=UPDATE)
    account = PrivacyLedger(ledger.folder).account()
    assert account.phases == (STEP, Phase(3.0, 0.2, 7))
    assert account.epsilon == account.recompute() > epsilon(2.0, 0.1, 5, 1e-5, accountant="rdp")


def test_a_reservation_counts_in_full_until_it_is_committed(ledger):
    booked = ledger.reserve(run="study", round_number=1, phase=Phase(2.0, 0.1, 50))
    assert ledger.account().left_open == (booked,)
    before = ledger.account().epsilon
    ledger.commit(booked, update_sha256=UPDATE, steps=10)
    after = ledger.account()
    assert not after.left_open
    assert after.epsilon == epsilon(2.0, 0.1, 10, 1e-5, accountant="rdp") < before


def test_the_round_that_would_pass_the_budget_is_refused_and_leaves_no_trace(ledger):
    phase, done = Phase(1.2, 0.1, 20), 0
    while ledger.account().recompute(phase) <= 3.0:
        ledger.reserve(run="study", round_number=done, phase=phase)
        done += 1
    with pytest.raises(BudgetExhausted, match="Klinik Nord"):
        ledger.reserve(run="study", round_number=done, phase=phase)
    account = ledger.account()
    assert len(account.reservations) == done
    assert account.epsilon <= 3.0 < account.recompute(Phase(1.2, 0.1, 20))
    assert verify(ledger.folder, recompute=True)


def test_what_is_left_of_the_budget_is_told_in_steps(ledger):
    steps = ledger.affordable_steps(1.2, 0.1, wanted=10_000)
    assert 0 < steps < 10_000
    ledger.reserve(run="study", round_number=1, phase=Phase(1.2, 0.1, steps))
    assert ledger.affordable_steps(1.2, 0.1, wanted=10) == 0
    assert ledger.affordable_steps(50.0, 0.001, wanted=1) in (0, 1)


def test_a_plan_solved_for_the_whole_budget_fits_round_by_round(tmp_path):
    from fedvox_federation.privacy import noise_multiplier

    terms = Terms(site="A", dataset="d", epsilon=3.0, delta=1e-5)
    ledger = PrivacyLedger.create(tmp_path / "plan", terms)
    noise = noise_multiplier(3.0, 1e-5, 0.1, 12)
    for number in range(4):
        train_round(ledger, number, Phase(noise, 0.1, 3))
    with pytest.raises(BudgetExhausted):
        ledger.reserve(run="study", round_number=5, phase=Phase(noise, 0.1, 3))


def test_a_repeated_commit_changes_nothing_and_another_update_is_refused(ledger):
    booked = train_round(ledger, 1)
    size = (ledger.folder / LEDGER_FILE).stat().st_size
    ledger.commit(booked, update_sha256=UPDATE)
    assert (ledger.folder / LEDGER_FILE).stat().st_size == size
    with pytest.raises(PrivacyError, match="another update"):
        ledger.commit(booked, update_sha256="cd" * 32)


def test_a_replayed_round_is_recognised_so_that_its_cached_reply_costs_nothing(ledger):
    booked = train_round(ledger, 1)
    ledger.reserve(run="study", round_number=2, phase=STEP)
    assert ledger.committed("study", 1).id == booked.id
    assert ledger.committed("study", 2) is None
    assert ledger.committed("other", 1) is None


@pytest.mark.parametrize("phase", [Phase(0.0, 0.1, 5), Phase(1.0, 0.1, 0)])
def test_what_cannot_be_accounted_for_is_refused(ledger, phase):
    with pytest.raises(PrivacyError):
        ledger.reserve(run="study", round_number=1, phase=phase)


def test_commits_that_cannot_be_are_refused(ledger):
    booked = ledger.reserve(run="study", round_number=1, phase=STEP)
    for arguments in ({"steps": 6}, {"steps": -1}, {"update_sha256": "x"}):
        with pytest.raises(PrivacyError):
            ledger.commit(booked, **{"update_sha256": UPDATE, **arguments})
    other = PrivacyLedger.create(ledger.folder.parent / "other", TERMS)
    with pytest.raises(PrivacyError, match="is not in"):
        other.commit(booked, update_sha256=UPDATE)


def test_terms_are_fixed_when_the_ledger_is_opened(ledger):
    assert PrivacyLedger.open_or_create(ledger.folder, TERMS).account().terms == TERMS
    for change in ({"epsilon": 8.0}, {"delta": 1e-3}, {"dataset": "sha256:def"}, {"site": "Klinik Süd"}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            PrivacyLedger.open_or_create(ledger.folder, Terms(**{**vars(TERMS), **change}))
    with pytest.raises(StorageError, match="already"):
        PrivacyLedger.create(ledger.folder, TERMS)


def test_a_missing_ledger_is_never_a_fresh_one(tmp_path):
    with pytest.raises(StorageError, match="holds no privacy ledger"):
        PrivacyLedger(tmp_path)


@pytest.mark.parametrize("accountant", ["gdp", "moments"])
def test_a_ledger_by_an_unsound_accountant_is_not_opened(accountant):
    with pytest.raises(PrivacyError):
        Terms(site="A", dataset="d", epsilon=1, delta=1e-5, accountant=accountant)


# ---- hands -------------------------------------------------------------------------------------------------


@pytest.fixture
def written(ledger):
    """A ledger of two rounds (five lines)."""
    train_round(ledger, 1)
    train_round(ledger, 2)
    return ledger


def test_no_byte_can_be_changed_unnoticed(written):
    path = written.folder / LEDGER_FILE
    data = path.read_bytes()
    for position in range(0, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(LedgerDamaged):
            PrivacyLedger(written.folder)


def test_nothing_can_be_cut_off_unnoticed(written):
    path = written.folder / LEDGER_FILE
    data = path.read_bytes()
    for length in (*range(0, len(data), 7), len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(LedgerDamaged):
            PrivacyLedger(written.folder)
    path.unlink()
    with pytest.raises(LedgerDamaged):
        PrivacyLedger(written.folder)


@pytest.mark.parametrize("line", range(5))
def test_no_line_can_be_removed_doubled_or_moved(written, line):
    path = written.folder / LEDGER_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    rest = lines[:line] + lines[line + 1 :]
    for changed in (rest, [*lines[:line], lines[line], *lines[line:]], [*rest, lines[line]]):
        if changed != lines and changed[: len(lines)] != lines:
            path.write_bytes(b"".join(changed))
            with pytest.raises(LedgerDamaged):
                PrivacyLedger(written.folder)


def test_a_missing_or_unreadable_head_is_not_taken_for_a_fresh_start(written):
    head = written.folder / HEAD_FILE
    head.write_bytes(b'{"n":"many"}')
    with pytest.raises(LedgerDamaged):
        PrivacyLedger(written.folder)
    head.unlink()
    with pytest.raises(LedgerDamaged, match="missing"):
        PrivacyLedger(written.folder)
    with pytest.raises(StorageError):
        PrivacyLedger.create(written.folder, TERMS)


def test_an_old_copy_of_the_whole_folder_is_shown_by_a_head_kept_elsewhere(ledger, tmp_path):
    shutil.copytree(ledger.folder, tmp_path / "copy")
    train_round(ledger, 1)
    noted = verify(ledger.folder).head
    shutil.rmtree(ledger.folder)
    shutil.copytree(tmp_path / "copy", ledger.folder)
    assert verify(ledger.folder)
    with pytest.raises(LedgerDamaged, match="older copy"):
        verify(ledger.folder, contains=noted)


def test_a_recomputed_chain_with_a_prettier_epsilon_is_found(written):
    """Whoever rewrites all hashes still cannot make the numbers fit."""
    seen = chain.read(written.folder)
    body = {**seen.entries[1].body, "reservation": "ff" * 16, "epsilon": 0.01}
    assert chain.append(written.folder, seen, "reserved", body)
    assert verify(written.folder)
    with pytest.raises(LedgerDamaged, match="computed again"):
        verify(written.folder, recompute=True)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("opened", {"site": "B", "dataset": "d", "epsilon": 99, "delta": 1e-5}),
        ("refunded", {}),
        ("committed", {"reservation": "none", "steps": 1, "update_sha256": UPDATE, "epsilon": 0}),
        ("reserved", {"reservation": "x", "run": "r", "round": 1, "epsilon": 0}),
    ],
)
def test_entries_that_make_no_sense_stop_everything(written, kind, body):
    assert chain.append(written.folder, chain.read(written.folder), kind, body)
    with pytest.raises(LedgerDamaged, match="makes no sense"):
        PrivacyLedger(written.folder)


# ---- crashes -----------------------------------------------------------------------------------------------


def test_a_write_torn_at_any_byte_is_declared_and_counts_nothing(written):
    path, head = written.folder / LEDGER_FILE, written.folder / HEAD_FILE
    data, head_before = path.read_bytes(), head.read_bytes()
    booked = written.reserve(run="study", round_number=3, phase=STEP)
    line = path.read_bytes()[len(data) :]
    for length in (*range(0, len(line), 17), len(line) - 2, len(line) - 1):
        path.write_bytes(data + line[:length])
        head.write_bytes(head_before)
        assert booked.id not in PrivacyLedger(written.folder).account().reservations
        train_round(PrivacyLedger(written.folder), 3)
        account = PrivacyLedger(written.folder).account()
        assert [one.round_number for one in account.reservations.values()] == [1, 2, 3]
        assert path.read_bytes().startswith(data + line[:length])  # not even a torn line is removed
        assert len(verify(written.folder).entries) == 7 + (length > 0)


def test_a_recovery_torn_itself_is_recovered(written):
    path, head = written.folder / LEDGER_FILE, written.folder / HEAD_FILE
    head_before = head.read_bytes()
    data = path.read_bytes() + b'{"at":"20'
    path.write_bytes(data)
    train_round(written, 3)
    mark, recovery = path.read_bytes()[len(data) :].split(b"\n")[:2]
    for length in (*range(0, len(recovery), 13), len(recovery) - 1, len(recovery)):
        path.write_bytes(data + mark + b"\n" + recovery[:length])
        head.write_bytes(head_before)
        train_round(PrivacyLedger(written.folder), 3)
        assert len(PrivacyLedger(written.folder).account().reservations) == 3


def test_a_whole_line_that_the_head_does_not_know_yet_counts(written):
    head = written.folder / HEAD_FILE
    before = head.read_bytes()
    booked = written.reserve(run="study", round_number=3, phase=STEP)
    head.write_bytes(before)
    assert booked.id in PrivacyLedger(written.folder).account().reservations
    train_round(written, 4)
    assert verify(written.folder)


def test_blocks_of_zeros_after_a_power_cut_are_a_torn_write(written):
    with (written.folder / LEDGER_FILE).open("ab") as file:
        file.write(b"\0" * 4096)
    train_round(written, 3)
    assert len(PrivacyLedger(written.folder).account().reservations) == 3


def test_a_full_disk_refuses_the_round_and_leaves_a_usable_ledger(written, monkeypatch):
    real = os.write

    def full_after_half(handle, data):
        if len(data) < 200:
            return real(handle, data)
        real(handle, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_after_half)
        with pytest.raises(StorageError, match="No space left"):
            written.reserve(run="study", round_number=3, phase=STEP)
    train_round(written, 3)
    assert len(verify(written.folder).entries) == 8


def killed_at(call, work):
    """Runs `work` in a fork that kills itself at its `call`-th system call on files; tells whether it got there."""
    child = os.fork()
    if child == 0:
        count = 0

        def trap(real):
            def trapped(*arguments, **options):
                nonlocal count
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return trapped

        for name in ("write", "fsync", "open", "close", "replace", "rename"):
            setattr(os, name, trap(getattr(os, name)))
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@forked
@pytest.mark.parametrize("torn", [False, True])
def test_kill_minus_nine_at_every_system_call_never_loses_what_was_acknowledged(tmp_path, torn):
    call, killed = 0, True
    while killed:
        call += 1
        folder = tmp_path / str(call)
        ledger = PrivacyLedger.create(folder, TERMS)
        train_round(ledger, 1)
        if torn:
            with (folder / LEDGER_FILE).open("ab") as file:
                file.write(b'{"half')
        said = tmp_path / f"{call}.said"

        def work(ledger=ledger, said=said):
            booked = ledger.reserve(run="study", round_number=2, phase=STEP)
            said.write_text("reserved")
            ledger.commit(booked, update_sha256=UPDATE)
            said.write_text("committed")

        killed = killed_at(call, work)
        after = PrivacyLedger(folder).account()
        rounds = {one.round_number: one for one in after.reservations.values()}
        assert rounds[1].committed_steps == STEP.steps
        if said.exists():
            assert 2 in rounds
        if said.exists() and said.read_text() == "committed":
            assert rounds[2].committed_steps == STEP.steps
        assert after.epsilon == after.recompute()
        train_round(PrivacyLedger(folder), 3)
        assert verify(folder, recompute=True)
    assert call > 15


@forked
def test_kill_minus_nine_while_a_ledger_is_created_leaves_none_or_a_whole_one(tmp_path):
    call, killed = 0, True
    while killed:
        call += 1
        folder = tmp_path / str(call)
        killed = killed_at(call, lambda folder=folder: PrivacyLedger.create(folder, TERMS))
        train_round(PrivacyLedger.open_or_create(folder, TERMS), 1)
        assert verify(folder)
    assert call > 5


CLINIC = """
import sys
from fedvox_federation.privacy import Phase
from fedvox_federation.privacy.ledger import PrivacyLedger
ledger = PrivacyLedger(sys.argv[1])
for number in range(100000):
    booked = ledger.reserve(run=sys.argv[2], round_number=number, phase=Phase(40.0, 0.01, 1))
    print("reserved", booked.id, flush=True)
    ledger.commit(booked, update_sha256="ab" * 32)
    print("committed", booked.id, flush=True)
"""


@pytest.mark.slow
def test_real_processes_killed_at_random_moments_lose_nothing(tmp_path):
    ledger = PrivacyLedger.create(tmp_path / "ledger", TERMS)
    reserved, committed = set(), set()
    for run in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", CLINIC, str(ledger.folder), f"run {run}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        first = process.stdout.readline()
        time.sleep(0.05 + 0.037 * run)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for line in [first, *process.stdout.read().splitlines(keepends=True)]:
            if line.endswith("\n"):
                word, name = line.split()
                (reserved if word == "reserved" else committed).add(name)
        process.stdout.close()
    account = PrivacyLedger(ledger.folder).account()
    assert len(reserved) > 3
    assert reserved <= set(account.reservations)
    assert all(account.reservations[name].committed_steps == 1 for name in committed)
    assert account.epsilon == account.recompute()
    assert verify(ledger.folder)


def spend_until_refused(folder):
    ledger = PrivacyLedger(folder)
    with contextlib.suppress(BudgetExhausted):
        for number in range(1000):
            booked = ledger.reserve(run=str(os.getpid()), round_number=number, phase=Phase(1.2, 0.1, 8))
            ledger.commit(booked, update_sha256=UPDATE)


@forked
def test_processes_side_by_side_share_one_budget_and_pass_it_together_never(tmp_path):
    ledger = PrivacyLedger.create(tmp_path / "ledger", TERMS)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=spend_until_refused, args=(ledger.folder,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    account = ledger.account()
    assert account.recompute() <= 3.0 < account.recompute(Phase(1.2, 0.1, 8))
    assert not account.left_open
    assert verify(ledger.folder)


# ---- the command -------------------------------------------------------------------------------------------


def test_show_tells_terms_rounds_and_what_is_left(written, federation_command):
    written.reserve(run="study", round_number=3, phase=STEP)
    shown = federation_command("ledger", "show", written.folder, "--json").json
    assert shown["terms"]["unit"] == "patient"
    assert shown["epsilon"] + shown["epsilon_left"] == pytest.approx(3.0)
    assert [one["state"] for one in shown["rounds"]] == ["committed", "committed", "open"]
    text = federation_command("ledger", "show", written.folder).out
    assert "Klinik Nord" in text
    assert "open, counts in full" in text


def test_verify_leaves_with_zero_six_or_two(written, federation_command):
    done = federation_command("ledger", "verify", written.folder, "--recompute", "--json")
    assert done.code == 0
    assert done.json == {
        "entries": 5, "head": chain.read(written.folder).head, "interrupted_writes": 0, "intact": True,
    }  # fmt: skip
    assert federation_command("ledger", "verify", written.folder, "--contains", "0" * 64).code == 6
    path = written.folder / LEDGER_FILE
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":7'))
    damaged = federation_command("ledger", "verify", written.folder)
    assert damaged.code == 6
    assert "entry 2 was changed" in damaged.err
    assert "Do not train" in damaged.err
    assert federation_command("ledger", "verify", written.folder / "nowhere").code == 2


def test_reading_a_ledger_imports_neither_torch_nor_opacus(written):
    code = (
        "import sys; from fedvox_federation.privacy.ledger import PrivacyLedger, verify;"
        f"PrivacyLedger({str(written.folder)!r}).account(); verify({str(written.folder)!r});"
        "print([m for m in ('torch', 'numpy', 'opacus') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_file_is_json_lines_that_people_can_read(written):
    lines = (written.folder / LEDGER_FILE).read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == [
        "opened", "reserved", "committed", "reserved", "committed",
    ]  # fmt: skip


def test_who_comes_second_to_a_new_ledger_opens_the_firsts(tmp_path, monkeypatch):
    """Two SuperNodes of one clinic that start in the same moment both see no ledger."""
    terms = Terms("Klinik Nord", "sha256:1", 3.0, 1e-5)
    first = PrivacyLedger.create(tmp_path, terms)
    real, answers = chain.exists, iter([False])
    monkeypatch.setattr(chain, "exists", lambda folder: next(answers, real(folder)))
    second = PrivacyLedger.open_or_create(tmp_path, terms)
    assert second.account() == first.account()
