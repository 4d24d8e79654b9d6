"""The walk through the questionnaire works as written: every command in it is run, in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fedvox_compliance.cli import COMMANDS
from fedvox_compliance.judgement import ANSWER_VALUE, ASSURANCE_FACTOR
from fedvox_compliance.score_report import TIER_ABOVE
from fedvox_compliance.scoring import GATE_CAP
from fedvox_compliance.workspace import Workspace

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "compliance.md").read_text("utf-8")


def commands() -> list[tuple[list[str], int]]:
    """The commands of the page with the exit codes that it promises."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.S):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.startswith("$ "):
                command, _, remark = line[2:].partition(" #")
                promised = re.search(r"leaves with (\d+)", remark)
                found.append((shlex.split(command), int(promised[1]) if promised else 0))
    return found


@pytest.mark.integration
def test_every_command_of_the_walk_through_does_what_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "concept.pdf").write_bytes(b"%PDF-1.7 concept")
    environment, ran = dict(os.environ), 0
    for command, promised in commands():
        if command[0] == "export":
            name, _, value = command[1].partition("=")
            environment[name] = value
        elif command[0] == "fedvox-compliance":
            done = subprocess.run(
                [sys.executable, "-m", "fedvox_compliance", *command[1:]],
                cwd=tmp_path,
                env=environment,
                input="2\nq\n",
                capture_output=True,
                text=True,
            )
            assert done.returncode == promised, (command, done.stderr)
            ran += 1
        elif command[0] == "cp":
            subprocess.run(command, cwd=tmp_path, check=True)
        else:
            assert command[:2] == ["pip", "install"]
    assert ran > 20


@pytest.mark.integration
def test_library_example_runs_and_prints_what_it_says(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    new = ["new", "nordstadt", "--clinic", "K", "--author", "A"]
    subprocess.run(
        [sys.executable, "-m", "fedvox_compliance", *new], cwd=tmp_path, check=True, capture_output=True
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "Interval(low=" in done.stdout
    assert done.stdout.count("answer ") == 3


def test_every_command_has_its_functions_on_the_page_and_they_exist() -> None:
    (table,) = re.findall(r"\| command \| from Python \|\n.*?\n\n", TEXT, re.S)
    rows = [
        [re.findall(r"`([\w.-]+)`", cell) for cell in line.split("|")[1:3]]
        for line in table.splitlines()[2:]
        if line
    ]
    assert {name for commands_of, _ in rows for name in commands_of} == set(COMMANDS)
    for _, functions in rows:
        assert functions
        for name in functions:
            module, _, attribute = name.rpartition(".")
            if not module or module.endswith(".Workspace"):  # a method of the class named before
                assert callable(getattr(Workspace, attribute)), name
            else:
                assert callable(getattr(import_module(f"fedvox_compliance.{module}"), attribute)), name


def test_numbers_on_the_score_page_are_those_of_the_code() -> None:
    text = (DOCS / "compliance_score.md").read_text("utf-8")
    for answer, value in ANSWER_VALUE.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {answer.value}"))
        assert f"| {value:g} |" in row
    for word, factor in zip(
        ("claim", "a current document", "read by", "verified by"), ASSURANCE_FACTOR[1:], strict=True
    ):
        assert re.search(rf"\| {word}[^|]*\| {factor:g} \|", text), word
    for tier, bound in enumerate(TIER_ABOVE, start=1):
        assert re.search(rf"(tier )?{tier}\s+above\s+{bound:.2f}", text)
    assert f"at most {GATE_CAP:.2f}" in text


@pytest.mark.parametrize("page", ["compliance.md", "compliance_score.md"])
def test_links_and_pictures_exist_and_the_page_denies_being_advice(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (DOCS / target).exists(), target
    assert not re.search(r"\{\{", text)
