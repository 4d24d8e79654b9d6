"""The images that a prior learns, and the patches that training draws from them.

Patch i is a pure function of the seed and i. What is held out, by volume or by slab, no training patch touches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedvox.data.philox import Stream, philox
from fedvox.errors import DataError
from fedvox.restoration.config import DiffusionPriorConfig, PriorDataSection, Size3
from fedvox.restoration.prior import patch_positions

FULL_SCALE = 99.8
"""Percentile of the voxels above zero that becomes 1."""
_TRIES = 20


@dataclass(frozen=True)
class TrainingVolume:
    """One image.

    Attributes:
        name: of its file.
        image: `(D, H, W)` float32, scaled.
    """

    name: str
    image: np.ndarray


@dataclass(frozen=True)
class Patches:
    """A batch for training.

    Attributes:
        clean: `(B, 1, D, H, W)`.
        noise: standard normal, of the same shape.
        sigma: `(B,)` noise levels.
        where: `(B, 3, 2)`, see `patch_positions`.
    """

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    where: Tensor

    def __len__(self) -> int:
        return len(self.clean)

    def to(self, device: torch.device) -> Patches:
        """The same on a device."""
        return Patches(
            self.clean.to(device), self.noise.to(device), self.sigma.to(device), self.where.to(device)
        )


def intensity_scale(image: np.ndarray) -> float:
    """The value that becomes 1: a high percentile of what is not background.

    Raises:
        DataError: nothing is above zero.
    """
    above = image[image > 0]
    if not above.size:
        raise DataError("the image has no voxel above zero", "Give a magnitude image.", code="empty_image")
    return float(np.percentile(above, FULL_SCALE))


def read_volumes(config: PriorDataSection) -> list[TrainingVolume]:
    """All volumes of a data section, scaled.

    Raises:
        DataError: the folder holds no NIfTI, or a volume that is not finite, negative or of several channels.
        ConfigError: the template is not installed.
    """
    if config.template is not None:
        from fedvox.data.demo import load_brain

        image = load_brain().t1
        return [TrainingVolume("mni152", np.asarray(image / intensity_scale(image), np.float32))]
    folder = Path(str(config.folder))
    files = sorted(p for p in folder.rglob("*") if p.name.endswith((".nii", ".nii.gz")))
    if not files:
        raise DataError(
            f"{folder} holds no NIfTI image",
            "Name a folder with .nii or .nii.gz files in data.folder.",
            code="no_images",
        )
    return [TrainingVolume(str(p.relative_to(folder)), magnitude(p)) for p in files]


def magnitude(path: Path) -> np.ndarray:
    """A scaled magnitude image `(D, H, W)` from a file.

    Raises:
        DataError: it cannot be read, is not finite, or has several channels.
    """
    from fedvox.data.nifti import read_nifti

    volume = read_nifti(str(path)).data
    if len(volume) != 1:
        raise DataError(
            f"{path} has {len(volume)} channels or frames",
            "Give volumes of one channel.",
            code="channels",
            file=str(path),
        )
    image = np.asarray(volume[0], np.float32)
    if not np.isfinite(image).all():
        raise DataError(
            f"{path} has non-finite voxels", "Repair or remove the file.", code="not_finite", file=str(path)
        )
    return np.asarray(image / intensity_scale(image), np.float32)


class PatchSource:
    """Draws patches for training and for validation.

    Args:
        volumes: all of them.
        config: of the training.

    Raises:
        DataError: nothing is left to train on, or nothing is held out.
    """

    def __init__(self, volumes: Sequence[TrainingVolume], config: DiffusionPriorConfig) -> None:
        self.config, data = config, config.data
        held = _held_out_volumes(volumes, data)
        self.training = [v for v in volumes if v.name not in held]
        self.validation = [v for v in volumes if v.name in held] or list(volumes)
        slices = data.patch_size[0]
        self._starts = [allowed_starts(v.image.shape[0], slices, data, held=False) for v in self.training]
        whole = bool(held) and not data.held_out
        self._held_starts = [
            np.arange(max(1, v.image.shape[0] - slices + 1))
            if whole
            else allowed_starts(v.image.shape[0], slices, data, held=True)
            for v in self.validation
        ]
        for kind, starts in (("training", self._starts), ("validation", self._held_starts)):
            if not starts or not all(len(s) for s in starts):
                raise DataError(
                    f"no patch of {slices} slices is left for {kind}",
                    "Change data.held_out, data.margin or the first axis of data.patch_size.",
                    code="nothing_left",
                )

    @property
    def digest(self) -> str:
        """Of the images in training: a resumed run must see the same."""
        sha = hashlib.sha256()
        for volume in self.training:
            sha.update(volume.name.encode() + volume.image.tobytes())
        return sha.hexdigest()

    @property
    def sigma_data(self) -> float:
        """Standard deviation of training patches."""
        drawn = [self._clean(self.training, self._starts, i, Stream.CASE)[0] for i in range(64)]
        return float(np.std(np.stack(drawn)))

    def patches(self, indices: Sequence[int]) -> Patches:
        """The training patches of these indices."""
        noise, levels = self.config.noise, []
        for i in indices:
            z = philox(self.config.seed, i, Stream.NOISE).standard_normal()
            levels.append(
                np.exp(
                    np.clip(noise.log_mean + noise.log_std * z, np.log(noise.smallest), np.log(noise.largest))
                )
            )
        return self._batch(self.training, self._starts, indices, Stream.LOCATION, levels)

    def held_out(self, sigma: float) -> Patches:
        """The validation patches, always the same, at a noise level."""
        count = self.config.validation.examples
        return self._batch(
            self.validation, self._held_starts, range(count), Stream.FOREGROUND, [sigma] * count
        )

    def _batch(
        self, volumes: Sequence[TrainingVolume], starts: Sequence[np.ndarray], indices: Sequence[int], stream: int,
        levels: Sequence[float],
    ) -> Patches:  # fmt: skip
        drawn = [self._clean(volumes, starts, i, stream) for i in indices]
        clean = torch.from_numpy(np.stack([d[0] for d in drawn]))[:, None]
        noises = [
            philox(self.config.seed, i, Stream.AUGMENT).standard_normal(clean.shape[1:], np.float32)
            for i in indices
        ]
        where = torch.stack([d[1] for d in drawn])
        return Patches(
            clean, torch.from_numpy(np.stack(noises)), torch.tensor(levels, dtype=torch.float32), where
        )

    def _clean(
        self, volumes: Sequence[TrainingVolume], starts: Sequence[np.ndarray], index: int, stream: int
    ) -> tuple[np.ndarray, Tensor]:
        data, rng = self.config.data, philox(self.config.seed, index, stream)
        which = int(rng.integers(len(volumes)))
        image, size = volumes[which].image, data.patch_size
        wants_foreground = rng.random() < data.foreground
        for _ in range(_TRIES):
            start = _draw_start(rng, starts[which], image.shape, size, data.padding)
            centre = tuple(
                min(max(s + p // 2, 0), n - 1) for s, p, n in zip(start, size, image.shape, strict=True)
            )
            if not wants_foreground or image[centre] > 0:
                break
        patch = cut(image, start, size)
        where = patch_positions(torch.tensor([start]), size, image.shape)[0]
        if data.mirror and rng.random() < 0.5:
            patch, where = patch[..., ::-1], torch.cat([where[:2], -where[2:]])
        return np.ascontiguousarray(patch), where


def allowed_starts(length: int, slices: int, config: PriorDataSection, *, held: bool) -> np.ndarray:
    """First slices of the patches that touch no held-out slab nor its margin, or that lie in one (`held`)."""
    starts = np.arange(max(1, length - slices + 1))
    inside = np.zeros(len(starts), bool)
    touching = np.zeros(len(starts), bool)
    for first, end in config.held_out:
        inside |= (starts >= first) & (starts + slices <= end)
        touching |= (starts + slices > first - config.margin) & (starts < end + config.margin)
    found: np.ndarray = starts[inside if held else ~touching]
    return found


def cut(image: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """A patch `size` of an image `(D, H, W)`, with zeros where it reaches over the edge."""
    patch = np.zeros(size, np.float32)
    source = tuple(slice(max(0, s), min(n, s + p)) for s, p, n in zip(start, size, image.shape, strict=True))
    target = tuple(slice(c.start - s, c.stop - s) for c, s in zip(source, start, strict=True))
    patch[target] = image[source]
    return patch


def _draw_start(
    rng: np.random.Generator, slices: np.ndarray, shape: Sequence[int], size: Size3, padding: int
) -> tuple[int, int, int]:
    drawn = [int(slices[rng.integers(len(slices))])]
    for length, edge in zip(shape[1:], size[1:], strict=True):
        if edge >= length:
            drawn.append(-((edge - length) // 2))  # the whole image, in the middle
        else:
            drawn.append(int(rng.integers(-padding, length - edge + padding + 1)))
    z, y, x = drawn
    return z, y, x


def _held_out_volumes(volumes: Sequence[TrainingVolume], config: PriorDataSection) -> set[str]:
    """Names of the held-out fold; empty where there is one volume only."""
    if len(volumes) < 2:
        if not config.held_out:
            raise DataError(
                "there is one volume only, and no slab of it is held out",
                "Name slabs in data.held_out.",
                code="nothing_left",
            )
        return set()
    ranked = sorted(volumes, key=lambda v: hashlib.sha256(v.name.encode()).hexdigest())
    folds = min(config.folds, len(volumes))
    return {v.name for i, v in enumerate(ranked) if i % folds == config.fold % folds}
