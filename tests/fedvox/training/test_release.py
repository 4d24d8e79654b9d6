"""A release says all that is needed to use and to judge a model, and names no patient."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedvox.data.records import StoreMeta
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import StoreWriter
from fedvox.errors import CheckpointError
from fedvox.models.registry import build_model
from fedvox.storage import locate
from fedvox.training.config import PretrainConfig
from fedvox.training.loop import train
from fedvox.training.model_card import model_card
from fedvox.training.release import ModelInfo, load_release, read_info, write_release
from fedvox.training.release_facts import data_facts, published
from fedvox.training.session import open_data
from fedvox.training.world import World

INFO = ModelInfo(
    name="mednext-v2-nano",
    options={"deep_supervision": False},
    structures=("background", "liver", "left|right kidney"),
    channel_names=("CT",),
    patch_size=(32, 32, 64),
    spacing_mm=(3.0, 0.8, 0.8),
    normalization="ct",
    intensity=[],
    provenance={"run": "abdomen", "step": 7, "dice": {"liver": 0.91234}},
    modality="CT",
)


def write_store(folder, value=0):
    meta = StoreMeta(
        name="cubes", channel_names=("T1",), modality="MR", structures=("background", "cube", "ball"),
        label_sets={"both": (0, 1, 2), "cubes only": (0, 1)}, normalization="zscore", spacing_mm=(1.0, 1.0, 1.0),
    )  # fmt: skip
    writer = StoreWriter.create(str(folder), meta)
    for number in range(4):
        image = np.random.default_rng(number).normal(value, 9, (1, 16, 16, 16)).astype(np.int16)
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:9, 4:9, 4:9] = 1
        label_set = "both" if number % 2 else "cubes only"
        writer.add_case(
            f"patient_{number}",
            image,
            label,
            source="ab"[number % 2],
            label_set=label_set,
            spacing_mm=(1.0, 1.0, 1.0),
        )
    writer.finish()
    return str(folder)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr("fedvox.training.figures.draw_run", lambda session: None)
    values = {
        "name": "run", "storage": str(tmp_path / "secret-runs"), "steps": 2, "global_batch_size": 1,
        "data": {
            "store": write_store(tmp_path / "secret-store"), "patch_size": [16, 16, 16],
            "validation_cases": ["patient_3"], "loader_threads": 1, "augment_on": "cpu",
        },
        "model": {"name": "mednext-v2-nano"}, "augment": {"enabled": False},
    }  # fmt: skip
    return PretrainConfig.model_validate(values)


def test_a_trained_run_is_loaded_by_one_line_with_all_that_belongs_to_it(config, tmp_path):
    train(config, World())
    folder = tmp_path / "secret-runs" / "run" / "final"
    model, info = load_release(str(folder))
    logits = model(torch.randn(1, 1, 16, 16, 16))
    assert logits.shape == (1, 3, 16, 16, 16)
    assert info.training["optimizer"]["name"] == "adamw"
    assert info.training["data"]["patch_size"] == [16, 16, 16]
    assert info.data["sources"] == {"a": 2, "b": 2}
    assert (info.data["cases"], info.data["held_out"]) == (4, 1)
    assert info.data["label_sets"] == {"both": ["cube", "ball"], "cubes only": ["cube"]}
    assert len(info.provenance["sha256"]) == len(info.data["sha256"]) == 64
    assert (folder / "README.md").read_text() == model_card(info)


def test_no_path_and_no_case_name_is_published(config, tmp_path):
    train(config, World())
    folder = tmp_path / "secret-runs" / "run" / "final"
    for name in ("model.json", "README.md"):
        text = (folder / name).read_text()
        assert "secret" not in text
        assert "patient_" not in text


def test_the_datas_hash_changes_with_a_voxel_and_with_nothing_else(config, tmp_path):
    store, split = open_data(config.data)
    same = BrickStore.open(write_store(tmp_path / "elsewhere"))
    other = BrickStore.open(write_store(tmp_path / "other", value=1))
    assert data_facts(same, split)["sha256"] == data_facts(store, split)["sha256"]
    assert data_facts(other, split)["sha256"] != data_facts(store, split)["sha256"]


def test_what_is_published_of_a_configuration_holds_every_choice_that_bears_on_learning(config):
    kept = published(config)
    assert {"optimizer", "loss", "augment", "model", "seed", "steps"} <= kept.keys()
    assert {"storage", "compute", "init_from"}.isdisjoint(kept)


def test_the_card_states_use_input_structures_scores_and_limits():
    card = model_card(INFO)
    for heading in ("Intended use", "Use it", "Input", "Structures", "Training data", "Limits", "Provenance"):
        assert f"## {heading}\n" in card
    assert "Not a medical device" in card
    assert "| 1 | liver | 0.9123 |" in card
    assert "| 2 | left\\|right kidney | not measured |" in card
    assert "Never measured: left\\|right kidney." in card
    assert "spacing: 3 × 0.8 × 0.8 mm" in card


def test_a_release_of_before_there_was_a_card_is_still_read(tmp_path):
    model = build_model("mednext-v2-nano", in_channels=1, classes=3, deep_supervision=False)
    folder = locate(str(tmp_path / "old"))
    write_release(model, INFO, folder)
    path = tmp_path / "old" / "model.json"
    value = json.loads(path.read_text())
    del value["training"], value["data"]
    path.write_text(json.dumps(value))
    _, info = load_release(folder.uri)
    assert info.data == {}
    assert "Not recorded." in model_card(info)


def test_description_survives_writing_and_reading(tmp_path):
    model = build_model("mednext-v2-nano", in_channels=1, classes=3, deep_supervision=False)
    write_release(model, INFO, locate(str(tmp_path)))
    found = read_info(locate(str(tmp_path)))
    assert replace(found, provenance={}) == replace(INFO, provenance={})


def test_damaged_weights_are_refused(tmp_path):
    model = build_model("mednext-v2-nano", in_channels=1, classes=3, deep_supervision=False)
    write_release(model, INFO, locate(str(tmp_path)))
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        load_release(str(tmp_path))
