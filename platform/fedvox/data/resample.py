"""Resampling of images and label maps: nnU-Net's result, in float32 and in a bounded amount of memory.

    image   cubic B-spline, edges repeated, clipped to the input's range; along a much coarser axis (spacing
            ratio above 3) the nearest slice is taken and only the slices are interpolated
    label   arg-max of the trilinearly interpolated indicator of each label; the same coarse-axis rule

Why it is fast. Interpolation on a regular grid is separable and linear, spline prefilter included, so an
axis is one banded matrix. The impulse response of the prefilter decays as 0.268^|n|, so that 12 neighbours on
either side hold it to 1e-7. `axis_blocks` cuts the band into small dense matrices, and each axis becomes a
handful of float32 matrix products.

Why it is small. Slices are interpolated in-plane once, kept in a window just as tall as the band, and
combined into a block of output slices. Beside input and output nothing grows with the number of slices
(s: input slices per output slice):

    input (D, H, W) --in-plane--> window (16 s + 27, H', W') --along D--> 16 output slices (H', W')

Why labels cost the same for 2 and for 200 structures. A voxel's result depends on its 8 surrounding labels
alone, and where these agree (almost everywhere) there is nothing to compute.

Sources: Unser 1999, "Splines: a perfect fit for signal and image processing", eq. 13-16; Isensee et al. 2021,
nnU-Net, supplementary note 4 (resampling and its anisotropy rule).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ANISOTROPY_THRESHOLD = 3.0
"""Spacing ratio above which an axis is interpolated on its own (nnU-Net's constant)."""

_POLE = np.sqrt(3.0) - 2.0  # of the cubic B-spline's inverse filter
_REACH = 12  # neighbours kept of its impulse response: |pole|^12 = 1.4e-7
_BLOCK = 32  # output samples a matrix: small enough to stay banded, large enough for BLAS
_SLAB = 16  # output slices written at a time
_TIE = 1e-9  # label weights closer than this are equal

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class AxisBlock:
    """A run of output samples along one axis, as a dense matrix over the input samples they depend on."""

    target: slice
    source: slice
    weights: Float32  # (target, source)


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_spacing_mm: Sequence[float]
) -> tuple[int, int, int]:
    """Shape of a volume after resampling: `round(shape · spacing / target)`, at least one voxel an axis."""
    exact = (n * s / t for n, s, t in zip(shape, spacing_mm, target_spacing_mm, strict=True))
    depth, height, width = (max(1, round(n)) for n in exact)
    return depth, height, width


def coarse_axis(spacing_mm: Sequence[float], target_spacing_mm: Sequence[float] | None = None) -> int | None:
    """The axis to be handled slice by slice, if any.

    The current spacing decides, then the target's. Two equally coarse axes (0.2 × 1.2 × 1.2 mm) are no stack
    of slices, and are interpolated in 3D.
    """
    for spacing in (spacing_mm, target_spacing_mm):
        if spacing is None or max(spacing) <= ANISOTROPY_THRESHOLD * min(spacing):
            continue
        coarse = [axis for axis, s in enumerate(spacing) if s == max(spacing)]
        return coarse[0] if len(coarse) == 1 else None
    return None


def resample_image(
    volume: np.ndarray,
    shape: tuple[int, int, int],
    *,
    slice_axis: int | None = None,
    order: int = 3,
    dtype: np.dtype[np.generic] | None = None,
) -> np.ndarray:
    """Resamples one channel.

    Args:
        volume: (D, H, W), any real type.
        shape: the wanted (D', H', W').
        slice_axis: see `coarse_axis`; along it the nearest slice is taken.
        order: 3 (cubic B-spline), 1 (linear) or 0 (nearest).
        dtype: of the result, float32 by default; integers are rounded.

    Shape: (D, H, W) -> shape. Values stay within the input's range (the slice's range with `slice_axis`).
    """
    result = np.empty(shape, dtype=dtype or np.float32)
    if volume.shape == tuple(shape):
        for plane, kept in zip(volume, result, strict=True):  # by slices: no second volume in another type
            _store(kept, plane)
        return result
    axis = slice_axis or 0
    source, target = np.moveaxis(volume, axis, 0), np.moveaxis(result, axis, 0)
    if slice_axis is None:
        bounds = np.float32(volume.min()), np.float32(volume.max())
        for block, slab in _slabs_3d(source, target.shape, order):
            _store(target[block], np.clip(slab, *bounds, out=slab))
    else:
        for index, image in _slices_2d(source, target.shape, order):
            _store(target[index], image)
    return result


def resample_label(
    label: np.ndarray, shape: tuple[int, int, int], *, slice_axis: int | None = None
) -> np.ndarray:
    """Resamples a label map by the arg-max over labels of each one's linearly interpolated indicator.

    Where two labels share the top weight exactly, the nearest voxel's label wins if it is one of them, else
    the smallest. The cost does not depend on the number of labels.

    Shape: (D, H, W) -> shape, same dtype.
    """
    if label.shape == tuple(shape):
        return label.copy()
    result = np.empty(shape, dtype=label.dtype)
    axis = slice_axis or 0
    source, target = np.moveaxis(label, axis, 0), np.moveaxis(result, axis, 0)
    depth, height, width = (
        _Corners.of(n, m, nearest=(i == 0 and slice_axis is not None))
        for i, (n, m) in enumerate(zip(source.shape, target.shape, strict=True))
    )
    previous: tuple[int, int] | None = None
    pair: _SlicePair | None = None
    for index in range(len(depth.lower)):
        ends = int(depth.lower[index]), int(depth.upper[index])
        if pair is None or ends != previous:  # output slices between the same two input slices share the work
            pair, previous = _SlicePair.of(source[ends[0]], source[ends[1]], height, width), ends
        target[index] = pair.interpolate(float(depth.weight[index]))
    return result


# ---- images: an axis is a banded matrix ------------------------------------------------------------------


def axis_blocks(size: int, new_size: int, order: int, block: int = _BLOCK) -> tuple[AxisBlock, ...]:
    """The resampling of one axis as small dense matrices along the band.

    The outer edges of the two grids coincide: output sample o lies at `(o + 0.5)·size/new_size - 0.5`.

    Args:
        size: samples of the input.
        new_size: samples of the output.
        order: 0, 1 or 3.
        block: output samples per matrix.
    """
    starts = range(0, new_size, block)
    return tuple(_axis_block(size, new_size, order, start, min(start + block, new_size)) for start in starts)


def _axis_block(size: int, new_size: int, order: int, start: int, stop: int) -> AxisBlock:
    position = _positions(size, new_size)[start:stop]
    first, taps = _taps(position, order)
    knots = np.arange(int(first.min()), int(first.max()) + taps.shape[1])
    weights = np.zeros((len(position), len(knots)))
    columns = first[:, None] - knots[0] + np.arange(taps.shape[1])
    np.put_along_axis(weights, columns, taps, axis=1)
    if order == 3:
        weights, knots = _through_prefilter(weights, knots)
    inside = np.clip(knots, 0, size - 1)  # edge voxels repeat beyond the border
    low = int(inside.min())
    folded = np.zeros((len(position), int(inside.max()) + 1 - low))
    for column, weight in zip(inside - low, weights.T, strict=True):
        folded[:, column] += weight
    folded /= folded.sum(axis=1, keepdims=True)
    return AxisBlock(slice(start, stop), slice(low, low + folded.shape[1]), folded.astype(np.float32))


def _positions(size: int, new_size: int) -> NDArray[np.float64]:
    return (np.arange(new_size, dtype=np.float64) + 0.5) * (size / new_size) - 0.5


def _taps(position: NDArray[np.float64], order: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """First knot and the weights of the consecutive knots that an output sample at `position` reads."""
    if order == 0:
        return np.floor(position + 0.5).astype(np.int64), np.ones((len(position), 1))
    floor = np.floor(position).astype(np.int64)
    if order == 1:
        fraction = position - floor
        return floor, np.stack([1 - fraction, fraction], axis=1)
    if order == 3:
        first = floor - 1
        distance = np.abs(position[:, None] - (first[:, None] + np.arange(4)))
        near = (4 - 6 * distance**2 + 3 * distance**3) / 6
        far = (2 - distance) ** 3 / 6
        return first, np.where(distance < 1, near, far)
    raise ValueError(f"order must be 0, 1 or 3, not {order}")


def _through_prefilter(
    weights: NDArray[np.float64], knots: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weights on spline coefficients -> on voxels; a coefficient is Σ √3·pole^|n|·voxel[n] (Unser)."""
    voxels = np.arange(knots[0] - _REACH, knots[-1] + _REACH + 1)
    distance = np.abs(knots[:, None] - voxels)
    response = np.where(distance <= _REACH, np.sqrt(3.0) * _POLE**distance, 0.0)
    return weights @ response, voxels


def _slabs_3d(source: np.ndarray, shape: Sequence[int], order: int) -> Iterator[tuple[slice, Float32]]:
    """Blocks of output slices, each from the window of in-plane interpolated slices that it depends on."""
    depth, height, width = shape
    rows, columns = axis_blocks(source.shape[1], height, order), axis_blocks(source.shape[2], width, order)
    window = np.empty((0, height, width), dtype=np.float32)
    done = 0  # input slices interpolated so far; the window ends there
    for block in axis_blocks(source.shape[0], depth, order, block=_SLAB):
        start, stop = block.source.start, block.source.stop
        grown = np.empty((stop - start, height, width), dtype=np.float32)
        kept = max(0, done - start)
        grown[:kept] = window[len(window) - kept :]
        for index in range(start + kept, stop):
            grown[index - start] = _in_plane(source[index], rows, columns)
        window, done = grown, stop
        slab = block.weights @ window.reshape(len(window), -1)
        yield block.target, slab.reshape(-1, height, width)


def _slices_2d(source: np.ndarray, shape: Sequence[int], order: int) -> Iterator[tuple[int, Float32]]:
    """Output slices, each the in-plane interpolated nearest input slice, clipped to that slice's range."""
    depth, height, width = shape
    rows, columns = axis_blocks(source.shape[1], height, order), axis_blocks(source.shape[2], width, order)
    nearest = _Corners.of(source.shape[0], depth, nearest=True).lower
    previous, image = -1, np.empty((0, 0), dtype=np.float32)
    for out, index in enumerate(nearest):
        if index != previous:
            plane = source[index]
            image, previous = _in_plane(plane, rows, columns), index
            np.clip(image, np.float32(plane.min()), np.float32(plane.max()), out=image)
        yield out, image


def _in_plane(plane: np.ndarray, rows: tuple[AxisBlock, ...], columns: tuple[AxisBlock, ...]) -> Float32:
    """(H, W) -> (H', W')."""
    image = np.ascontiguousarray(plane, dtype=np.float32)
    tall = np.empty((rows[-1].target.stop, image.shape[1]), dtype=np.float32)
    for block in rows:
        np.matmul(block.weights, image[block.source], out=tall[block.target])
    wide = np.empty((len(tall), columns[-1].target.stop), dtype=np.float32)
    for block in columns:
        wide[:, block.target] = tall[:, block.source] @ block.weights.T
    return wide


def _store(target: np.ndarray, values: np.ndarray) -> None:
    rounds = np.issubdtype(target.dtype, np.integer) and np.issubdtype(values.dtype, np.floating)
    target[...] = np.rint(values) if rounds else values


# ---- labels: eight corners a voxel -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Corners:
    """Per output sample: the input samples around it, the upper one's weight, and the number of the cell."""

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: NDArray[np.float64]
    cell: NDArray[np.int64]  # 0 is the half cell before the first sample

    @classmethod
    def of(cls, size: int, new_size: int, *, nearest: bool = False) -> _Corners:
        position = _positions(size, new_size)
        if nearest:
            index = np.clip(np.floor(position + 0.5), 0, size - 1).astype(np.int64)
            return cls(index, index, np.zeros(new_size), index + 1)
        floor = np.floor(position).astype(np.int64)
        lower, upper = np.clip(floor, 0, size - 1), np.clip(floor + 1, 0, size - 1)
        return cls(lower, upper, position - floor, floor + 1)

    @property
    def nearest(self) -> NDArray[np.int64]:
        return np.where(self.weight >= 0.5, self.upper, self.lower)


@dataclass(frozen=True)
class _SlicePair:
    """Two neighbouring input slices, and where between them the eight corners disagree."""

    planes: tuple[np.ndarray, np.ndarray]
    rows: _Corners
    columns: _Corners
    mixed: tuple[NDArray[np.intp], NDArray[np.intp]]  # output (y, x) whose corners are not all one label
    labels: np.ndarray  # (8, mixed): corner number = 4·z + 2·y + x

    @classmethod
    def of(cls, below: np.ndarray, above: np.ndarray, rows: _Corners, columns: _Corners) -> _SlicePair:
        uniform = _uniform_cells(below)
        if above is not below:
            uniform &= _uniform_cells(above) & (
                np.pad(below, (1, 0), "edge") == np.pad(above, (1, 0), "edge")
            )
        y, x = np.nonzero(~uniform.take(rows.cell, axis=0).take(columns.cell, axis=1))
        ys, xs = (rows.lower[y], rows.upper[y]), (columns.lower[x], columns.upper[x])
        labels = np.stack([plane[row, column] for plane in (below, above) for row in ys for column in xs])
        return cls((below, above), rows, columns, (y, x), labels)

    def interpolate(self, weight: float) -> np.ndarray:
        """The output slice (H', W') at `weight` of the way from the first plane to the second."""
        result = self.planes[weight >= 0.5].take(self.rows.nearest, axis=0).take(self.columns.nearest, axis=1)
        y, x = self.mixed
        if len(y):
            wy, wx = self.rows.weight[y], self.columns.weight[x]
            weights = [z * v * u for z in (1 - weight, weight) for v in (1 - wy, wy) for u in (1 - wx, wx)]
            result[y, x] = _heaviest_label(self.labels, np.stack(weights), nearest=result[y, x])
        return result


def _uniform_cells(plane: np.ndarray) -> NDArray[np.bool_]:
    """(H, W) -> (H + 1, W + 1): whether the four samples around each cell are equal, edges repeated."""
    padded = np.pad(plane, 1, "edge")
    across = padded[:, :-1] == padded[:, 1:]
    down = padded[:-1, :-1] == padded[1:, :-1]
    return np.asarray(across[:-1] & across[1:] & down)


def _heaviest_label(labels: np.ndarray, weights: NDArray[np.float64], nearest: np.ndarray) -> np.ndarray:
    """The label with the largest sum of weights: (8, n), (8, n), (n,) -> (n,)."""
    scores = weights.copy()
    for first in range(8):
        for second in range(first + 1, 8):
            same = labels[first] == labels[second]
            scores[first] += weights[second] * same
            scores[second] += weights[first] * same
    top = scores >= scores.max(axis=0) - _TIE
    smallest = np.where(top, labels, np.iinfo(labels.dtype).max).min(axis=0)
    return np.where((top & (labels == nearest)).any(axis=0), nearest, smallest).astype(labels.dtype)
