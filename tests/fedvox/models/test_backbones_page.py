"""The examples of docs/backbones.md run as they are printed."""

import re
from pathlib import Path

import pytest

from fedvox.models.registry import list_models

PAGE = Path(__file__).parents[3] / "docs" / "backbones.md"


def test_all_examples_run_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    printed = capsys.readouterr().out
    assert "(4, 8, 8)" in printed
    assert "3 structures by name; new: tumor" in printed


def test_every_model_but_those_for_tests_is_on_the_page() -> None:
    lines = PAGE.read_text().split("## ")[0].splitlines()
    named = set()
    for line in (line for line in lines if line.startswith("| `")):
        names = re.findall(r"`([\w-]+)`", line.split("|")[1])
        named |= {name if not name.startswith("-") else names[0].rsplit("-", 1)[0] + name for name in names}
    assert set(list_models()) - named == {"mednext-v2-nano"}
