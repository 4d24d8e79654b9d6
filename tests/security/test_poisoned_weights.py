"""A checkpoint whose unpickling runs a command, offered to everything that loads weights."""

import hashlib
import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fedvox.forecasting.release
import fedvox.restoration.release
import fedvox.training.release
from fedvox.benchmark.adapters.contract import load_state
from fedvox.errors import FedvoxError
from fedvox.models.registry import build_model
from fedvox.models.upstream import read_weights
from fedvox.storage import locate
from fedvox.training import checkpoint, release_files
from fedvox.training.release import ModelInfo, load_release, write_release
from fedvox_federation.client.replies import read_arrays


class Poison:
    """Creates a file when it is unpickled."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (self.flag,)


@pytest.fixture
def flag(tmp_path):
    """The folder that exists once the poison has worked."""
    return tmp_path / "the-poison-worked"


@pytest.fixture(params=["torch", "torch-old", "pickle", "npz", "npy"])
def poison(request, tmp_path, flag):
    """A poisoned file in one of the formats that weights come in."""
    content, path = (
        {"state_dict": {"w": torch.zeros(2)}, "extra": Poison(str(flag))},
        tmp_path / "weights.pth",
    )
    if request.param == "torch":
        torch.save(content, path)
    elif request.param == "torch-old":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif request.param == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        array = np.array([Poison(str(flag))], dtype=object)
        np.savez(tmp_path / "w.npz", w=array) if request.param == "npz" else np.save(
            tmp_path / "w.npy", array
        )
        shutil.move(tmp_path / f"w.{request.param}", path)
    return path


@pytest.fixture
def release(tmp_path):
    """A released model, whole."""
    torch.manual_seed(0)
    info = ModelInfo(
        "mednext-v2-nano", {}, ("background", "a"), ("MR",), (16, 16, 16), None, "zscore", (), modality="MR"
    )
    folder = tmp_path / "release"
    write_release(build_model("mednext-v2-nano", in_channels=1, classes=2), info, locate(str(folder)))
    return folder


def test_the_poison_works_where_pickles_are_loaded(tmp_path, flag):
    (tmp_path / "x").write_bytes(pickle.dumps(Poison(str(flag))))
    pickle.loads((tmp_path / "x").read_bytes())
    assert flag.exists()


def test_upstream_checkpoints_are_read_without_unpickling(poison, flag):
    with pytest.raises(FedvoxError, match="cannot be read as a checkpoint"):
        read_weights(poison)
    assert not flag.exists()


def test_a_poisoned_file_named_safetensors_is_no_safetensors(poison, flag, tmp_path):
    renamed = tmp_path / "weights.safetensors"
    poison.rename(renamed)
    with pytest.raises(FedvoxError, match="is damaged"):
        read_weights(renamed)
    assert not flag.exists()


def test_a_release_is_loaded_without_unpickling(poison, flag, release):
    shutil.copy(poison, release / "model.safetensors")
    with pytest.raises(FedvoxError):
        load_release(str(release))
    assert not flag.exists()


def test_a_runs_checkpoint_is_loaded_without_unpickling(poison, flag, tmp_path):
    """Even under a commit that vouches for it."""
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    shutil.copy(poison, folder / "shard")
    digest = hashlib.sha256(poison.read_bytes()).hexdigest()
    shards = {"shard": {"bytes": poison.stat().st_size, "sha256": digest, "tensors": []}}
    commit = {"schema": checkpoint.SCHEMA, "step": 1, "shards": shards, "meta": {}}
    (folder / "COMMIT.json").write_text(json.dumps(commit))
    with pytest.raises(FedvoxError, match="cannot be read"):
        checkpoint.load(locate(str(folder)))
    assert not flag.exists()


def test_every_kind_of_release_reads_its_tensors_in_that_one_way():
    """Models, forecasters and priors: what was shown of one reader holds for all."""
    for module in (fedvox.training.release, fedvox.forecasting.release, fedvox.restoration.release):
        assert module.fill is release_files.fill
    assert release_files.load_tensors is checkpoint.load_tensors


def test_a_submitters_state_dict_is_read_without_unpickling(poison, flag):
    with pytest.raises(FedvoxError, match=r"cannot be read|holds more than weights"):
        load_state(poison)
    assert not flag.exists()


def test_a_clinics_arrays_are_read_without_unpickling(poison, flag):
    with pytest.raises(FedvoxError, match="is damaged"):
        read_arrays(poison)
    assert not flag.exists()


def test_weights_in_an_archive_that_claims_to_be_huge_are_refused(tmp_path):
    """A zip whose only member inflates to more than it should is no checkpoint."""
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))
    with pytest.raises(FedvoxError):
        read_weights(path)


def test_safetensors_whose_header_is_larger_than_the_file_is_refused(tmp_path, release):
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    data = bytearray((tmp_path / "w.safetensors").read_bytes())
    data[:8] = (2**62).to_bytes(8, "little")
    (release / "model.safetensors").write_bytes(data)
    with pytest.raises(FedvoxError):
        load_release(str(release))
