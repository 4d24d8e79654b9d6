"""Ways to segment one marked lesion; all take the same request, so that they can be compared and exchanged.

    segment = build_segmenter("random-walker")
    mask = segment(Request(image, spacing_mm, prompts))

`region-growing` and `random-walker` are the classical peers of a trained network; `carried` takes the mask prompt as it
is (what registration alone gives); `fedvox.tracking.network` has the trained one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy.ndimage import (
    binary_closing,
    binary_dilation,
    binary_erosion,
    distance_transform_edt,
    gaussian_filter,
)
from skimage.segmentation import random_walker

from fedvox.errors import ConfigError
from fedvox.tracking.prompts import Box, Mask, Point, Prompt, Scribble, crop, cropped, encode, extent

BoolVolume = npt.NDArray[np.bool_]

_RADIUS_MM = 3.0  # of a click, as seed
_MARGIN_MM = 14.0  # around all prompts: how far the classical peers look
_WIDE = 2.5  # deviations from the seed's mean that region growing accepts where there are no surroundings
_BETA = 400.0  # of the random walker: how much an edge hinders; 130, as usual, leaks in noise
_CONTRAST = 0.5  # deviations of the surroundings by which a lesion must differ from them to be there at all


@dataclass(frozen=True, eq=False)
class Request:
    """One lesion to segment.

    Args:
        image: (D, H, W), any real type.
        spacing_mm: (D, H, W).
        prompts: on the image's grid, checked (`check_prompts`).
    """

    image: npt.NDArray[np.generic]
    spacing_mm: tuple[float, float, float]
    prompts: Sequence[Prompt]


Segmenter = Callable[[Request], BoolVolume]
"""Gives the lesion's mask, bool (D, H, W); an empty one where it sees no lesion."""


def build_segmenter(name: str) -> Segmenter:
    """A classical segmenter by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in SEGMENTERS:
        raise ConfigError(f"there is no segmenter {name!r}", f"Known: {', '.join(SEGMENTERS)}.")
    return SEGMENTERS[name]


def carried(request: Request) -> BoolVolume:
    """The mask prompt as it is: what registration alone makes of a lesion.

    Raises:
        ConfigError: there is no mask prompt.
    """
    masks = [p.volume for p in request.prompts if isinstance(p, Mask)]
    if not masks:
        raise ConfigError(
            "the segmenter `carried` has no mask to take", "Give a mask, or choose another segmenter."
        )
    return np.asarray(np.logical_or.reduce(masks))


def region_growing(request: Request) -> BoolVolume:
    """Voxels as bright as the seed, connected to it, within reach of the prompts."""
    look = _Window.of(request)
    if not look.is_visible():
        return np.zeros(request.image.shape, dtype=bool)
    smooth = gaussian_filter(look.image, 0.6)
    inside, outside = smooth[look.seed], smooth[look.surroundings]
    middle = float(inside.mean())
    apart = abs(middle - float(np.median(outside))) if outside.size else _WIDE * 2 * float(inside.std())
    width = apart / 2  # half the way to the surroundings is where a blurred edge is
    alike = (np.abs(smooth - middle) <= width) & look.reach
    grown = _connected(alike | look.seed, look.seed)
    return look.whole(binary_closing(grown, iterations=1) & look.reach)


def random_walk(request: Request) -> BoolVolume:
    """Where a random walker that shuns edges meets the lesion's seed before the background's (Grady 2006)."""
    look = _Window.of(request)
    if not look.is_visible():
        return np.zeros(request.image.shape, dtype=bool)
    markers = np.zeros(look.image.shape, dtype=np.int8)
    markers[~look.reach] = 2
    markers[look.no] = 2
    markers[look.seed] = 1
    if not (markers == 2).any():
        return look.whole(look.reach)
    low, high = (float(v) for v in np.percentile(look.image, [1, 99]))
    scaled = np.clip((look.image - low) / max(high - low, 1e-6), 0, 1)
    spacing = np.asarray(request.spacing_mm) / min(request.spacing_mm)
    found = random_walker(scaled, markers, beta=_BETA, mode="cg_j", tol=1e-5, prob_tol=0.1, spacing=spacing)
    return look.whole(_connected(found == 1, look.seed))


SEGMENTERS: dict[str, Segmenter] = {
    "region-growing": region_growing,
    "random-walker": random_walk,
    "carried": carried,
}


@dataclass(frozen=True, eq=False)
class _Window:
    """The part of an image around the prompts, and what they say of it.

    Args:
        start: first voxel (D, H, W) of the part.
        shape: of the whole image.
        image: the part, float32.
        seed: bool, certainly lesion.
        no: bool, certainly not.
        reach: bool, where the lesion can be.
        surroundings: bool, most likely not lesion.
        has_mask: the prompts hold a mask carried from elsewhere, so the lesion may be gone.
    """

    start: npt.NDArray[np.int64]
    shape: tuple[int, ...]
    image: npt.NDArray[np.float32]
    seed: BoolVolume
    no: BoolVolume
    reach: BoolVolume
    surroundings: BoolVolume
    has_mask: bool

    @classmethod
    def of(cls, request: Request) -> _Window:
        spacing = np.asarray(request.spacing_mm)
        pad = np.ceil(_MARGIN_MM / spacing).astype(int)
        low, high = extent(request.prompts)
        start = np.maximum(low - pad, 0)
        stop = np.minimum(high + pad, request.image.shape)
        shape = (stop - start).tolist()
        prompts = cropped(request.prompts, start.tolist(), shape)
        image = crop(request.image.astype(np.float32), start.tolist(), shape, fill=0.0)
        seed, no = _seeds(prompts, request.spacing_mm, image.shape)
        reach = _reach(prompts, request.spacing_mm, image.shape) & ~no
        masks = [p.volume for p in prompts if isinstance(p, Mask)]
        known = np.logical_or.reduce(masks) if masks else seed
        for prompt in prompts:
            if isinstance(prompt, Box) and prompt.positive:
                known = known.copy()
                known[prompt.slices] = True
        near = distance_transform_edt(~known, sampling=request.spacing_mm)
        shell = (near > 0.5 * _RADIUS_MM) & (near <= 2.5 * _RADIUS_MM)
        return cls(start, request.image.shape, image, seed, no, reach, shell & ~seed, bool(masks))

    def is_visible(self) -> bool:
        """Whether the seed differs from what is around; a lesion that the reader marks here and now is there."""
        if not self.has_mask or not self.surroundings.any():
            return bool(self.seed.any())
        around = self.image[self.surroundings]
        apart = abs(float(self.image[self.seed].mean()) - float(np.median(around)))
        return apart > _CONTRAST * float(around.std())

    def whole(self, part: BoolVolume) -> BoolVolume:
        """A mask of the whole image."""
        result = np.zeros(self.shape, dtype=bool)
        result[tuple(slice(a, a + n) for a, n in zip(self.start, part.shape, strict=True))] = part
        return result


def _seeds(
    prompts: Sequence[Prompt], spacing_mm: tuple[float, float, float], shape: tuple[int, ...]
) -> tuple[BoolVolume, BoolVolume]:
    """What is certainly lesion, and what is certainly not.

    Clicks and strokes are taken at their word; of a box the inner third, of a mask the deepest part.
    """
    channels = encode(prompts, shape, spacing_mm) > 0
    no = channels[1] | channels[3] | channels[5]
    seed = (channels[0] | channels[4]) & ~no
    if seed.any():
        return seed, no
    for prompt in prompts:
        if isinstance(prompt, Box) and prompt.positive:
            third = [(b - a) / 3 for a, b in zip(prompt.start, prompt.stop, strict=True)]
            inner = tuple(
                slice(int(a + t), max(int(np.ceil(b - t)), int(a + t) + 1))
                for a, b, t in zip(prompt.start, prompt.stop, third, strict=True)
            )
            seed[inner] = True
        elif isinstance(prompt, Mask) and prompt.volume.any():
            depth = distance_transform_edt(np.pad(prompt.volume, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
            seed |= depth >= 0.6 * depth.max()
    kept: BoolVolume = seed & ~no
    return kept, no


def _reach(
    prompts: Sequence[Prompt], spacing_mm: tuple[float, float, float], shape: tuple[int, ...]
) -> BoolVolume:
    """Where the lesion can be: in a box, near a mask, within the window of a click."""
    reach = np.zeros(shape, dtype=bool)
    bounded = False
    for prompt in prompts:
        if isinstance(prompt, Box) and prompt.positive:
            reach[prompt.slices] = True
            bounded = True
        elif isinstance(prompt, Mask):
            apart = distance_transform_edt(~prompt.volume, sampling=spacing_mm)
            radius = (3 * prompt.volume.sum() * float(np.prod(spacing_mm)) / (4 * np.pi)) ** (1 / 3)
            reach |= apart <= max(3.0, 0.6 * radius)
            bounded = True
    if bounded:
        marks = [p for p in prompts if isinstance(p, Point | Scribble)]
        reach |= encode(marks, shape, spacing_mm)[[0, 4]].max(0) > 0
        return reach
    inner = np.zeros(shape, dtype=bool)
    inner[tuple(slice(1, max(2, n - 1)) for n in shape)] = True
    return inner


def _connected(mask: BoolVolume, seed: BoolVolume) -> BoolVolume:
    """The components of a mask that touch the seed."""
    parts = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=6)
    kept = np.unique(parts[seed & mask])
    return np.asarray(np.isin(parts, kept[kept > 0]))


def unprompted(
    image: npt.NDArray[np.generic],
    spacing_mm: tuple[float, float, float],
    *,
    deviations: float = 3.0,
    min_volume_mm3: float = 50.0,
) -> npt.NDArray[np.int32]:
    """Lesions without a prompt: blobs that differ from the tissue around them.

    Args:
        image: (D, H, W).
        spacing_mm: (D, H, W).
        deviations: of foreground tissue by which a blob must differ.
        min_volume_mm3: smaller blobs are noise.

    Returns:
        (D, H, W) instances from 1.
    """
    values = image.astype(np.float32)
    front = values > values.mean()
    front = binary_erosion(binary_closing(front, iterations=2, border_value=0), iterations=2)
    if not front.any():
        return np.zeros(image.shape, dtype=np.int32)
    weight = front.astype(np.float32)
    wide = [15.0 / s for s in spacing_mm]
    local = gaussian_filter(values * weight, wide) / np.maximum(gaussian_filter(weight, wide), 1e-3)
    apart = gaussian_filter(values, [1.5 / s for s in spacing_mm]) - local
    spread = float(np.median(np.abs(apart[front]))) * 1.4826
    blobs = front & (np.abs(apart) > deviations * max(spread, 1e-6))
    blobs = binary_dilation(blobs) & front
    parts = cc3d.connected_components(np.ascontiguousarray(blobs), connectivity=26)
    sizes = np.bincount(parts.reshape(-1)) * float(np.prod(spacing_mm))
    keep = np.flatnonzero(sizes >= min_volume_mm3)
    numbers = np.zeros(len(sizes), dtype=np.int32)
    numbers[keep[keep > 0]] = np.arange(1, np.count_nonzero(keep > 0) + 1)
    return np.asarray(numbers[parts])
