"""Manifests of benchmarks and submissions: what they fix, and what they refuse."""

from __future__ import annotations

import pytest
import yaml

from fedvox.benchmark.manifest import load_benchmark
from fedvox.benchmark.submission import MethodCard, load_submission
from fedvox.errors import ConfigError, DataError
from fedvox.evaluation.lesions import LesionPolicy


def test_paths_are_relative_to_the_file(site, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = load_benchmark(site.folder)
    assert found.test_sets[0].references == site.folder / "inside" / "labels"
    assert list(found.test_sets[0].cases()) == site.cases["inside"]


def test_the_plan_measures_what_the_metrics_need_and_nothing_else(site):
    site.change(metrics=["dice", "nsd@1mm/surfel", "nsd@3mm/surfel", "lesion_f1@iou0.2", "pq@iou0.5"])
    plan = load_benchmark(site.folder).plan()
    assert plan.tolerances_mm == (1.0, 3.0)
    assert plan.surfaces == ("surfel",)
    assert plan.lesions == LesionPolicy(f1_iou=0.2, pq_iou=0.5)
    measured = {str(m) for m in plan.metric_ids()}
    assert measured >= {"dice", "nsd@1mm/surfel", "nsd@3mm/surfel", "lesion_f1@iou0.2", "pq@iou0.5"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["dice", "hd95"]}, "hd95/surfel"),
        ({"metrics": ["iou"]}, "ranking.metric"),
        ({"metrics": ["dice", "lesion_f1@iou0.1", "lesion_recall@iou0.2"]}, "several thresholds"),
        ({"structures": {}}, "structures"),
        ({"metric": ["dice"]}, "metrics"),
        ({"test_sets": [{"name": "a b", "references": "x"}]}, "name"),
        ({"test_sets": [{"name": "a", "references": "x"}, {"name": "a", "references": "y"}]}, "repeat"),
        ({"test_sets": [{"name": "a", "references": "x", "structures": ["spleen"]}]}, "spleen"),
        ({"empty": {"distance": "infinite"}}, "empty"),
    ],
)
def test_an_unusable_benchmark_is_refused_by_field(site, change, message):
    site.change(**change)
    with pytest.raises(ConfigError, match=message):
        load_benchmark(site.folder)


def test_pinned_references_cannot_change_unnoticed(site, nifti):
    pinned = load_benchmark(site.folder).test_sets[0].fingerprint()
    sets = yaml.safe_load((site.folder / "benchmark.yaml").read_text())["test_sets"]
    sets[0]["sha256"] = pinned
    site.change(test_sets=sets)
    load_benchmark(site.folder)
    nifti(site.folder / "inside" / "labels" / "in_00.nii.gz", site.reference("inside", 3))
    with pytest.raises(DataError, match="pinned"):
        load_benchmark(site.folder)


def test_metadata_is_read_by_case_and_refused_when_ambiguous(site):
    test_set = load_benchmark(site.folder).test_sets[0]
    assert test_set.attributes()["in_01"] == {"patient": "p1", "sex": "M", "age": "31"}
    test_set.metadata.write_text("case,sex\nin_00,F\nin_00,M\n")
    with pytest.raises(DataError, match="twice"):
        test_set.attributes()
    test_set.metadata.write_text("name,sex\nin_00,F\n")
    with pytest.raises(DataError, match="no column `case`"):
        test_set.attributes()


def test_a_submission_is_predictions_or_a_command_and_says_what_it_lacks(tmp_path):
    def load(**values):
        path = tmp_path / "submission.yaml"
        path.write_text(yaml.safe_dump({"name": "m", **values}))
        return load_submission(path)

    with pytest.raises(ConfigError, match="one of predictions, command, container and adapter"):
        load()
    with pytest.raises(ConfigError, match="one of predictions, command, container and adapter"):
        load(predictions={"a": "x"}, command=["run", "{images}", "{output}"])
    with pytest.raises(ConfigError, match=r"\{output\}"):
        load(command=["run", "{images}"])
    with pytest.raises(ConfigError, match="architecture"):
        load(predictions={"a": "x"}, method={"architecure": "unet"})
    with pytest.raises(ConfigError, match="waivers"):
        load(predictions={"a": "x"}, waivers={"P1": "because"})
    found = load(predictions={"a": "x"})
    assert found.predictions["a"] == tmp_path / "x"
    assert found.method.undeclared() == list(MethodCard.model_fields)


def test_a_list_of_training_cases_is_read_from_its_file(tmp_path):
    (tmp_path / "train.txt").write_text("a\n\nb \n")
    path = tmp_path / "submission.yaml"
    path.write_text(yaml.safe_dump({"name": "m", "predictions": {"t": "x"}, "training_list": "train.txt"}))
    assert load_submission(tmp_path).method.training_cases == ("a", "b")
    (tmp_path / "train.txt").unlink()
    with pytest.raises(DataError, match="training_list"):
        load_submission(tmp_path)
