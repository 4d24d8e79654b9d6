"""What nnU-Net v2 has trained: its own preprocessing, sliding window and export, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fedvox.benchmark.adapters.contract import Adapter, need_file
from fedvox.benchmark.adapters.each_case import for_each_case
from fedvox.errors import ConfigError

Fold = int | Literal["all"]


class NnunetModel(Adapter):
    """A folder of `nnUNetv2_train`, such as nnUNetTrainer__nnUNetPlans__3d_fullres.

    Attributes:
        model: the folder: dataset.json, plans.json, fold_0/checkpoint_final.pth …
        folds: that are averaged; None for all that are there.
        checkpoint: file in each fold.
        mirror: average over the flips that training used.
        overlap: share of a window that neighbours have in common.
    """

    kind: Literal["nnunet"] = "nnunet"
    model: Path
    folds: tuple[Fold, ...] | None = None
    checkpoint: str = "checkpoint_final.pth"
    mirror: bool = True
    overlap: float = Field(0.5, ge=0, lt=1)

    def predict(self, images: Path, output: Path) -> None:
        """See `Adapter`."""
        predictor = self._predictor()

        def one(case: str, channels: list[Path]) -> None:
            predictor.predict_from_files_sequential([[str(c) for c in channels]], [str(output / case)])

        for_each_case(images, one)

    def _predictor(self) -> Any:
        for name in ("dataset.json", "plans.json"):
            need_file(
                self.model / name, "the folder that nnUNetv2_train wrote, with dataset.json and plans.json"
            )
        try:
            import torch
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        except ImportError as error:
            raise ConfigError(
                f"nnU-Net cannot be imported: {error}",
                "pip install nnunetv2 where the benchmark is run, or leave this submission out.",
            ) from error
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        gpu = torch.cuda.is_available() if self.device == "auto" else self.device == "cuda"
        predictor = nnUNetPredictor(
            tile_step_size=1 - self.overlap,
            use_mirroring=self.mirror,
            perform_everything_on_device=gpu,
            device=torch.device("cuda" if gpu else "cpu"),
            allow_tqdm=False,
        )
        try:
            predictor.initialize_from_trained_model_folder(str(self.model), self.folds, self.checkpoint)
        except (OSError, RuntimeError, LookupError, AssertionError) as error:
            raise ConfigError(
                f"{self.model} cannot be loaded: {type(error).__name__}: {error}",
                f"Check `folds` and `checkpoint` ({self.checkpoint}), and that its trainer class is installed.",
            ) from error
        return predictor
