"""A MONAI bundle: its network, transforms and inferer, as its own inference configuration wires them.

Of `configs/inference.json` (or .yaml) only the parts that make a prediction are built: `network_def`, `preprocessing`,
`inferer` and `postprocessing`. Its evaluator, data loader and handlers are not, so that neither ignite nor its data set
need to be there. A configuration can hold expressions of Python: it is the submitter's program, and runs like one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from pydantic import Field

from fedvox.benchmark.adapters.contract import Adapter, fill, need_file
from fedvox.benchmark.adapters.each_case import for_each_case
from fedvox.errors import ConfigError, DataError

PARTS = ("network_def", "preprocessing", "inferer", "postprocessing")


class MonaiBundle(Adapter):
    """A bundle's folder.

    Attributes:
        bundle: with configs/ and models/.
        config: the inference configuration in it.
        weights: the state dict in it; "" if `network_def` loads its own.
        overrides: changes to the configuration, `part#field` -> value.
    """

    kind: Literal["monai-bundle"] = "monai-bundle"
    bundle: Path
    config: str = "configs/inference.json"
    weights: str = "models/model.pt"
    overrides: dict[str, Any] = Field(default_factory=dict)

    def predict(self, images: Path, output: Path) -> None:
        """See `Adapter`."""
        saved = output / ".bundle"
        saved.mkdir()
        network, preprocessing, inferer, postprocessing = self._parts(saved)

        def one(case: str, channels: list[Path]) -> None:
            import torch
            from monai.data.meta_tensor import MetaTensor

            files = [str(c) for c in channels]
            data = preprocessing({"image": files[0] if len(files) == 1 else files})
            image = data["image"]
            with torch.no_grad():
                found = inferer(torch.as_tensor(image)[None].to(self._device()), network)[0].cpu()
            meta = {"meta": image.meta, "applied_operations": image.applied_operations}
            result = postprocessing({**data, "pred": MetaTensor(torch.as_tensor(found), **meta)})
            write_labels(result["pred"], saved, files[0], output / f"{case}.nii.gz")

        for_each_case(images, one)

    def _device(self) -> Any:
        import torch

        gpu = torch.cuda.is_available() if self.device == "auto" else self.device == "cuda"
        return torch.device("cuda" if gpu else "cpu")

    def _parts(self, saved: Path) -> list[Any]:
        """Network with weights, preprocessing, inferer, postprocessing."""
        file = need_file(self.bundle / self.config, "the bundle's inference configuration (`config`)")
        try:
            import torch
            from monai.bundle.config_parser import ConfigParser
        except ImportError as error:
            raise ConfigError(
                f"MONAI cannot be imported: {error}", "pip install monai, or leave this submission out."
            ) from error
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        parser = ConfigParser()
        parser.read_config(str(file))
        parser.update({"bundle_root": str(self.bundle), "output_dir": str(saved), **self.overrides})
        if missing := [part for part in PARTS if part not in parser]:
            raise ConfigError(
                f"{file} does not define {', '.join(missing)}",
                f"A bundle's inference configuration needs {', '.join(PARTS)}.",
            )
        try:
            network, *others = (parser.get_parsed_content(part) for part in PARTS)
        except Exception as error:  # the configuration may raise whatever it likes
            raise ConfigError(f"{file}: {error}", "Mend it, or use `overrides`.") from error
        if self.weights:
            fill(network, self.bundle / self.weights)
        return [network.to(self._device()).eval(), *others]


def write_labels(predicted: Any, saved: Path, image: str, target: Path) -> None:
    """Write a label map as integers: the file that the bundle saved, else what its postprocessing returned.

    Raises:
        DataError: it is not a label map.
    """
    stem = Path(image).name.split(".nii")[0]
    files = sorted(p for p in saved.rglob("*.nii*") if p.name.startswith(stem))
    if files:
        volume: Any = nib.load(files[-1])
        values, affine = np.asarray(volume.dataobj), volume.affine
    else:
        values, affine = np.asarray(predicted), np.asarray(predicted.affine)
    if values.ndim == 4 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 3 or not np.array_equal(values, np.rint(values)):
        raise DataError(
            f"the bundle's postprocessing gives {values.shape} of {values.dtype}, not a map of labels",
            "End it with AsDiscreted(argmax) or a threshold.",
        )
    dtype = np.uint8 if values.max() < 256 else np.uint16
    nib.save(nib.Nifti1Image(values.astype(dtype), affine), target)
    for file in files:
        file.unlink()
