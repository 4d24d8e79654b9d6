"""Our own backbones: what `fedvox pretrain` releases."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from fedvox.benchmark.adapters.contract import Adapter


class FedvoxRelease(Adapter):
    """Released models, whose predictions are averaged.

    Attributes:
        models: run directories or their `final` folders.
        mirror: average over the flips of all axes.
        overlap: share of a window that neighbours have in common.
    """

    kind: Literal["fedvox"] = "fedvox"
    models: tuple[Path, ...] = Field(min_length=1)
    mirror: bool = True
    overlap: float = Field(0.5, ge=0, lt=1)

    def predict(self, images: Path, output: Path) -> None:
        """See `Adapter`."""
        from fedvox.benchmark.adapters.windows import predict_windows
        from fedvox.inference.ensemble import load_ensemble

        ensemble = load_ensemble([str(model) for model in self.models])
        predict_windows(
            ensemble, images, output, mirror=self.mirror, overlap=self.overlap,
            device=self.device, threads=self.threads,
        )  # fmt: skip
