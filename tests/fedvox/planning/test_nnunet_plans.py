"""nnU-Net's plans JSON: read, written back unchanged, and refused by field where it is broken."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path

import pytest

from fedvox.errors import ConfigError
from fedvox.planning.nnunet_plans import from_nnunet, read_plans, to_nnunet, write_plans
from fedvox.storage import locate

REFERENCE = json.loads(
    gzip.decompress((Path(__file__).parent / "data" / "reference_plans.json.gz").read_bytes())
)
PLANS = [run["plan"] for entry in REFERENCE for run in entry["plans"]]
LIVER = next(plan for plan in PLANS if "3d_lowres" in plan["configurations"])


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan['dataset_name']}-{plan['plans_name']}")
def test_a_plan_of_nnunet_is_written_back_unchanged(plan):
    assert json.loads(json.dumps(to_nnunet(from_nnunet(plan)))) == plan


def test_keys_of_others_survive(tmp_path):
    plan = copy.deepcopy(LIVER)
    plan["site_note"] = {"a": 1}
    plan["configurations"]["3d_fullres"]["my_key"] = 5
    plan["configurations"]["bs4"] = {"inherits_from": "3d_fullres", "batch_size": 4}
    read = from_nnunet(plan)
    assert read.extra == {"site_note": {"a": 1}}
    assert read.configurations["bs4"].batch_size == 4
    assert read.configurations["bs4"].patch_size == read.configurations["3d_fullres"].patch_size
    write_plans(read, locate(tmp_path / "plans.json"))
    again = read_plans(str(tmp_path / "plans.json"))
    assert again.configurations["3d_fullres"].extra == {"my_key": 5}
    assert again.configurations["bs4"].batch_size == 4


def test_plans_from_before_2_4_are_read_alike():
    new = LIVER["configurations"]["3d_fullres"]
    keywords = new["architecture"]["arch_kwargs"]
    old = {key: value for key, value in new.items() if key != "architecture"} | {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 32, "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": keywords["n_conv_per_stage"], "num_pool_per_axis": [5, 5, 5],
        "n_conv_per_stage_decoder": keywords["n_conv_per_stage_decoder"],
        "pool_op_kernel_sizes": keywords["strides"], "conv_kernel_sizes": keywords["kernel_sizes"],
    }  # fmt: skip
    plan = {**LIVER, "configurations": {"3d_fullres": old}}
    assert from_nnunet(plan).configurations["3d_fullres"] == from_nnunet(LIVER).configurations["3d_fullres"]


def broken(**changes):
    plan = copy.deepcopy(LIVER)
    plan["configurations"]["3d_fullres"] |= changes
    return plan


def unknown_network():
    plan = copy.deepcopy(LIVER)
    plan["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "some.where.SwinUNETR"
    return plan


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        ({"dataset_name": "x"}, "no configurations"),
        ([1], "no configurations"),
        (
            {key: value for key, value in LIVER.items() if key != "transpose_forward"},
            "no field 'transpose_forward'",
        ),
        (
            broken(patch_size=[100, 128, 128]),
            r"patch_size \[100, 128, 128\] is not divisible .* nearest that is",
        ),
        (broken(inherits_from="3d_fullres"), "inherits from itself"),
        (broken(inherits_from="4d"), "no field 'configurations.4d'"),
        (unknown_network(), "'SwinUNETR' is not known"),
        (broken(spacing=["a", 1, 1]), "configuration '3d_fullres' cannot be used"),
    ],
)
def test_a_broken_plan_is_refused_with_file_and_field(plan, match):
    with pytest.raises(ConfigError, match=match) as error:
        from_nnunet(plan, source="site/plans.json")
    assert "site/plans.json" in str(error.value)


def test_a_file_that_is_no_json_or_missing_is_named(tmp_path):
    (tmp_path / "plans.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_plans(str(tmp_path / "plans.json"))
    with pytest.raises(ConfigError, match="does not exist"):
        read_plans(str(tmp_path / "other.json"))
