"""docs/federation.md says what is so."""

import re
from pathlib import Path

import pytest
import yaml

from fedvox_federation.config import ClinicConfig, FederationConfig
from fedvox_federation.privacy.noise_policy import Promise, Standing, Workload, build_policy, site_noise
from fedvox_federation.protocol import Refusal

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "federation.md").read_text(encoding="utf-8")


def test_the_noise_in_the_page_is_the_policys():
    rows = re.findall(r"^hospital_\d+ +\S+ +(\d) +\d+ +\d+ +([\d.]+) +([\d.]+) +([\d.]+)", PAGE, re.M)
    assert len(rows) == 3
    for tier, rate, noise, epsilon in rows:
        standing = Standing(0.5, int(tier), True, True)
        found = site_noise(build_policy("tiers"), standing, Promise(8.0, 1e-3), Workload(float(rate), 30))
        assert float(noise) == pytest.approx(found.noise_multiplier, abs=5e-4)
        assert float(epsilon) == pytest.approx(found.epsilon, rel=5e-3)


def test_every_code_that_may_leave_a_hospital_is_named():
    assert not [code for code in Refusal if f"`{code}`" not in PAGE]


def test_the_hospitals_file_in_the_page_is_valid():
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    own = ClinicConfig(**yaml.safe_load(block))
    assert not own.share_scores


def test_overrides_in_the_page_are_fields():
    from fedvox.config import load_config

    given = [pair for text in re.findall(r'--run-config "([^"]+)"', PAGE) for pair in text.split()]
    ours = [pair for pair in given if not pair.startswith("num-server-rounds")]
    assert ours
    load_config(FederationConfig, None, ours)


def test_commands_in_the_page_exist_with_their_options(federation_command):
    commands = re.findall(r"^\$ fedvox-federation ((?:bundle )?[a-z-]+)((?:.*\\\n)*.*)", PAGE, re.M)
    assert len(commands) >= 5
    for command, rest in commands:
        told = federation_command(*command.split(), "--help").out
        unknown = [option for option in re.findall(r" (--[a-z-]+)", rest) if option not in told]
        assert unknown in ([], ["--superlink", "--root-certificates", "--auth-supernode-private-key"])
