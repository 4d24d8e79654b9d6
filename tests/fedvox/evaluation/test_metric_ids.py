"""Metric ids say all that a value depends on, or they are refused with what to write instead."""

from __future__ import annotations

import pytest

from fedvox.errors import ConfigError
from fedvox.evaluation.lesions import LesionPolicy
from fedvox.evaluation.metric_ids import parse
from fedvox.evaluation.metrics import MetricPlan

IDS = [
    "dice",
    "volume_difference_ml",
    "nsd@2mm/surfel",
    "nsd@0.5mm/voxel",
    "hd95/voxel",
    "assd/surfel",
    "lesion_f1@iou0.1",
    "pq@iou0.5",
]


@pytest.mark.parametrize("metric", IDS)
def test_an_id_survives_parsing(metric):
    assert str(parse(metric)) == metric


def test_every_measured_metric_can_be_parsed_and_no_two_have_one_name():
    plan = MetricPlan((0.5, 2.0), ("voxel", "surfel"), LesionPolicy())
    ids = [str(m) for m in plan.metric_ids()]
    assert len(set(ids)) == len(ids) == 4 + 2 * (2 + 4) + 6
    assert [str(parse(m)) for m in ids] == ids


@pytest.mark.parametrize(
    ("metric", "remedy"),
    [
        ("hd95", "hd95/surfel"),
        ("nsd/surfel", "nsd@2mm/surfel"),
        ("nsd@2mm", "nsd@2mm/voxel"),
        ("hd@2mm/voxel", "hd/voxel"),
        ("dice/surfel", "Write dice"),
        ("lesion_f1", "lesion_f1@iou0.1"),
        ("dice@iou0.5", "lesion_f1@iou0.1"),
        ("hd95/mesh", "/voxel or /surfel"),
        ("nsd@0mm/voxel", "nsd@2mm/surfel"),
        ("nsd@1.2.3mm/voxel", "nsd@2mm/surfel"),
        ("dise", "dice"),
        ("", "known families"),
        ("Dice score", "known families"),
    ],
)
def test_an_incomplete_id_is_refused_with_what_to_write(metric, remedy):
    with pytest.raises(ConfigError) as caught:
        parse(metric)
    assert remedy in caught.value.remedy


def test_quality_orders_values_from_worse_to_better():
    assert parse("dice").quality(0.9) > parse("dice").quality(0.8)
    assert parse("hd95/voxel").quality(2.0) > parse("hd95/voxel").quality(3.0)
    signed = parse("volume_difference_ml")
    assert signed.quality(-1.0) == signed.quality(1.0) > signed.quality(-2.0)


def test_labels_for_tables_name_tolerance_surface_and_unit():
    assert parse("nsd@2mm/surfel").label == "Normalised surface distance (2 mm, surfel)"
    assert parse("hd95/voxel").label == "95th percentile Hausdorff distance (voxel) [mm]"
