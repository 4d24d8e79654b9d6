"""Small brick stores, and trainings on them in this process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedvox.data.records import StoreMeta
from fedvox.data.store_writer import StoreWriter
from fedvox.storage import locate
from fedvox.training.release import ModelInfo, write_release

NAMES = ("background", "ball", "box")


def _volume(seed, channels, shape=(28, 30, 32)):
    """A ball (1) and a box (2) on noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    centre = rng.integers(10, 18, 3).reshape(3, 1, 1, 1)
    label = np.zeros(shape, np.uint8)
    label[20:26, 20:26, 20:26] = 2
    label[((grid - centre) ** 2).sum(0) < 49] = 1
    image = np.stack([label * (200.0 + 50 * k) + rng.normal(0, 40, shape) for k in range(channels)])
    return image.astype(np.int16), label


@pytest.fixture(scope="session")
def shapes_store(tmp_path_factory):
    """Writes a store of four cases with a ball and a box; gives its path."""

    def write(channels=1, structures=NAMES):
        folder = tmp_path_factory.mktemp("shapes")
        meta = StoreMeta(
            name="shapes", channel_names=tuple(f"C{k}" for k in range(channels)), modality="MR",
            structures=structures, label_sets={"all": tuple(range(len(structures)))}, normalization="zscore",
            spacing_mm=(1.0, 1.0, 1.0),
        )  # fmt: skip
        writer = StoreWriter.create(str(folder), meta)
        for seed in range(4):
            image, label = _volume(seed, channels)
            renamed = np.array([structures.index(name) for name in NAMES], np.uint8)[label]
            writer.add_case(
                f"c{seed}", image, renamed, source="a", label_set="all", spacing_mm=(1.0, 1.0, 1.0)
            )
        writer.finish()
        return str(folder)

    return write


@pytest.fixture(scope="session")
def release_weights():
    """Writes a network as released weights; gives the folder."""

    def write(folder, network, name, structures=NAMES, patch_size=(16, 16, 16), options=None):
        info = ModelInfo(
            name=name, options={**(options or {}), "deep_supervision": network.config.deep_supervision},
            structures=structures, channel_names=tuple(f"C{k}" for k in range(network.config.in_channels)),
            patch_size=patch_size, spacing_mm=(1.0, 1.0, 1.0), normalization="zscore", intensity=None,
            provenance={"run": "old", "step": 7}, modality="MR",
        )  # fmt: skip
        write_release(network, info, locate(str(folder)))
        return str(folder)

    return write


@pytest.fixture
def logged():
    """The train lines of a run, as the last attempt that reached each step logged them."""

    def read(run):
        lines = {}
        for file in sorted((Path(run) / "metrics").glob("*.jsonl")):
            for text in file.read_text().splitlines():
                line = json.loads(text)
                if line["kind"] == "train":
                    lines[line["step"]] = line
        return [lines[step] for step in sorted(lines)]

    return read


class StopAt:
    """A watch that asks a run to stop after some steps of this attempt, as a spot node that goes away does."""

    def __init__(self, steps):
        self.left = steps

    def should_stop(self, _asked):
        self.left -= 1
        return self.left == 0


@pytest.fixture
def stop_at():
    return StopAt


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
