"""How a model wants its input: what `model.json` says, as something that can be compared and carried out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

from fedvox.data.intensity import ChannelIntensity
from fedvox.data.records import StoreMeta
from fedvox.errors import CheckpointError
from fedvox.inference.windows import Size3
from fedvox.training.release import ModelInfo

Order = Literal["resample_first", "normalize_first"]


@dataclass(frozen=True)
class Recipe:
    """The grid and the intensities of a network's input. Models with the same recipe share one prepared image.

    Attributes:
        spacing_mm: (D, H, W) to resample to; None keeps each case's own.
        patch_size: (D, H, W) of a window.
        normalization: "ct" or "zscore"; see `fedvox.data.normalize`.
        intensity: the data set's statistics, one entry a channel; "ct" needs them.
        crop_to_nonzero: cut off the margin where all channels are 0.
        order: stores are resampled and then normalised patch by patch; nnU-Net normalises first.
        pad_value: what windows see beyond the volume; None for each channel's minimum. nnU-Net pads with 0.
    """

    spacing_mm: tuple[float, float, float] | None
    patch_size: Size3
    normalization: str
    intensity: tuple[ChannelIntensity, ...] = ()
    crop_to_nonzero: bool = False
    order: Order = "resample_first"
    pad_value: float | None = None

    @classmethod
    def of(cls, info: ModelInfo, *, patch_size: Size3 | None = None) -> Recipe:
        """The recipe in a release.

        Args:
            info: content of model.json.
            patch_size: (D, H, W) of the windows; None for that of training.

        Raises:
            CheckpointError: the intensities are not readable.
        """
        try:
            intensity = tuple(_channel(channel) for channel in info.intensity or ())
        except TypeError as error:
            raise CheckpointError(
                f"model.json: intensity is not readable: {error}", "Export the model again."
            ) from error
        depth, height, width = patch_size or info.patch_size
        return cls(
            spacing_mm=info.spacing_mm,
            patch_size=(depth, height, width),
            normalization=info.normalization,
            intensity=intensity,
            crop_to_nonzero=info.crop_to_nonzero,
        )

    def meta(self, channel_names: tuple[str, ...], modality: str) -> StoreMeta:
        """What `fedvox.data.normalize` wants to know."""
        return StoreMeta(
            name="prediction",
            channel_names=channel_names,
            modality=modality,
            structures=("background",),
            label_sets={},
            normalization=self.normalization,
            spacing_mm=self.spacing_mm,
            intensity=self.intensity,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def _channel(value: Any) -> ChannelIntensity:
    return value if is_dataclass(value) else ChannelIntensity(**value)  # type: ignore[return-value]
