"""The planner against nnU-Net's own plans, field by field, and the rules by worked examples."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox.errors import ConfigError, DataError
from fedvox.planning.facts import DatasetFacts, IntensityProperties, facts_of_nnunet
from fedvox.planning.nnunet_plans import to_nnunet
from fedvox.planning.planner import plan_experiment
from fedvox.planning.presets import PRESETS
from fedvox.planning.topology import topology_for

REFERENCE = json.loads(
    gzip.decompress((Path(__file__).parent / "data" / "reference_plans.json.gz").read_bytes())
)
RUNS = [
    pytest.param(entry, run, id=f"{entry['name']}-{run['preset']}-{run['memory_gib'] or 'default'}")
    for entry in REFERENCE
    for run in entry["plans"]
]


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two JSON values differ; floats may by the last digits."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        missing = [f"{path}.{key} is on one side alone" for key in ours.keys() ^ theirs.keys()]
        return missing + [
            d
            for key in ours.keys() & theirs.keys()
            for d in differences(ours[key], theirs[key], f"{path}.{key}")
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            d
            for i, pair in enumerate(zip(ours, theirs, strict=True))
            for d in differences(*pair, f"{path}[{i}]")
        ]
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return [] if ours == pytest.approx(theirs, rel=1e-9) else [f"{path}: {ours} instead of {theirs}"]
    return [] if ours == theirs else [f"{path}: {ours!r} instead of {theirs!r}"]


@pytest.mark.parametrize(("entry", "run"), RUNS)
def test_a_plan_equals_nnunets_in_every_field(entry, run):
    facts = facts_of_nnunet(entry["dataset_fingerprint"], entry["dataset"], name=entry["name"])
    spacing = tuple(run["spacing"]) if run["spacing"] else None
    plan = plan_experiment(facts, PRESETS[run["preset"]], memory_gib=run["memory_gib"], spacing_mm=spacing)
    assert differences(json.loads(json.dumps(to_nnunet(plan))), run["plan"]) == []


def test_the_reference_covers_what_the_rules_distinguish():
    """Each branch of the rules occurs in some plan, so that the comparison above cannot pass them by."""
    plans = [run["plan"] for entry in REFERENCE for run in entry["plans"]]
    configurations = [c for plan in plans for c in plan["configurations"].values() if "patch_size" in c]
    kernels = [k for c in configurations for k in c["architecture"]["arch_kwargs"]["kernel_sizes"]]
    assert any("3d_lowres" in plan["configurations"] for plan in plans)
    assert any("3d_fullres" not in plan["configurations"] for plan in plans)
    assert any(plan["transpose_forward"] != [0, 1, 2] for plan in plans)
    assert any(1 in kernel for kernel in kernels)
    assert {c["batch_size"] > 2 for c in configurations} == {True, False}
    assert {tuple(c["use_mask_for_norm"]) for c in configurations} >= {
        (False,),
        (True, True, True, True),
        (False, True),
    }
    assert any(n % 1 for c in configurations for n in c["median_image_size_in_voxels"])


# ---- reasons and refusals ----------------------------------------------------------------------------------

INTENSITY = IntensityProperties(3000.0, 100.0, 99.0, -1000.0, -18.0, 201.0, 41.0)


def facts(
    spacing=(1.0, 1.0, 1.0), shape=(160, 200, 180), cases=20, channels=("CT",), labels=3
) -> DatasetFacts:
    return DatasetFacts(
        "example", (spacing,) * cases, (shape,) * cases, 1.0, channels, labels, (INTENSITY,) * len(channels)
    )


def test_every_decision_of_a_configuration_has_its_reason():
    plan = plan_experiment(facts(), PRESETS["resenc-l"])
    decisions = [*plan.decisions, *plan.configurations["3d_fullres"].decisions]
    assert {d.field for d in decisions} >= {
        "spacing_mm", "transpose", "patch_size", "topology", "batch_size", "normalization", "3d_lowres",
    }  # fmt: skip
    assert all(len(decision.reason.split()) > 2 for decision in decisions)


def test_the_reason_for_a_tenth_percentile_names_it():
    thick = facts((5.0, 1.0, 1.0), (20, 300, 300), cases=9)
    mixed = DatasetFacts(
        "mixed", (*thick.spacings_mm, (2.0, 1, 1), (2.0, 1, 1)), (*thick.shapes, (50, 300, 300), (50, 300, 300)), 1.0,
        ("MR",), 2, (INTENSITY,),
    )  # fmt: skip
    plan = plan_experiment(mixed, PRESETS["unet"])
    assert "10th percentile" in next(d.reason for d in plan.decisions if d.field == "spacing_mm")
    assert plan.in_volume_order(plan.configurations["3d_fullres"].spacing_mm) == (2.0, 1.0, 1.0)


def test_more_memory_never_gives_a_smaller_patch_or_batch():
    volumes = []
    for memory_gib in (6, 8, 12, 24, 48, 96):
        full = plan_experiment(facts(), PRESETS["unet"], memory_gib=memory_gib).configurations["3d_fullres"]
        volumes.append(full.batch_size * full.patch_size[0] * full.patch_size[1] * full.patch_size[2])
    assert volumes == sorted(volumes)
    assert volumes[-1] > volumes[0]


def test_a_memory_that_holds_no_patch_is_refused_with_the_knob():
    with pytest.raises(ConfigError, match="hold no patch") as error:
        plan_experiment(facts(), PRESETS["resenc-l"], memory_gib=1e-6)
    assert "--memory-gib" in error.value.remedy


def test_a_plan_for_another_number_of_channels_is_refused_by_name():
    plan = plan_experiment(facts(channels=("T1", "T2")), PRESETS["unet"])
    plan.check_channels(("A", "B"))
    with pytest.raises(ConfigError, match=r"is for 2 channels .* the data has 3 \(T1, T2, FLAIR\)"):
        plan.check_channels(("T1", "T2", "FLAIR"))


def test_an_unknown_configuration_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError) as error:
        plan_experiment(facts(), PRESETS["unet"]).configuration("3d_highres")
    assert "3d_fullres" in error.value.remedy


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"spacings": []}, "0 spacings"),
        ({"shapes_after_crop": [[10, 10]]}, "no fingerprint of 3D volumes"),
        ({"spacings": [[0.0, 1, 1]]}, "not positive"),
        ({"foreground_intensity_properties_per_channel": {}}, "0 channels"),
    ],
)
def test_a_broken_fingerprint_is_refused(change, match):
    good = {
        "spacings": [[1.0, 1, 1]], "shapes_after_crop": [[10, 10, 10]], "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": vars(INTENSITY)},
    }  # fmt: skip
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}}
    facts_of_nnunet(good, dataset)
    with pytest.raises(DataError, match=match):
        facts_of_nnunet({**good, **change}, dataset)


# ---- topology ----------------------------------------------------------------------------------------------


def test_an_isotropic_patch_is_halved_along_all_axes_until_four_voxels_remain():
    found = topology_for((1, 1, 1), (128, 128, 128))
    assert found.strides == ((1, 1, 1), *((2, 2, 2),) * 5)
    assert set(found.kernels) == {(3, 3, 3)}
    assert found.divisor == (32, 32, 32)


def test_thick_slices_are_kept_and_seen_singly_until_the_other_axes_have_caught_up():
    found = topology_for((5, 1, 1), (20, 256, 256))
    assert found.strides[:3] == ((1, 1, 1), (1, 2, 2), (1, 2, 2))
    assert found.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))  # at 4 mm, 5 is within a factor 2
    assert found.patch_size[0] == 20


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[st.floats(0.1, 10)] * 3),
    st.tuples(*[st.integers(1, 300)] * 3),
    st.one_of(st.none(), st.integers(1, 6)),
)
def test_a_topology_fits_its_patch_whatever_the_spacing(spacing, size, max_stages):
    found = topology_for(spacing, size, max_stages=max_stages)
    assert all(p >= n and p % d == 0 for p, n, d in zip(found.patch_size, size, found.divisor, strict=True))
    assert all(p - n < d for p, n, d in zip(found.patch_size, size, found.divisor, strict=True))
    assert len(found.kernels) == found.num_stages
    assert max_stages is None or found.num_stages <= max_stages
    # no axis is halved below 4 voxels
    assert all(p // d >= 4 or d == 1 for p, d in zip(found.patch_size, found.divisor, strict=True))
