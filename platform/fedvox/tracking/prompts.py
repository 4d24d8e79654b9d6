"""Prompts: what a reader marks of a lesion, and the dense channels that a network sees of it.

    prompts = {1: (Point((12, 40, 33)),), 2: (Box((5, 10, 10), (9, 30, 24)), Point((7, 28, 12), positive=False))}
    channels = encode(prompts[1], shape=(24, 64, 64), spacing_mm=(3.0, 1.0, 1.0))      # (7, 24, 64, 64)

All coordinates here are voxels (D, H, W) of a volume in RAS+ order; files with other conventions are converted by
`fedvox.tracking.prompt_files`. Every kind has a channel of its own, for what belongs to the lesion and for what does
not, so that a network can tell a click from a box, and a correction from a first mark:

    point +, point -, box +, box -, scribble +, scribble -, mask

A prompt of an earlier round of corrections fades, so that the newest one speaks loudest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fedvox.errors import DataError

Voxel = tuple[float, float, float]
FloatVolume = npt.NDArray[np.float32]

CHANNELS = ("point +", "point -", "box +", "box -", "scribble +", "scribble -", "mask")


@dataclass(frozen=True)
class Point:
    """One voxel that belongs to the lesion, or does not.

    Args:
        at: (D, H, W), not necessarily whole.
        positive: it belongs to the lesion.
        round: of corrections, from 0.
    """

    at: Voxel
    positive: bool = True
    round: int = 0


@dataclass(frozen=True)
class Box:
    """A cuboid around the lesion, or one that has nothing of it.

    Args:
        start: first voxel (D, H, W).
        stop: the voxel after the last one; corners in any order are put in order.
        positive: the lesion is within.
        round: of corrections, from 0.
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    positive: bool = True
    round: int = 0

    def __post_init__(self) -> None:
        pairs = [sorted(pair) for pair in zip(self.start, self.stop, strict=True)]
        object.__setattr__(self, "start", tuple(low for low, _ in pairs))
        object.__setattr__(self, "stop", tuple(high for _, high in pairs))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """To index a volume with."""
        d, h, w = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return d, h, w


@dataclass(frozen=True)
class Scribble:
    """A stroke: the straight lines between successive points.

    Args:
        through: points (D, H, W), at least one.
        positive: it runs within the lesion.
        round: of corrections, from 0.
    """

    through: tuple[Voxel, ...]
    positive: bool = True
    round: int = 0

    def points(self) -> npt.NDArray[np.float64]:
        """Points along the stroke, no further apart than half a voxel: (n, 3)."""
        knots = np.asarray(self.through, dtype=np.float64)
        parts = [knots[:1]]
        for start, stop in pairwise(knots):
            count = int(np.ceil(2 * np.abs(stop - start).max()))
            parts.append(start + (stop - start) * (np.arange(1, count + 1) / max(count, 1))[:, None])
        return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Mask:
    """A segmentation to start from: of this scan, or carried here from another one.

    Args:
        volume: bool (D, H, W).
        round: of corrections, from 0.
    """

    volume: npt.NDArray[np.bool_]
    round: int = 0


Prompt: TypeAlias = Point | Box | Scribble | Mask
LesionPrompts: TypeAlias = Mapping[int, Sequence[Prompt]]


@dataclass(frozen=True)
class PromptEncoding:
    """How prompts become channels.

    Args:
        point: `ball` is 1 within the radius; `gaussian` falls off from 1 at the point, its standard deviation being
            half the radius.
        radius_mm: of points; strokes have half of it. The nearest voxel always counts, however thick the slices.
        decay: a prompt of k rounds ago counts decay^k.
        dense: False leaves all channels empty: of the prompts, a network knows where its patch is and no more.
        prior: weight of the random walker's answer in the network's, in logits: the network learns what to add to it.
    """

    point: Literal["ball", "gaussian"] = "ball"
    radius_mm: float = 4.0
    decay: float = 0.9
    dense: bool = True
    prior: float = 1.0

    def __post_init__(self) -> None:
        if self.radius_mm <= 0 or not 0 < self.decay <= 1 or self.point not in ("ball", "gaussian"):
            raise DataError(
                f"prompt encoding {self}: the radius must be positive, the decay in (0, 1], the point ball or gaussian",
                "Correct the named field.",
                code="prompt_encoding",
            )


def encode(
    prompts: Sequence[Prompt],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    encoding: PromptEncoding = PromptEncoding(),
) -> FloatVolume:
    """The channels of one lesion's prompts.

    Args:
        prompts: on the grid of `shape`; parts that lie outside are cut off (see `check_prompts` to refuse them).
        shape: (D, H, W).
        spacing_mm: (D, H, W).
        encoding: see there.

    Returns:
        (7, D, H, W) float32 in [0, 1], in the order of `CHANNELS`.
    """
    channels = np.zeros((len(CHANNELS), *shape), dtype=np.float32)
    if not encoding.dense:
        return channels
    newest = max((prompt.round for prompt in prompts), default=0)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    for prompt in prompts:
        weight = encoding.decay ** (newest - prompt.round)
        if isinstance(prompt, Mask):
            np.maximum(channels[6], weight * prompt.volume, out=channels[6], casting="same_kind")
            continue
        channel = channels[_channel(prompt)]
        if isinstance(prompt, Box):
            region = channel[prompt.slices]
            np.maximum(region, weight, out=region)
        elif isinstance(prompt, Point):
            _stamp(channel, np.asarray(prompt.at), spacing, encoding.radius_mm, encoding.point, weight)
        else:
            for point in prompt.points():
                _stamp(channel, point, spacing, encoding.radius_mm / 2, encoding.point, weight)
    return channels


def _channel(prompt: Point | Box | Scribble) -> int:
    first = {Point: 0, Box: 2, Scribble: 4}[type(prompt)]
    return first if prompt.positive else first + 1


def _stamp(
    channel: FloatVolume,
    at: npt.NDArray[np.float64],
    spacing: npt.NDArray[np.float64],
    radius_mm: float,
    kind: str,
    weight: float,
) -> None:
    """Raises the channel to `weight` times a ball or bell around a point."""
    reach = radius_mm if kind == "ball" else 1.5 * radius_mm  # three standard deviations
    low = np.maximum(np.floor(at - reach / spacing), 0).astype(int)
    high = np.minimum(np.ceil(at + reach / spacing) + 1, channel.shape).astype(int)
    if (low >= high).any():
        return
    axes = [(np.arange(a, b) - p) * s for a, b, p, s in zip(low, high, at, spacing, strict=True)]
    squared = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2
    if kind == "ball":
        bell = (squared <= radius_mm**2 * (1 + 1e-9)).astype(np.float32)
    else:
        bell = np.exp(-squared / (2 * (radius_mm / 2) ** 2)).astype(np.float32)
    region = channel[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    np.maximum(region, weight * bell, out=region)
    nearest = tuple(np.rint(at).astype(int))
    if all(0 <= n < size for n, size in zip(nearest, channel.shape, strict=True)):
        channel[nearest] = max(float(channel[nearest]), weight)


def extent(prompts: Sequence[Prompt]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The box of everything that the prompts mark, negative ones included: first voxel, and one after the last.

    Raises:
        DataError: there is no prompt.
    """
    lows, highs = [], []
    for prompt in prompts:
        if isinstance(prompt, Box):
            low, high = np.asarray(prompt.start), np.asarray(prompt.stop)
        elif isinstance(prompt, Mask):
            low, high = _box_of(prompt.volume)
        else:
            points = np.asarray([prompt.at] if isinstance(prompt, Point) else prompt.through)
            low, high = np.rint(points.min(0)).astype(int), np.rint(points.max(0)).astype(int) + 1
        lows.append(low)
        highs.append(high)
    if not lows:
        raise DataError("a lesion has no prompt", "Give it a point, box, scribble or mask.", code="no_prompt")
    return np.min(lows, axis=0).astype(np.int64), np.max(highs, axis=0).astype(np.int64)


def _box_of(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    axes = ((1, 2), (0, 2), (0, 1))
    used = [np.flatnonzero(mask.any(axis=others)) for others in axes]
    if not used[0].size:
        raise _empty("a mask prompt")
    return np.array([u[0] for u in used]), np.array([u[-1] + 1 for u in used])


def cropped(prompts: Sequence[Prompt], start: Sequence[int], shape: Sequence[int]) -> tuple[Prompt, ...]:
    """The same prompts on the grid of a box of the volume.

    Args:
        prompts: on the whole grid.
        start: first voxel (D, H, W) of the box; may be negative, where the box is padded.
        shape: (D, H, W) of the box.
    """
    return tuple(_moved(prompt, np.asarray(start), tuple(shape)) for prompt in prompts)


def _moved(prompt: Prompt, start: npt.NDArray[Any], shape: tuple[int, ...]) -> Prompt:
    if isinstance(prompt, Mask):
        return replace(prompt, volume=crop(prompt.volume, start.tolist(), shape, fill=False))
    if isinstance(prompt, Box):
        low = np.clip(np.asarray(prompt.start) - start, 0, shape)
        high = np.clip(np.asarray(prompt.stop) - start, 0, shape)
        return replace(prompt, start=_whole(low), stop=_whole(high))
    if isinstance(prompt, Point):
        return replace(prompt, at=_three(np.asarray(prompt.at) - start))
    return replace(prompt, through=tuple(_three(np.asarray(p) - start) for p in prompt.through))


def crop(volume: np.ndarray, start: Sequence[int], shape: Sequence[int], *, fill: float) -> np.ndarray:
    """A box of a volume, filled up where it reaches beyond.

    Args:
        volume: (..., D, H, W).
        start: first voxel (D, H, W); may be negative.
        shape: (D, H, W) of the box.
        fill: for voxels outside of the volume.
    """
    result = np.full((*volume.shape[:-3], *shape), fill, dtype=volume.dtype)
    source: list[slice] = []
    target: list[slice] = []
    for first, size, whole in zip(start, shape, volume.shape[-3:], strict=True):
        low, high = max(0, int(first)), min(whole, int(first) + int(size))
        source.append(slice(low, max(low, high)))
        target.append(slice(low - int(first), max(low, high) - int(first)))
    lead = (slice(None),) * (volume.ndim - 3)
    result[(*lead, *target)] = volume[(*lead, *source)]
    return result


def check_prompts(prompts: LesionPrompts, shape: Sequence[int], *, source: str) -> None:
    """Refuses prompts that no segmentation can start from.

    Args:
        prompts: lesion id -> prompts.
        shape: (D, H, W) of the volume.
        source: names the prompts in messages.

    Raises:
        DataError: no lesion at all or one without a prompt (no_prompt), an id below 1 (bad_id), a point or a box
            outside of the volume (outside_volume), a box or mask without a voxel (empty_prompt), a mask of another
            shape (shape_mismatch), a lesion with negative prompts alone (no_prompt).
    """
    if not prompts:
        raise _refused(source, "names no lesion", "Mark at least one.", "no_prompt")
    for lesion, given in prompts.items():
        if lesion < 1:
            raise _refused(source, f"has the lesion id {lesion}", "Number lesions from 1.", "bad_id")
        for prompt in given:
            _check(prompt, tuple(shape), f"{source}: lesion {lesion}")
        if not any(isinstance(prompt, Mask) or prompt.positive for prompt in given):
            raise _refused(
                f"{source}: lesion {lesion}",
                "has no prompt that says where it is",
                "Add a positive point, box, scribble or mask.",
                "no_prompt",
            )


def _check(prompt: Prompt, shape: tuple[int, ...], name: str) -> None:
    if isinstance(prompt, Mask):
        if prompt.volume.shape != shape:
            found = f"has a mask of {prompt.volume.shape} voxels (D, H, W), the image has {shape}"
            raise _refused(name, found, "Resample the mask onto the image's grid.", "shape_mismatch")
        if not prompt.volume.any():
            raise _empty(f"{name}: the mask")
        return
    if isinstance(prompt, Box):
        if any(a == b for a, b in zip(prompt.start, prompt.stop, strict=True)):
            raise _empty(f"{name}: the box {prompt.start} to {prompt.stop}")
        inside = all(a >= 0 and b <= n for a, b, n in zip(prompt.start, prompt.stop, shape, strict=True))
        where = f"box {prompt.start} to {prompt.stop}"
    else:
        points = np.asarray([prompt.at] if isinstance(prompt, Point) else prompt.through, dtype=np.float64)
        if not points.size:
            raise _empty(f"{name}: the scribble")
        inside = bool(
            np.isfinite(points).all() and (points >= -0.5).all() and (points <= np.array(shape) - 0.5).all()
        )
        where = f"{type(prompt).__name__.lower()} {tuple(np.round(points[0], 2).tolist())}"
    if not inside:
        raise _refused(
            name,
            f"has its {where} outside of the volume of {shape} voxels (D, H, W)",
            "Check the coordinate space: voxel-zyx, voxel-xyz or world-ras.",
            "outside_volume",
        )


def _empty(name: str) -> DataError:
    return _refused(name, "marks no voxel", "Mark the lesion, or leave it out.", "empty_prompt")


def _refused(name: str, found: str, remedy: str, code: str) -> DataError:
    return DataError(f"{name} {found}", remedy, code=code)


def _three(values: npt.NDArray[Any]) -> Voxel:
    d, h, w = (float(v) for v in values)
    return d, h, w


def _whole(values: npt.NDArray[Any]) -> tuple[int, int, int]:
    d, h, w = (int(v) for v in values)
    return d, h, w
