"""docs/security.md: every test that it names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))


def test_every_defence_names_a_test_that_exists():
    assert len(NAMED) > 40
    for path, function in NAMED:
        assert (ROOT / path).is_file(), path
        if function:
            defined = {
                n.name
                for n in ast.walk(ast.parse((ROOT / path).read_text()))
                if isinstance(n, ast.FunctionDef)
            }
            assert function in defined, f"{path}::{function}"


def test_every_attack_has_a_defence_and_a_test():
    tables = PAGE.split("| attack | what happens | shown by |\n|---|---|---|\n")[1:]
    rows = [row for table in tables for row in table.split("\n\n")[0].splitlines()]
    assert len(rows) > 25
    assert [row for row in rows if "`tests/" not in row.split(" | ")[-1]] == []


def test_what_is_not_defended_is_said_for_each_of_them():
    assert PAGE.count("**Not defended.**") == 4
