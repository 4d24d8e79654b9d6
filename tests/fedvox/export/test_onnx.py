"""An exported graph gives PyTorch's logits in ONNX Runtime, for any batch."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from fedvox.commands.export import Target, export
from fedvox.errors import CheckpointError, ConfigError, RunError
from fedvox.export import onnx_model
from fedvox.export.network import read_network
from fedvox.export.onnx_model import OnnxCheck, export_onnx
from fedvox.storage import locate

NETWORKS = [
    ("mednext-v2-nano", {}),
    ("resenc-unet-tiny", {"features": [8, 16], "blocks": [1, 1], "decoder_convs": [1]}),
    ("primus-v2-tiny", {"patch_size": 32, "depth": 1}),
]


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=[name for name, _ in NETWORKS])
def test_onnx_runtime_gives_pytorchs_logits_for_any_batch(release, tmp_path, name, options):
    folder, network = release(name, options=options)
    export(str(folder), Target.onnx, str(tmp_path / "onnx"))
    session = onnxruntime.InferenceSession(
        str(tmp_path / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for batch in (1, 3):
        image = torch.randn(batch, 1, 32, 32, 32)
        with torch.no_grad():
            expected = network(image).numpy()
        (found,) = session.run(["logits"], {"image": image.numpy()})
        assert found.shape == (batch, 3, 32, 32, 32)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    check = json.loads((tmp_path / "onnx" / "check.json").read_text())
    assert check["largest_difference"] < 1e-4
    assert check["agreement"] > 0.999
    assert json.loads((tmp_path / "onnx" / "model.json").read_text())["structures"][1] == "gray matter"
    assert (tmp_path / "onnx" / "README.md").is_file()


def test_a_graph_that_computes_something_else_is_not_kept(release, tmp_path, monkeypatch):
    folder, _ = release("mednext-v2-nano")
    found = OnnxCheck(float("nan"), 0.5, (1, 2), 20, "1.0", "2.0")
    monkeypatch.setattr(onnx_model, "_write_graph", lambda _, path, __: path.write_bytes(b"graph"))
    monkeypatch.setattr(onnx_model, "_compared", lambda *_: found)
    with pytest.raises(RunError, match="differ from PyTorch's"):
        export_onnx(read_network(str(folder)), locate(str(tmp_path / "onnx")))
    assert list((tmp_path / "onnx").iterdir()) == []


def test_missing_packages_are_named_with_the_extra_that_has_them(release, tmp_path, monkeypatch):
    folder, _ = release("mednext-v2-nano")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime(.|\n)*fedvox\[export\]"):
        export_onnx(read_network(str(folder)), locate(str(tmp_path / "onnx")))


def test_another_patch_is_taken_by_a_convolutional_network_and_refused_by_primus(release):
    folder, _ = release("mednext-v2-nano")
    assert read_network(str(folder), (16, 32, 48)).patch_size == (16, 32, 48)
    with pytest.raises(ConfigError, match="not divisible"):
        read_network(str(folder), (16, 32, 50))
    primus, _ = release("primus-v2-tiny", name_of_folder="primus", options={"patch_size": 32, "depth": 1})
    with pytest.raises(ConfigError, match="patches of"):
        read_network(str(primus), (64, 64, 64))


def test_an_operation_without_a_counterpart_is_told_in_one_sentence(release, tmp_path, monkeypatch):
    folder, _ = release("mednext-v2-nano")

    def refuse(*_args, **_kwargs):
        raise RuntimeError("no such operator: aten::frobnicate\nand a page of traceback")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(
        RunError, match=r"cannot be expressed in ONNX with opset 20: no such operator.*frobnicate\n  ->"
    ):
        export_onnx(read_network(str(folder)), locate(str(tmp_path / "onnx")))


def test_what_is_no_release_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no released model"):
        read_network(str(tmp_path))
