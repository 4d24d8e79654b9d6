"""A store of balls, a tiny network with weights for it, and clinics on both."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from fedvox.data.records import StoreMeta
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import StoreWriter
from fedvox.models.registry import build_model
from fedvox.storage import locate
from fedvox.training.release import ModelInfo, write_release
from fedvox_federation.client import clinic as clinics
from fedvox_federation.client.sites import simulated_clinic
from fedvox_federation.config import FederationConfig
from fedvox_federation.protocol import RoundOrder

STRUCTURES = ("background", "ball")
SIZE = 20


@pytest.fixture(scope="session")
def ball_store(tmp_path_factory):
    """Twelve cases of three sources; cases 2k and 2k + 1 are of patient k."""
    folder = tmp_path_factory.mktemp("balls")
    meta = StoreMeta("balls", ("T1",), "MR", STRUCTURES, {"all": (0, 1)}, "zscore", (1.0, 1.0, 1.0))
    writer = StoreWriter.create(str(folder), meta)
    grid = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"))
    for number in range(12):
        rng = np.random.default_rng(number)
        centre = rng.integers(6, SIZE - 6, 3).reshape(3, 1, 1, 1)
        label = (((grid - centre) ** 2).sum(0) < 25).astype(np.uint8)
        image = (label * 300.0 + rng.normal(0, 40, label.shape)).astype(np.int16)
        writer.add_case(
            f"p{number // 2:02d}-v{number % 2}", image[None], label, source=f"site{number // 4}",
            label_set="all", spacing_mm=(1.0, 1.0, 1.0),
        )  # fmt: skip
    writer.finish()
    return str(folder)


@pytest.fixture(scope="session")
def ball_weights(tmp_path_factory):
    """Released weights of a network for that store, untrained."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(7)
    network = build_model("mednext-v2-nano", in_channels=1, classes=2, deep_supervision=True)
    info = ModelInfo(
        name="mednext-v2-nano", options={"deep_supervision": True}, structures=STRUCTURES,
        channel_names=("T1",), patch_size=(16, 16, 16), spacing_mm=(1.0, 1.0, 1.0), normalization="zscore",
        intensity=None, provenance={"run": "old"}, modality="MR",
    )  # fmt: skip
    write_release(network, info, locate(str(folder)))
    return str(folder)


@pytest.fixture
def federation_values(ball_store, ball_weights, tmp_path):
    """A small configuration as plain values: two rounds of two steps at two hospitals."""
    return {
        "name": "balls",
        "rounds": 2,
        "pretrained": ball_weights,
        "output": str(tmp_path / "runs"),
        "task": {"patches_per_patient": 2},
        "training": {"steps": 2, "lr": 0.01, "device": "cpu", "evaluate": "never"},
        "privacy": {"expected_batch": 2.0, "delta": 1e-3},
        "clinics": {
            "store": ball_store,
            "folder": str(tmp_path / "clinics"),
            "patient_pattern": r"(p\d+)-",
            "partition": {"kind": "iid", "hospitals": 2},
            "held_out_fraction": 0.3,
        },
    }


@pytest.fixture
def make_config(federation_values):
    """The configuration, with sections overridden."""

    def make(**sections):
        values = {key: dict(v) if isinstance(v, dict) else v for key, v in federation_values.items()}
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return FederationConfig(**values)

    return make


@pytest.fixture
def open_hospital(make_config):
    """A simulated hospital with the order of a round for it and the parameters to start from."""

    def make(round_number=1, number=0, **sections):
        config = make_config(**sections)
        clinic = simulated_clinic(config, number)
        order = RoundOrder(
            run=config.name, round_number=round_number, rounds=config.rounds, config_sha256=config.sha256,
            base_sha256=clinic.task.model.base_sha256, proximal_mu=config.proximal_mu,
        )  # fmt: skip
        return SimpleNamespace(
            clinic=clinic, order=order, arrays=clinic.task.model.arrays(), replace=replace,
            take_part=lambda: clinics.take_part(clinic.task.model.arrays(), order, clinic),
        )  # fmt: skip

    return make


@pytest.fixture
def open_store():
    """Opens a brick store."""
    return BrickStore.open


@pytest.fixture
def checkout():
    """The root of this checkout."""
    return Path(__file__).resolve().parents[3]


@pytest.fixture
def write_config(federation_values, tmp_path):
    """The configuration as a file, with sections overridden."""

    def write(**sections):
        values = dict(federation_values)
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        path = tmp_path / "federation.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write
