"""The command line where things are not as they should be: foreign letters, missing rights, options nobody meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from fedvox_compliance import cli, evidence, locking
from fedvox_compliance.assessment import Answer
from fedvox_compliance.workspace import Workspace

NewSpace = Callable[..., Workspace]


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("FEDVOX_AUTHOR", "A. Meyer")
    monkeypatch.setenv("FEDVOX_KEY_PASSPHRASE", "four unrelated words here")

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "Error of the program itself" not in err
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return call


def process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "fedvox_compliance", *map(str, arguments)]
    given = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONUTF8", "PYTHONIOENCODING", "LC_ALL", "LANG")
    }
    return subprocess.run(command, capture_output=True, env=given | environment)


def leaves() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name."""

    def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for part, inner in command.commands.items():
                yield from walk(f"{name} {part}", inner)
        else:
            yield name, command

    root: Any = typer.main.get_command(cli.app)
    for name in cli.COMMANDS:
        yield from walk(name, root.get_command(click.Context(root), name))


# ------------------------------------------------------------------------------------------------------ every command


def test_every_command_takes_no_input_explains_its_arguments_and_shows_an_example() -> None:
    found = dict(leaves())
    assert len(found) >= 40
    for name, command in found.items():
        text = command.get_help(click.Context(command, info_name=name))
        assert any("--no-input" in p.opts for p in command.params), name
        assert f"fedvox-compliance {name}" in " ".join(text.split()), name
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)
            if isinstance(parameter, click.Argument):
                assert text.count(" ".join(parameter.help.split())[:25]) == 1, (name, parameter.name)  # type: ignore[attr-defined]
        assert "\\[" not in text, name
        assert not set(text) & set("╭│╰"), name


def test_every_command_that_has_a_result_gives_it_as_json() -> None:
    people_only = {
        "serve",
        "report",
        "assess check",
    }  # a page, a file whose --format may be json, a conversation
    for name, command in leaves():
        assert any("--json" in p.opts for p in command.params) != (name in people_only), name


@pytest.mark.parametrize(
    "words", [["score"], ["nonsense"], ["score", "x", "--thresold", "1"], ["gaps", "x", "--limit", "-1"]]
)
def test_wrong_use_is_told_as_json_too(run: Any, words: list[str]) -> None:
    code, out, err = run(*words, "--json")
    told = json.loads(out)
    assert code == 2
    assert told["exit_code"] == 2
    assert told["schema"] == "fedvox.error/1"
    assert told["message"]
    assert "Error: " in err


# ----------------------------------------------------------------------------------------------------- foreign letters


@pytest.mark.integration
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_lacks_letters_gets_them_spelled(new_space: NewSpace, encoding: str) -> None:
    space = new_space(clinic="Szpital Łódź – Ωμέγα", author="Zofia Świątek")
    space.answer("GDPR.32.1.a", Answer.PARTLY, author="Zofia Świątek", reason="„fehlt“ → später")
    shown = process("show", space.folder, "GDPR.32.1.a", "-l", "de", PYTHONIOENCODING=encoding)
    text = shown.stdout.decode(encoding)
    assert shown.returncode == 0, shown.stderr
    assert "Zofia Swiatek" in text
    assert ("Verschluesselung" if encoding == "ascii" else "Verschlüsselung") in text
    scored = process("score", space.folder, "-l", "de", PYTHONIOENCODING=encoding)
    assert scored.returncode == 0
    assert "Szpital L" in scored.stdout.decode(encoding)


@pytest.mark.integration
def test_json_and_sheets_hold_all_letters_whatever_the_terminal_can(new_space: NewSpace) -> None:
    space = new_space(clinic="Szpital Łódź – Ωμέγα")
    plain, rich = (
        process("score", space.folder, "--json", PYTHONIOENCODING=e).stdout.decode(e)
        for e in ("ascii", "utf-8")
    )
    assert json.loads(plain) == json.loads(rich)
    assert json.loads(plain)["clinic"] == "Szpital Łódź – Ωμέγα"
    sheets = [process("export", space.folder, "-", PYTHONIOENCODING=e).stdout for e in ("ascii", "utf-8")]
    assert sheets[0] == sheets[1]
    assert "Ωμέγα" in sheets[0].decode("utf-8")


@pytest.mark.integration
def test_the_c_locale_is_enough_for_german(new_space: NewSpace) -> None:
    space = new_space()
    for environment in ({"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = process("answer", space.folder, "--no-input", "-l", "de", **environment)
        assert done.returncode == 3, done.stderr


# ------------------------------------------------------------------------------------------------------ missing rights


def test_a_folder_that_cannot_be_written_to_takes_no_change_not_even_in_its_history(
    run: Any, new_space: NewSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_space().folder
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    # Root may write whatever the mode says, so the answer of the system is stood in for.
    monkeypatch.setattr(locking.os, "access", lambda path, mode: mode == os.R_OK)
    code, _, err = run("set", folder, "GDPR.6.1", "yes")
    assert code == 2
    assert "cannot be written to" in err
    assert run("score", folder)[0] == 0  # reading goes on
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_lock_that_cannot_be_had_is_an_error_with_a_remedy(run: Any, new_space: NewSpace) -> None:
    folder = new_space().folder
    (folder / ".lock").unlink()
    (folder / ".lock").mkdir()
    code, _, err = run("set", folder, "GDPR.6.1", "yes")
    assert code == 2
    assert "cannot be locked" in err
    assert "->" in err


def test_a_document_that_cannot_be_read_is_a_finding_and_no_crash(
    run: Any, new_space: NewSpace, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = new_space()
    space.answer("GDPR.35.1", Answer.YES, author="A. Meyer")
    space.add_evidence("GDPR.35.1", document, author="A. Meyer", effective=space.today())

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(evidence, "sha256_of_file", refuse)
    code, out, _ = run("check", space.folder)
    assert code == 2
    assert "cannot be read" in out
    assert "NOT READABLE" in run("evidence", "list", space.folder)[1]


# ------------------------------------------------------------------------------------------- options that nobody meant


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["score", "--threshold", "nan"], "--threshold"),
        (["answer", "--framework", "HIPPA", "--no-input"], "HIPPA"),
        (["answer", "--owner", "Nobody", "--no-input"], "Nobody"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(
    run: Any, new_space: NewSpace, words: list[str], named: str
) -> None:
    code, _, err = run(words[0], new_space().folder, *words[1:])
    assert code == 2
    assert named in err
    assert "->" in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            ["new", "elsewhere", "--clinic", "two\nlines"],
            "clinic: it holds a character that cannot be shown, or a line break",
        ),
        (["new", "elsewhere", "--clinic", ""], "clinic"),
        (["trust", "init", "--store", "new.json", "--key", "root.pem", "--name", "x" * 300], "name"),
        (["assess", "start", "FOLDER", "paper.json", "--nonce", "nonce", "--assessor", ""], "assessor"),
        (
            ["assess", "start", "FOLDER", "paper.json", "--nonce", "nonce", "--assessor", "x" * 300],
            "assessor",
        ),
        (["sensitivity", "FOLDER", "--spread", "nan"], "--spread"),
        (["assign", "FOLDER", "x" * 300, "GDPR.6.1"], "owner"),
    ],
)
def test_names_that_no_record_can_hold_are_refused_by_field(
    run: Any,
    new_space: NewSpace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    named: str,
) -> None:
    space = new_space()
    space.answer("GDPR.6.1", Answer.YES, author="A. Meyer")
    monkeypatch.chdir(tmp_path)
    assert run("assess", "commit", "nonce")[0] == run("keygen", "root.pem")[0] == 0
    before = sorted(p.name for p in tmp_path.iterdir())
    code, _, err = run(*[str(space.folder) if w == "FOLDER" else w for w in words])
    assert code == 2
    assert named in err
    assert "->" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_conflict_is_not_decided_by_a_mistyped_id(run: Any, new_space: NewSpace, tmp_path: Path) -> None:
    folder = new_space().folder
    assert run("export", folder, tmp_path / "all.csv")[0] == 0
    code, _, err = run("import", folder, tmp_path / "all.csv", "--take", "GDPR.6.l=theirs")
    assert code == 2
    assert "GDPR.6.l" in err
    assert run("import", folder, tmp_path / "all.csv", "--take", "GDPR.6.1=theirs")[0] == 0


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [("--until", "2020-01-01", "--until"), ("--name", "", "name"), ("--role", "boss", "boss")],
)
def test_a_key_is_trusted_only_under_sensible_terms(
    run: Any, tmp_path: Path, option: str, value: str, named: str
) -> None:
    root, key, store = tmp_path / "root.pem", tmp_path / "a.pem", tmp_path / "trust.json"
    assert run("keygen", root)[0] == run("keygen", key)[0] == 0
    code, out, _ = run("trust", "init", "--store", store, "--key", root, "--json")
    assert (code, json.loads(out)["sequence"]) == (0, 1)
    given = {"--name": "Dr. A", "--until": "2099-12-31"} | {option: value}
    words = [w for pair in given.items() for w in pair]
    code, _, err = run(
        "trust", "add", f"{key}.pub", "--store", store, "--root", f"{root}.pub", "--key", root, *words
    )
    assert code == 2
    assert named in err
    assert (
        json.loads(run("trust", "show", "--store", store, "--root", f"{root}.pub", "--json")[1])["sequence"]
        == 1
    )
