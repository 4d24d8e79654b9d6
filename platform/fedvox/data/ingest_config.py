"""What an ingest is told, with its only defaults. Imports neither numpy nor ray, so that tools read it fast."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedvox.config import Config

Format = Literal["auto", "nnunet", "msd", "totalsegmentator", "manifest"]
Size3 = tuple[float, float, float]

TOLERABLE = ("affine_mismatch", "implausible_ct", "sheared_affine", "absurd_spacing", "no_contrast")
"""Reasons for a rejection which a user may overrule."""


class SourceConfig(Config):
    """One data set to read."""

    path: str
    """Folder or manifest, local or `s3://`."""
    format: Format = "auto"
    name: str | None = None
    """Of the source; by default the folder's name, or the manifest's."""
    prefix: str = ""
    """Put before every case id, for data sets which number their cases alike."""
    channels: tuple[int, ...] | None = None
    """Which channels to keep, in this order; None for all."""
    channel_names: tuple[str, ...] | None = None
    """Of a manifest; folders name their own."""
    modality: Literal["CT", "MR", "PT", "other"] | None = None
    """Overrules what the data set says."""
    labels: dict[str, Any] | str | None = None
    """Meaning of the label values of a manifest: a mapping, or the file that holds it."""

    @field_validator("channels")
    @classmethod
    def _distinct(cls, channels: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if channels is not None and (not channels or len(set(channels)) < len(channels) or min(channels) < 0):
            raise ValueError("channels must be distinct numbers from 0")
        return channels


class IngestConfig(Config):
    """From raw volumes to a brick store."""

    sources: tuple[SourceConfig, ...] = ()
    """The data sets, joined in one store; a plain path stands for a source with its defaults."""
    output: str = ""
    """The store: a local folder or `s3://`."""
    name: str = ""
    """Of the store; by default that of its first source."""
    spacing_mm: Size3 | Literal["auto", "native"] = "auto"
    """(D, H, W): resample to this; `auto` decides by nnU-Net's rule from all cases; `native` resamples nothing."""
    label_mapping: str | None = None
    """YAML file that joins, renames or drops labels."""
    crop_to_nonzero: bool = False
    """Cut off the margin where all channels are 0 (skull-stripped or padded images)."""
    dtype: Literal["auto", "int16", "float32"] = "auto"
    """Of the stored image; `auto` keeps integers where nothing is lost and CT as int16."""
    codec: Literal["lz4", "zstd"] = "zstd"
    allow_unlabelled: bool = False
    """Accept cases without a label."""
    tolerate: tuple[str, ...] = ()
    """Reasons for a rejection to be overruled: see `TOLERABLE`."""
    strict: bool = False
    """Leave with exit code 2 when any case was rejected."""
    workers: int | Literal["auto"] = "auto"
    """Cases at a time over Ray; `auto` uses every CPU of the cluster; 0 works in this process, without Ray."""
    memory_gib: float = Field(4.0, gt=0)
    """Memory that Ray sets aside for one case."""
    retries: int = Field(2, ge=0)
    """How often a case is tried again when its worker dies."""
    contact_sheet_cases: int = Field(24, ge=0)
    """How many cases the quality-control picture shows; 0 for none."""

    @field_validator("sources", mode="before")
    @classmethod
    def _paths_are_sources(cls, sources: Any) -> Any:
        if isinstance(sources, str):
            sources = [sources]
        if isinstance(sources, (list, tuple)):
            return [{"path": source} if isinstance(source, str) else source for source in sources]
        return sources

    @field_validator("spacing_mm")
    @classmethod
    def _positive(cls, spacing: Size3 | str) -> Size3 | str:
        if not isinstance(spacing, str) and min(spacing) <= 0:
            raise ValueError("spacing_mm must be positive, in the order depth, height, width")
        return spacing

    @field_validator("tolerate")
    @classmethod
    def _tolerable(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(codes) - set(TOLERABLE))
        if unknown:
            raise ValueError(f"cannot tolerate {', '.join(unknown)}; possible: {', '.join(TOLERABLE)}")
        return codes

    @model_validator(mode="after")
    def _workers_not_negative(self) -> Self:
        if isinstance(self.workers, int) and self.workers < 0:
            raise ValueError("workers must be 0 (no Ray), a positive number, or auto")
        return self
