import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedvox.data.normalize import normalize
from fedvox.data.records import StoreMeta
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import StoreWriter
from fedvox.inference.sliding_window import SlidingWindow, predict_logits
from fedvox.training.loss import merge_unannotated
from fedvox.training.validation import predict_case, validate
from fedvox.training.world import World

SHAPE = (20, 18, 22)


class Threshold(nn.Module):
    """Calls everything brighter than the case's mean structure 1; knows no structure 2."""

    def forward(self, x):
        bright = (x[:, :1] > 0).float()
        return torch.cat([1 - bright, bright, torch.full_like(bright, -9.0)], 1) * 9


@pytest.fixture
def folder(tmp_path):
    meta = StoreMeta(
        name="small", channel_names=("T1",), modality="MR", structures=("background", "a", "b"),
        label_sets={"all": (0, 1, 2), "only a": (0, 1)}, normalization="zscore", spacing_mm=(1.0, 1.0, 1.0),
    )  # fmt: skip
    writer = StoreWriter.create(str(tmp_path), meta)
    for i, label_set in enumerate(["all", "only a", "all"]):
        label = np.zeros(SHAPE, np.uint8)
        label[4:10, 4:10, 4:10] = 1
        if label_set == "all":
            label[12:16, 4:10, 4:10] = 2
        image = np.where(label == 1, 100, 0).astype(np.int16)
        image[0, 0, i] = 100  # one false positive voxel
        writer.add_case(
            f"c{i}", image[None], label, source="s", label_set=label_set, spacing_mm=(1.0, 1.0, 1.0)
        )
    writer.finish()
    return tmp_path


def run(folder, rows):
    return validate(Threshold(), BrickStore.open(str(folder)), rows, SlidingWindow((8, 8, 8)), World())


def test_dice_per_case_and_structure_is_counted_by_hand(folder):
    found = run(folder, [0, 1])
    a = 2 * 216 / (216 + 217)
    assert found.dice[0] == pytest.approx([found.dice[0, 0], a, 0.0])
    assert found.dice[1, 1] == pytest.approx(a)
    assert np.isnan(found.dice[1, 2])  # nobody annotated it there
    assert found.per_structure == pytest.approx({"a": a, "b": 0.0})
    assert found.mean_foreground == pytest.approx(a / 2)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that is made meanwhile."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.found = max(self.found, made.untyped_storage().nbytes() // made.element_size())
        return made


@pytest.mark.parametrize("row", [0, 1])
def test_a_case_is_judged_plane_by_plane_with_the_labels_of_its_whole_logits(folder, row):
    """The logits of a whole CT in 168 structures would take 67 GB."""
    store = BrickStore.open(str(folder))
    torch.manual_seed(0)
    network, window = nn.Conv3d(1, 3, 3, padding=1), SlidingWindow((8, 8, 8))
    image, _ = store.read_patch(row, (0, 0, 0), SHAPE)
    logits = predict_logits(network, torch.as_tensor(normalize(image, store.record(row), store.meta)), window)
    whole = merge_unannotated(logits[None], torch.as_tensor(store.annotated(row))[None])[0].argmax(0)
    with Largest() as largest:
        _, _, prediction = predict_case(network, store, row, window, torch.device("cpu"))
    assert torch.equal(prediction, whole)
    assert largest.found < logits.numel()


def test_the_mode_of_the_network_is_given_back(folder):
    network = Threshold().train()
    validate(network, BrickStore.open(str(folder)), [0], SlidingWindow((8, 8, 8)), World())
    assert network.training


def test_a_damaged_case_is_named_and_left_out(folder):
    path = folder / "cases" / "c0.arrow"
    data = bytearray(path.read_bytes())
    for i in range(len(data) // 4, len(data) // 2):
        data[i] ^= 0x55
    path.write_bytes(data)
    found = run(folder, [0, 1])
    assert list(found.damaged) == ["c0"]
    assert np.isnan(found.dice[0]).all()
    assert found.per_structure == pytest.approx({"a": 2 * 216 / (216 + 217)})


def test_json_lists_every_case_with_null_for_what_is_undefined(folder):
    value = run(folder, [1]).to_json()
    assert value["cases"]["c1"] == {"a": pytest.approx(2 * 216 / 433, abs=1e-6), "b": None}
