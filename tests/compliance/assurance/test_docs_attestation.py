"""The page on attestations cannot rot: commands, reasons, roles, findings and fields are those of the program."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from fedvox_compliance.assessor_record import Finding
from fedvox_compliance.attestation import Reason
from fedvox_compliance.cli import app
from fedvox_compliance.statement import Statement
from fedvox_compliance.trust import Role

PAGE = Path(__file__).parents[3] / "docs" / "attestation.md"


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def commands(page: str) -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", page, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:], comments=True)[1:] for line in lines if line.startswith("$ ")]


def test_every_command_on_the_page_exists_with_its_options(page: str) -> None:
    found = commands(page)
    assert len(found) >= 8
    for words in found:
        command: Any = typer.main.get_command(app)
        context = click.Context(command)
        while hasattr(command, "get_command"):
            name = words.pop(0)
            command = command.get_command(context, name)
            assert command is not None, name
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        assert {w for w in words if w.startswith("-")} <= options, (command.name, words)
        required = {p.opts[0] for p in command.params if p.required and p.opts[0].startswith("--")}
        given = {o for p in command.params for o in p.opts if set(p.opts) & set(words)}
        assert required <= given, (command.name, required - given)


@pytest.mark.parametrize("word", [*Reason, *Role, *(f.value.replace("_", " ") for f in Finding)])
def test_every_reason_role_and_finding_is_explained(word: str, page: str) -> None:
    assert re.search(rf"`{word}`|\| {word} \|", page)


def test_the_example_has_exactly_the_fields_of_a_statement(page: str, federation: Any) -> None:
    shown = json.loads(re.search(r"```json\n(.*?)```", page, re.S).group(1))  # type: ignore[union-attr]
    real = Statement.about(federation.predicate()).model_dump(mode="json", by_alias=True)

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__

    assert shape(shown) == shape(real)


def test_the_pictures_are_there_and_small(page: str) -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert len(pictures) >= 3
    for picture in pictures:
        assert 0 < (PAGE.parent / picture).stat().st_size < 150_000
