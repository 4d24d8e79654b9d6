"""What a prediction is told, with its only defaults. Imports neither torch nor ray."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from fedvox.config import Config
from fedvox.data.ingest_config import TOLERABLE

Size3 = tuple[int, int, int]


class PredictConfig(Config):
    """From images to label maps."""

    images: str = ""
    """A folder of images (CASE_0000.nii.gz), an image, or a manifest; local or `s3://`."""
    output: str = ""
    """Folder for the label maps, local or `s3://`."""
    models: tuple[str, ...] = ()
    """Run directories or their `final` folders; several are averaged."""
    mirror: bool = True
    """Average over the flips of all axes: 8 evaluations, as in nnU-Net."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Share of a window that neighbours have in common."""
    patch_size: Size3 | None = None
    """(D, H, W) of the windows; None for that of training."""
    batch_size: int = Field(1, ge=1)
    """Windows evaluated together."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda", "cuda:1"."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 autocast on GPUs, as in training; fp32 on CPUs."""
    accumulate_on: Literal["auto", "device", "cpu"] = "auto"
    """Where logits are summed; auto: on the device while they fit."""
    logits: Literal["float32", "float16"] = "float32"
    """In which they are summed; float16 halves the memory and costs 3 digits."""
    uncertainty: bool = False
    """Also write the entropy of each voxel's classes, 0 (sure) to 1 (all alike), as CASE_uncertainty.nii.gz."""
    postprocessing: str | None = None
    """postprocessing.json of a cross-validation: which structures keep their largest component alone."""
    modality: Literal["CT", "MR", "PT", "other"] | None = None
    """Overrules what the model says of its images; CT asks for plausible Hounsfield units."""
    tolerate: tuple[str, ...] = ()
    """Reasons for a rejection that are overruled."""
    overwrite: bool = False
    """Predict again what is done."""
    workers: int | Literal["auto"] = 0
    """Over Ray: cases at a time; auto: one a GPU, or one for each `cpus_per_worker` CPUs; 0: in this process."""
    cpus_per_worker: float = Field(1.0, gt=0)
    memory_gib: float | None = Field(None, gt=0)
    """Memory that Ray sets aside for a worker; None asks for none."""
    torch_threads: int | None = Field(None, ge=1)
    """CPU threads of each process; None leaves torch's choice."""
    retries: int = Field(2, ge=0)
    """How often a case is tried again when its worker dies."""

    @field_validator("tolerate")
    @classmethod
    def _tolerable(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(codes) - set(TOLERABLE))
        if unknown:
            raise ValueError(f"cannot tolerate {', '.join(unknown)}; possible: {', '.join(TOLERABLE)}")
        return codes

    @field_validator("patch_size")
    @classmethod
    def _positive(cls, size: Size3 | None) -> Size3 | None:
        if size is not None and min(size) < 1:
            raise ValueError("every axis of a patch needs at least one voxel")
        return size

    @model_validator(mode="after")
    def _workers_not_negative(self) -> Self:
        if isinstance(self.workers, int) and self.workers < 0:
            raise ValueError("workers must be 0 (no Ray), a positive number, or auto")
        return self
