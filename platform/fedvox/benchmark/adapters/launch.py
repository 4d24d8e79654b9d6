"""From an adapter to a command that runs in a sandbox: Python on this package, told everything in its arguments."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fedvox.benchmark.adapters.contract import Adapter
from fedvox.benchmark.adapters.fedvox_release import FedvoxRelease
from fedvox.benchmark.adapters.monai_bundle import MonaiBundle
from fedvox.benchmark.adapters.monai_network import MonaiNetwork
from fedvox.benchmark.adapters.nnunet_model import NnunetModel
from fedvox.benchmark.volumes import list_volumes
from fedvox.config import validate

ADAPTERS: dict[str, type[Adapter]] = {
    kind.model_fields["kind"].default: kind
    for kind in (FedvoxRelease, MonaiNetwork, MonaiBundle, NnunetModel)
}
_PACKAGE = Path(__file__).resolve().parents[2]


def parse_adapter(values: Mapping[str, Any]) -> Adapter:
    """The adapter of a manifest's field.

    Raises:
        ValueError: unknown kind, or fields that its adapter refuses (`ConfigError` is one).
    """
    kind = values.get("kind")
    if kind not in ADAPTERS:
        near = difflib.get_close_matches(str(kind), ADAPTERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ADAPTERS)}"
        raise ValueError(f"there is no adapter of kind {kind!r} ({hint})")
    return validate(ADAPTERS[kind], values, source=f"adapter {kind}")


def command_of(adapter: Adapter) -> tuple[str, ...]:
    """What the sandbox runs; `{images}` and `{output}` are put in there."""
    main = Path(__file__).with_name("__main__.py")
    return (sys.executable, "-I", str(main), adapter.model_dump_json(), "{images}", "{output}")


def read_paths_of(adapter: Adapter) -> tuple[Path, ...]:
    """What that command reads besides the system and the images: this package and the model."""
    return (_PACKAGE.parent if _is_source(_PACKAGE) else _PACKAGE, *adapter.files())


def _is_source(package: Path) -> bool:
    """Whether the package lies in a source tree, whose folder has to be listed, and not among other packages."""
    return package.parent.name not in ("site-packages", "dist-packages")


def run_adapter(text: str, images: Path, output: Path) -> None:
    """Predict with the adapter that a JSON text describes, then rename labels where it says so.

    Raises:
        FedvoxError: the model cannot be used, or cases failed.
    """
    adapter = parse_adapter(json.loads(text))
    try:
        adapter.predict(images, output)
    finally:
        if adapter.relabel and any(output.glob("*.nii*")):
            relabel(output, adapter.relabel)


def relabel(folder: Path, changes: Mapping[int, int]) -> None:
    """Change labels in every label map of a folder, all at once: 1 -> 2 and 2 -> 1 exchanges them."""
    for path in list_volumes(folder).values():
        volume: Any = nib.load(path)
        found = np.asarray(volume.dataobj)
        changed = found.astype(np.uint16)
        for old, new in changes.items():
            changed[found == old] = new
        nib.save(nib.Nifti1Image(changed, volume.affine), path)
