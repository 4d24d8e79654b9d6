"""ONNX: one window to its logits, with a free batch axis and a fixed patch, checked where it will run.

    OUTPUT/model.onnx     image (batch, C, D, H, W) float32, normalised -> logits (batch, K, D, H, W)
    OUTPUT/model.json     how to prepare the image and what the channels mean: the release's own description
    OUTPUT/README.md      the model card
    OUTPUT/check.json     the largest difference from PyTorch, and the versions that were compared

The sliding window stays outside: its patch is fixed, and so is the graph's.
"""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedvox import storage
from fedvox.errors import ConfigError, RunError
from fedvox.export.network import Exported
from fedvox.storage import Location
from fedvox.training.model_card import model_card

INPUT, OUTPUT = "image", "logits"
_TOLERANCE = 1e-3
_BATCHES = (1, 2)


@dataclass(frozen=True)
class OnnxCheck:
    """What a comparison with PyTorch found.

    Attributes:
        largest_difference: of any logit, relative to the largest logit.
        agreement: share of voxels with the same label.
        batches: batch sizes that were compared.
        opset: of the graph.
        onnxruntime: version.
        torch: version.
    """

    largest_difference: float
    agreement: float
    batches: tuple[int, ...]
    opset: int
    onnxruntime: str
    torch: str


def export_onnx(source: Exported, output: Location, *, opset: int = 20) -> OnnxCheck:
    """Writes an ONNX model and its check; the graph last, so that it is there only if it is right.

    Args:
        source: what to export.
        output: a local folder; made if it is not there.
        opset: of the graph; 20 is the first that upsamples volumes without restrictions.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed, or the folder is not local.
        RunError: the network cannot be expressed in ONNX, or the graph computes something else than PyTorch.
    """
    _check_packages()
    if not output.is_local:
        raise ConfigError(f"{output.uri} is not a local folder", "Export to a local one, and copy it.")
    folder = output.local_path
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / ".model.onnx.tmp"
    try:
        _write_graph(source, draft, opset)
        found = _compared(source, draft, opset)
        if not found.largest_difference < _TOLERANCE:  # NaN, too, is no agreement
            raise RunError(
                f"logits in ONNX Runtime differ from PyTorch's by {found.largest_difference:.2g} of the largest",
                "Try another --opset; please report the network and the versions in use.",
            )
        for name, value in (("model.json", source.info), ("check.json", found)):
            text = json.dumps(asdict(value), indent=1, default=str)
            storage.write_atomic(output.child(name), (text + "\n").encode())
        storage.write_atomic(output.child("README.md"), model_card(source.info).encode())
        draft.replace(folder / "model.onnx")
    finally:
        draft.unlink(missing_ok=True)
    return found


def _check_packages() -> None:
    missing = []
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ConfigError(f"export to ONNX needs {', '.join(missing)}", "pip install 'fedvox[export]'.")


def _write_graph(source: Exported, path: Path, opset: int) -> None:
    batch = torch.export.Dim("batch", min=1)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter about itself
            program = torch.export.export(source.network, (source.example(2),), dynamic_shapes=({0: batch},))
            graph = torch.onnx.export(
                program,
                (),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            assert graph is not None  # with dynamo it always is
            graph.save(str(path))
    except (RuntimeError, ValueError, TypeError, torch.onnx.OnnxExporterError) as error:
        first = (str(error).strip().splitlines() or [repr(error)])[0]
        raise RunError(
            f"{source.info.name} cannot be expressed in ONNX with opset {opset}: {first}",
            "Try a later --opset, or export to monai-bundle, which needs no graph.",
        ) from error


def _compared(source: Exported, path: Path, opset: int) -> OnnxCheck:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst, same, voxels = 0.0, 0, 0
    for batch in _BATCHES:
        image = source.example(batch, seed=batch)
        with torch.no_grad():
            expected = source.network(image).numpy()
        (found,) = session.run([OUTPUT], {INPUT: image.numpy()})
        scale = max(float(np.abs(expected).max()), 1e-6)
        worst = max(worst, float(np.abs(found - expected).max()) / scale)
        same += int((found.argmax(1) == expected.argmax(1)).sum())
        voxels += expected[:, 0].size
    versions = str(onnxruntime.__version__), str(torch.__version__)
    return OnnxCheck(worst, same / voxels, _BATCHES, opset, *versions)
