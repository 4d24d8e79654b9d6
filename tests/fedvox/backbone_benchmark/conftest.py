"""A small store, and comparisons of two tiny backbones on it."""

from typing import Any

import numpy as np
import pytest

from fedvox.backbone_benchmark import benchmark
from fedvox.backbone_benchmark.config import BackboneBenchmarkConfig
from fedvox.backbone_benchmark.profile import Profile, count
from fedvox.config import validate
from fedvox.data.records import StoreMeta
from fedvox.data.store_writer import StoreWriter


def write_store(folder: Any, cases: int, seed: int) -> str:
    meta = StoreMeta(
        name="cubes", channel_names=("T1",), modality="MR", structures=("background", "cube"),
        label_sets={"all": (0, 1)}, normalization="zscore", spacing_mm=(1.0, 1.0, 1.0),
    )  # fmt: skip
    writer = StoreWriter.create(str(folder), meta)
    rng = np.random.default_rng(seed)
    for number in range(cases):
        label = np.zeros((16, 16, 16), np.uint8)
        z, y, x = rng.integers(0, 8, 3)
        label[z : z + 8, y : y + 8, x : x + 8] = 1
        image = (rng.normal(0, 60, (1, 16, 16, 16)) + 200 * label).astype(np.int16)
        writer.add_case(f"c{number}", image, label, source="a", label_set="all", spacing_mm=(1.0, 1.0, 1.0))
    writer.finish()
    return str(folder)


@pytest.fixture(scope="session")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return write_store(folder / "target", 6, 0), write_store(folder / "pretraining", 4, 1)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Curves of every trial take longer than its four steps."""
    monkeypatch.setattr("fedvox.training.figures.draw_run", lambda session: None)


@pytest.fixture
def assumed_times(monkeypatch):
    """Steps that are counted as always, and take a millisecond each, as if measured."""
    monkeypatch.setattr(benchmark, "profile", lambda spec: Profile(*count(spec), 0.001, 0.1, "assumed"))


@pytest.fixture
def comparison(tmp_path, stores):
    """Builds a comparison in this test's folder, with some fields changed."""
    target, pretraining = stores

    def build(**changes: Any) -> BackboneBenchmarkConfig:
        values = {
            "name": "two", "storage": str(tmp_path), "seeds": [0, 1], "budget": {"unit": "steps", "amount": 4},
            "validation_overlap": 0.0,
            "backbones": [
                {"name": "mednext-v2-nano"}, {"name": "mednext-v2-nano", "label": "no-grn", "options": {"grn": None}},
                {"name": "mednext-v2-nano", "label": "wide", "options": {"width": 12}},
            ],
            "recipe": {
                "global_batch_size": 1, "optimizer": {"lr": 0.01},
                "data": {
                    "store": target, "patch_size": [16, 16, 16], "validation_cases": ["c3", "c4", "c5"],
                    "augment_on": "cpu", "loader_threads": 1, "prefetch_batches": 1,
                },
                "augment": {"enabled": False},
            },
            "pretrain": {"store": pretraining, "data": {"validation_cases": ["c3"]}},
            "compute": {"profile_steps": 1},
        }  # fmt: skip
        return validate(BackboneBenchmarkConfig, {**values, **changes}, source="test")

    return build
