"""The assessor's, coordinator's and server's commands, from key to refusal, as people type them."""

from __future__ import annotations

import datetime as dt
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedvox_compliance.assessment import Answer, Entry, Evidence
from fedvox_compliance.cli import main
from fedvox_compliance.evidence import copy_into_folder
from fedvox_compliance.keys import PASSPHRASE_VARIABLE
from fedvox_compliance.workspace import Workspace

Run = Callable[..., SimpleNamespace]
PAGE = Path(__file__).parents[3] / "docs" / "attestation.md"
STUDY, CLINIC = "MAMA-MIA 2027", "Klinikum Nordstadt"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in an empty folder: exit code, stdout and stderr."""
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse battery staple")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, typed: str = "") -> SimpleNamespace:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=left.value.code, out=out, err=err)

    return call


@pytest.fixture
def submitted(tmp_path: Path) -> Path:
    """A small clinic (GDPR only), everything yes on one document, as of today."""
    space = Workspace.create(tmp_path / "clinic", clinic=CLINIC, profile="gdpr", author="A. Meyer")
    source = tmp_path / "policy.txt"
    source.write_text("Policy\n")
    path, digest = copy_into_folder(space.folder, source)
    day = space.today()
    entry = Entry(
        answer=Answer.YES,
        author="A. Meyer",
        answered_on=day,
        evidence=(Evidence(path=path, sha256=digest, title="Policy", effective=day),),
    )
    space.apply(dict.fromkeys(space.catalogue.controls, entry), action="import", author="A. Meyer")
    for question in space.catalogue.scope_questions:
        space.state_scope(question, True, author="A. Meyer")
    return space.folder


@pytest.fixture
def coordinator(run: Run, tmp_path: Path) -> list[object]:
    """Root key, assessor key and trust store; returns the options that name them."""
    (tmp_path / "node.pub").write_bytes(node_pem())
    until = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=365)
    assert run("keygen", "root.pem").code == 0
    assert run("keygen", "assessor.pem").code == 0
    assert (
        run("trust", "init", "--store", "trust.json", "--key", "root.pem", "--name", "Study office").code == 0
    )
    options: list[object] = ["--store", "trust.json", "--root", "root.pem.pub"]
    added = run(
        "trust", "add", "assessor.pem.pub", *options, "--key", "root.pem", "--name", "Dr. P", "--until", until
    )
    assert added.code == 0, added.err
    return options


def node_pem(number: int = 7) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public = ec.derive_private_key(number, ec.SECP384R1()).public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def assess_all(run: Run, folder: Path) -> SimpleNamespace:
    assert run("assess", "commit", "nonce").code == 0
    started = run(
        "assess", "start", folder, "paper.json", "--nonce", "nonce", "--assessor", "Dr. P", "--json"
    )
    assert started.code == 0, started.err
    return run("assess", "check", folder, "paper.json", typed="1\n" * 500)


def sign(run: Run, folder: Path, **others: object) -> SimpleNamespace:
    options: dict[str, object] = {
        "--record": "paper.json",
        "--key": "assessor.pem",
        "--study": STUDY,
        "--node-key": "node.pub",
    }
    options |= {f"--{name.replace('_', '-')}": value for name, value in others.items()}
    flat = [item for pair in options.items() for item in pair]
    return run("sign", folder, *flat, "-o", "attestation.json", "--json")


def verify(run: Run, coordinator: list[object], *more: object, **others: object) -> SimpleNamespace:
    options: dict[str, object] = {"--study": STUDY, "--node-key": "node.pub", "--clinic": CLINIC}
    options |= {f"--{name.replace('_', '-')}": value for name, value in others.items()}
    flat = [item for pair in options.items() for item in pair]
    return run("verify", "attestation.json", *coordinator, *flat, "--json", *more)


def test_from_keys_to_a_verified_attestation(run: Run, submitted: Path, coordinator: list[object]) -> None:
    looked = assess_all(run, submitted)
    assert "0 open" in looked.err
    signed = sign(run, submitted)
    assert signed.code == 0, signed.err
    result = json.loads(signed.out)
    checked = verify(run, coordinator)
    assert checked.code == 0, checked.err
    verified = json.loads(checked.out)
    assert (verified["serial"], f"{verified['score']:.4f}") == (result["serial"], result["score"])
    assert verified["assurance"] == result["assurance"] == "document"
    status = json.loads(run("assess", "status", submitted, "paper.json", "--json").out)
    assert int(status["overall"] * 10_000) / 10_000 == verified["score"]


def test_a_study_that_wants_two_signatures_gets_them(
    run: Run, submitted: Path, coordinator: list[object]
) -> None:
    until = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=100)
    assert run("keygen", "second.pem").code == 0
    two = ["--store", "two.json", "--root", "root.pem.pub"]
    assert run("trust", "init", "--store", "two.json", "--key", "root.pem", "--signatures", 2).code == 0
    for key, name, role in (("assessor", "Dr. P", "assessor"), ("second", "Q", "reviewer")):
        options = ["--key", "root.pem", "--name", name, "--until", until, "--role", role]
        assert run("trust", "add", f"{key}.pem.pub", *two, *options).code == 0
    assess_all(run, submitted)
    sign(run, submitted)
    assert "too few signatures" in verify(run, two).err
    added = run("assess", "countersign", submitted, "paper.json", "attestation.json", "--key", "second.pem")
    assert added.code == 0, added.err
    assert verify(run, two).code == 0


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"clinic": "Hôpital Sud"}, "other clinic"),
        ({"study": "Another"}, "other study"),
        ({"node_key": "sha256:" + "0" * 64}, "other node key"),
        ({"profile": "hipaa"}, "unknown framework version"),
        ({"min_sequence": 99}, "older than 99"),
    ],
)
def test_refusals_leave_with_six_and_say_why(
    others: dict[str, object], reason: str, run: Run, submitted: Path, coordinator: list[object]
) -> None:
    assess_all(run, submitted)
    sign(run, submitted)
    refused = verify(run, coordinator, **others)
    assert refused.code == 6
    assert reason in json.loads(refused.out)["message"]


def test_an_expired_attestation_leaves_with_seven(
    run: Run, submitted: Path, coordinator: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assess_all(run, submitted)
    sign(run, submitted, valid_days=1)
    later = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=2)
    monkeypatch.setattr("fedvox_compliance.cli_assurance.present", lambda: later)
    assert verify(run, coordinator).code == 7


def test_a_withdrawn_serial_and_a_revoked_key_are_refused(
    run: Run, submitted: Path, coordinator: list[object]
) -> None:
    assess_all(run, submitted)
    serial = json.loads(sign(run, submitted).out)["serial"]
    assert run("revoke", serial, *coordinator, "--key", "root.pem", "--note", "evidence was false").code == 0
    assert "revoked serial" in verify(run, coordinator).err
    key_id = json.loads(run("trust", "show", *coordinator, "--json").out)["keys"][0]["public_key"]
    assert key_id
    listed = run("trust", "show", *coordinator).out.splitlines()[1].split()[0]
    assert run("trust", "revoke-key", listed, *coordinator, "--key", "root.pem", "--compromised").code == 0
    assert "revoked key" in verify(run, coordinator).err
    shown = run("trust", "show", *coordinator).out
    assert "compromised" in shown
    assert serial in shown


def test_a_successor_signs_after_the_old_key_vouched_for_it(
    run: Run, submitted: Path, coordinator: list[object]
) -> None:
    until = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=100)
    assert run("keygen", "new.pem").code == 0
    assert run("trust", "endorse", "new.pem.pub", "--key", "assessor.pem", "-o", "word.json").code == 0
    rotated = run("trust", "rotate", "word.json", *coordinator, "--key", "root.pem", "--until", until)
    assert rotated.code == 0, rotated.err
    assess_all(run, submitted)
    assert sign(run, submitted, key="new.pem").code == 0
    assert verify(run, coordinator).code == 0
    Path("attestation.json").unlink()
    assert sign(run, submitted, key="assessor.pem").code == 0
    assert "revoked key" in verify(run, coordinator).err


def test_the_root_key_can_be_replaced(run: Run, coordinator: list[object]) -> None:
    assert run("keygen", "root2.pem").code == 0
    assert run("trust", "rotate-root", *coordinator, "--key", "root.pem", "--new-key", "root2.pem").code == 0
    assert run("trust", "show", *coordinator).code == 0
    assert run("trust", "show", "--store", "trust.json", "--root", "root2.pem.pub").code == 0
    assert run("trust", "renew", *coordinator, "--key", "root2.pem").code == 0
    assert (
        run("trust", "renew", *coordinator, "--key", "root.pem").code == 0
    )  # signs, but is no longer the root:
    assert run("trust", "show", *coordinator).code == 6


def test_nothing_is_signed_before_everything_was_looked_at(
    run: Run, submitted: Path, coordinator: list[object]
) -> None:
    assert run("assess", "commit", "nonce").code == 0
    run("assess", "start", submitted, "paper.json", "--nonce", "nonce", "--assessor", "Dr. P")
    stopped = run("assess", "check", submitted, "paper.json", typed="1\n1\nq\n")
    assert "2 confirmed" in stopped.err
    assert sign(run, submitted).code == 3
    assert not Path("attestation.json").exists()


def test_a_false_document_is_recorded_with_its_reason_and_blocks_the_signature(
    run: Run, submitted: Path, coordinator: list[object]
) -> None:
    assert run("assess", "commit", "nonce").code == 0
    run("assess", "start", submitted, "paper.json", "--nonce", "nonce", "--assessor", "Dr. P")
    run("assess", "check", submitted, "paper.json", typed="3\nThe signature is copied.\n" + "1\n" * 500)
    blocked = sign(run, submitted)
    assert blocked.code == 6
    assert "found to be false" in blocked.err


def test_single_findings_and_extension_work_without_questions(run: Run, submitted: Path) -> None:
    run("assess", "commit", "nonce")
    run("assess", "start", submitted, "paper.json", "--nonce", "nonce", "--assessor", "Dr. P")
    first = json.loads(run("assess", "status", submitted, "paper.json", "--json").out)
    for control in first["drawn"]:
        done = run(
            "assess", "record", submitted, "paper.json", control, "not_shown", "--note", "Nothing there."
        )
        assert done.code == 0, done.err
    assert "must be extended" in done.err + done.out
    wider = json.loads(run("assess", "extend", submitted, "paper.json", "--json").out)
    assert len(wider["drawn"]) >= 2 * len(first["drawn"])
    assert run("assess", "record", submitted, "paper.json", "GDPR.6.1", "wonderful").code == 2
    assert run("assess", "check", submitted, "paper.json", "--no-input").code == 2


def test_the_python_on_the_page_verifies_what_the_commands_made(
    run: Run, submitted: Path, coordinator: list[object]
) -> None:
    """A federation's server calls the library: the same attestation, the same verdict, the same reasons."""
    assess_all(run, submitted)
    assert sign(run, submitted).code == 0
    told = json.loads(verify(run, coordinator).out)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    code = (
        code.replace("MAMA-MIA 2027", STUDY)
        .replace("Klinikum Nordstadt", CLINIC)
        .replace('"combined"', '"gdpr"')
    )
    names = {"now": dt.datetime.now(dt.UTC), "seen": 1, "node_pem": node_pem()}
    names["envelope"] = Path("attestation.json").read_bytes()
    exec(code, names)
    verified: Any = names["verified"]
    for name in ("serial", "score", "tier", "eligible"):
        assert getattr(verified, name) == told[name]
    assert verified.assurance.label == told["assurance"]
    other: dict[str, Any] = {k: v for k, v in names.items() if k != "verified"} | {"node_pem": node_pem(8)}
    exec(code.replace("...   #", "reason = refusal.reason   #"), other)
    assert other["reason"] == "other node key"


def test_existing_files_are_never_overwritten(run: Run, submitted: Path, coordinator: list[object]) -> None:
    assert run("keygen", "root.pem").code == 2
    assert run("trust", "init", "--store", "trust.json", "--key", "root.pem").code == 2
    assess_all(run, submitted)
    assert run("assess", "commit", "nonce").code == 2
    assert run("assess", "start", submitted, "paper.json", "--nonce", "nonce", "--assessor", "X").code == 2
    assert sign(run, submitted).code == 0
    assert sign(run, submitted).code == 2


def test_a_history_rewritten_since_the_last_attestation_is_noticed(
    run: Run, submitted: Path, coordinator: list[object], tmp_path: Path
) -> None:
    assess_all(run, submitted)
    sign(run, submitted)
    Path("attestation.json").rename("last.json")
    assert sign(run, submitted, previous="last.json").code == 0
    Path("attestation.json").unlink()
    forged = tmp_path / "forged"
    Workspace.create(forged, clinic=CLINIC, profile="gdpr", author="A. Meyer")
    refused = sign(run, forged, previous="last.json")
    assert refused.code == 6
    assert "countersigned" in refused.err


def test_without_a_passphrase_and_without_prompts_nothing_hangs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    asked = run("keygen", "k.pem", "--no-input")
    assert asked.code == 2
    assert PASSPHRASE_VARIABLE in asked.err


def test_reports_are_written_for_their_owner_only(run: Run, submitted: Path) -> None:
    for form, start in [("html", b"<!DOCTYPE html>"), ("pdf", b"%PDF"), ("json", b"{"), ("oscal", b"{")]:
        written = run("report", submitted, "-f", form, "-o", f"r.{form}", "-l", "de")
        assert written.code == 0, written.err
        assert Path(f"r.{form}").read_bytes().lstrip().startswith(start)
        assert Path(f"r.{form}").stat().st_mode & 0o077 == 0
        assert "Nachweisgrad" in written.err  # the caveat stands beside the number here too
    assert run("report", submitted).code == 0
    assert list(Path().glob("clinic-*.html"))


def test_a_difference_is_told_in_words_and_in_json(run: Run, submitted: Path, tmp_path: Path) -> None:
    shutil.copytree(submitted, tmp_path / "before")
    Workspace.open(submitted).answer("GDPR.17.1", Answer.NO, author="A. Meyer")
    told = run("diff", "before", submitted)
    assert told.code == 0, told.err
    assert "GDPR.17.1" in told.out
    assert "Yes -> No" in told.out
    found: dict[str, Any] = json.loads(run("diff", "before", submitted, "--json").out)
    assert [c["control"] for c in found["changes"]] == ["GDPR.17.1"]
    assert run("diff", submitted).code == 2
    assert run("diff", submitted, "--from", "1999-01-01").code == 2
    assert "Nothing changed" in run("diff", "before", "before").out
