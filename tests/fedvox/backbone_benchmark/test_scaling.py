"""The configurations of compound scaling: each can be built, and costs what its axes say."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedvox.commands.models import scaled
from fedvox.config import load_config
from fedvox.training.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "jobs" / "configs" / "scaling"
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


@pytest.fixture(scope="module")
def cost():
    """Counts the configurations once."""
    return {name: scaled(load_config(PretrainConfig, path), 1, 3) for name, path in CONFIGS.items()}


def test_every_configuration_is_named_as_its_file(cost):
    assert len(cost) >= 10
    assert {found.name for found in cost.values()} == {name.replace("_", "-") for name in cost}


def test_published_sizes_are_met(cost):
    # With a head at each of the five levels, of (width · 2^level + 1) · 3 numbers; the published counts have one.
    heads = sum((32 * 2**level + 1) * 3 for level in range(1, 5))
    assert cost["mednext_v2_base"].parameters == 61_969_507 + heads
    wide = sum((64 * 2**level + 1) * 3 for level in range(1, 5))
    assert cost["mednext_v2_wide"].parameters == 246_536_387 + wide


def test_depth_and_width_raise_every_cost(cost):
    ladder = [cost[f"mednext_v2_{size}"] for size in ("s", "m", "base", "wide")]
    for smaller, larger in itertools.pairwise(ladder):
        assert larger.parameters > smaller.parameters
        assert larger.tflop_per_patch > smaller.tflop_per_patch


def test_context_multiplies_the_operations_of_convolutions_by_the_volume(cost):
    plain, context = (
        scaled(load_config(PretrainConfig, CONFIGS["mednext_v2_base"], overrides), 1, 3)
        for overrides in ([], ["data.patch_size=[192, 192, 192]"])
    )
    assert context.parameters == plain.parameters
    assert context.tflop_per_patch == pytest.approx(plain.tflop_per_patch * 1.5**3, rel=5e-3)


def test_context_costs_attention_more_than_the_volume(cost):
    overrides = ["data.patch_size=[192, 192, 192]", "model.options.patch_size=192"]
    context = scaled(load_config(PretrainConfig, CONFIGS["primus_v2_m"], overrides), 1, 3)
    assert context.tflop_per_patch > 1.2 * cost["primus_v2_m"].tflop_per_patch * 1.5**3


def test_the_command_prints_a_row_for_each():
    command = [sys.executable, "-m", "fedvox", "models", str(CONFIGS["mednext_v2_s"]), "--classes", "3"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| `mednext-v2-s` | 128×128×128 |" in text
    found = json.loads(
        subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    )
    assert found["schema"] == "fedvox.models.cost/1"
