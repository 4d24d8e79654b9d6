"""The page on privacy cannot rot: its commands print what it says, its tables hold, its code runs."""

import re
import shlex
from pathlib import Path

import pytest

from fedvox_federation.privacy.ledger import PrivacyLedger
from fedvox_federation.privacy.noise_policy import (
    POLICIES,
    Promise,
    Standing,
    Workload,
    build_policy,
    site_noise,
)

PAGE = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")


def test_every_command_prints_what_the_page_says(federation_command):
    steps = [
        step for block in re.findall(r"```console\n(.*?)```", PAGE, re.S) for step in block.split("$ ")[1:]
    ]
    assert len(steps) == 4
    for step in steps:
        command, expected = step.split("\n", 1)
        assert federation_command(*shlex.split(command)[1:]).out == expected.rstrip("\n") + "\n"


@pytest.mark.parametrize("name", ["tiers", "epsilon"])
def test_the_table_of_noise_is_computed(name):
    row = re.search(rf"\| `{name}`.*?\|.*?\|(.*)\|\n", PAGE).group(1)
    for tier, cell in enumerate(row.split("|")):
        noise, spent = (float(text) for text in re.findall(r"[\d.]+", cell))
        found = site_noise(
            build_policy(name), Standing(0.5, tier, True, True), Promise(8.0, 1e-3), Workload(0.1, 200)
        )
        assert found.noise_multiplier == pytest.approx(noise, abs=0.006)
        assert found.epsilon == pytest.approx(spent, abs=0.06)


def test_every_policy_is_on_the_page():
    assert [name for name in POLICIES if f"`{name}`" not in PAGE] == []


def test_the_ledgers_example_runs(tmp_path):
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "PrivacyLedger" in block)
    exec(code, {"folder": tmp_path / "ledger"})
    assert len(PrivacyLedger(tmp_path / "ledger").account().reservations) == 1


def test_the_trainings_example_runs():
    import torch

    from fedvox.models.registry import build_model

    model = build_model("mednext-v2-nano", in_channels=1, classes=2, deep_supervision=False)

    def loss(net, tensors):
        return net(tensors[0]).square().flatten(1).mean(1).mean()

    code = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "PrivateTrainer" in block
    )
    patients = [lambda: (torch.randn(1, 1, 16, 16, 16),)] * 4
    exec(
        code.replace("steps=20", "steps=1"),
        {"torch": torch, "model": model, "loss": loss, "patients": patients,
         "made_up_images": (torch.randn(2, 1, 16, 16, 16),)},
    )  # fmt: skip


def test_the_preflight_on_the_page_passes(federation_command):
    command = re.search(r"`fedvox-federation (dp-preflight .*?)`", PAGE).group(1)
    assert federation_command(*shlex.split(command)).code == 0
