"""The server's page names what there is."""

import re
from pathlib import Path

import pytest

from fedvox_federation.config import ServerSection
from fedvox_federation.server.checks import Fault
from fedvox_federation.server.strategies import NOT_OFFERED, OFFERED


@pytest.fixture(scope="module")
def page():
    return (Path(__file__).resolve().parents[3] / "docs" / "federation_server.md").read_text()


def test_every_reason_of_a_refusal_is_in_the_table(page):
    table = page.split("## What is checked")[1].split("`server.largest_update_norm`")[0]
    named = set(
        re.findall(
            r"`([a-z-]+)`", "".join(line.split("|")[1] for line in table.splitlines() if line[:1] == "|")
        )
    )
    assert named == {fault.value for fault in Fault}


def test_every_strategy_is_named_and_what_is_not_offered_has_its_reason(page):
    for name in OFFERED:
        assert f"`{name.lower()}`" in page
    for name in NOT_OFFERED:
        assert name == "DifferentialPrivacy" or f"**{name}" in page


def test_fields_of_the_server_section_that_are_named_exist(page):
    for name in re.findall(r"`server\.([a-z_]+)", page):
        assert name in ServerSection.model_fields
