"""Prompt files: three ways to say in a file where the lesions are.

LesionLocator's JSON, as it is; numbers may be text, and ids may have gaps:

    {"1": {"point": ["30", "112", "87"]}, "2": {"box": ["10", "14", "90", "120", "60", "88"]}}

A list of interactions in the manner of nnInteractive, with corrections:

    {"coordinate_space": "voxel-xyz",
     "lesions": [{"id": 1, "interactions": [
         {"type": "point", "coordinates": [87, 112, 30], "include_interaction": true},
         {"type": "bbox", "bbox": [[60, 88], [90, 120], [10, 14]], "include_interaction": true},
         {"type": "scribble", "points": [[86, 110, 30], [90, 115, 30]], "include_interaction": false, "round": 1}]}]}

A NIfTI label map on the grid of the image: an instance map as it is (`instance`), or a mask whose connected components
are the lesions (`binary`).

In all JSON, `coordinate_space` says what the numbers are. Voxels are those of the image *file*, however it is
oriented:

    voxel-zyx   slice, row, column: the order of SimpleITK's arrays, and LesionLocator's (its default)
    voxel-xyz   the order of nibabel's arrays
    world-ras   mm to the patient's Right, Anterior, Superior (ITK and DICOM count left and posterior positive)

Boxes in voxels are half-open: [10, 14] is four voxels, 10 to 13.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Literal, get_args

import cc3d
import numpy as np
import numpy.typing as npt

from fedvox.data.checks import check_same_grid, whole_numbers
from fedvox.data.geometry import Geometry, Volume
from fedvox.data.readers import NIFTI_ENDINGS, read_volume
from fedvox.errors import DataError, StorageError
from fedvox.storage import locate, read_bytes
from fedvox.tracking.prompts import Box, Mask, Point, Prompt, Scribble, Voxel, check_prompts

CoordinateSpace = Literal["voxel-zyx", "voxel-xyz", "world-ras"]
LabelKind = Literal["instance", "binary"]

_ROUNDING = 1e-4  # of a voxel, in edges that lie on the grid but for floating point


def read_prompts(
    path: str,
    image: Volume,
    *,
    space: CoordinateSpace | None = None,
    labels: LabelKind = "instance",
) -> dict[int, tuple[Prompt, ...]]:
    """Reads the prompts of one image, checked.

    Args:
        path: `.json`, `.nii` or `.nii.gz`, local or `s3://`.
        image: that the prompts belong to.
        space: of JSON that does not name its own; None is voxel-zyx for LesionLocator's.
        labels: what a NIfTI file holds.

    Returns:
        Lesion id -> prompts on the image's RAS+ grid.

    Raises:
        DataError: the file is not of these kinds (bad_prompts), names a lesion twice (duplicate_id), is a label map of
            another grid (shape_mismatch, affine_mismatch) or without a lesion (empty_prompt), names no coordinate
            space (no_space), or what `check_prompts` refuses.
    """
    if path.lower().endswith(NIFTI_ENDINGS):
        return masks_of(read_volume(path), image, labels=labels)
    if not path.lower().endswith(".json"):
        raise _bad(path, "is neither .json nor a NIfTI file", "Give a prompt file.")
    try:
        text = read_bytes(locate(path)).decode("utf-8")
    except (UnicodeDecodeError, StorageError) as error:
        raise _bad(path, "cannot be read", "Give an existing JSON file.") from error
    return parse_prompts(text, image.geometry, source=path, space=space)


def masks_of(
    labelled: Volume, image: Volume, *, labels: LabelKind = "instance"
) -> dict[int, tuple[Prompt, ...]]:
    """Mask prompts from a label map.

    Args:
        labelled: (1, D, H, W).
        image: on the same grid.
        labels: `instance` takes each value as a lesion; `binary` each connected component (26 neighbours).

    Raises:
        DataError: see `read_prompts`.
    """
    for problem in check_same_grid(image, labelled):
        raise problem
    found = whole_numbers(labelled.data[0])
    if found.min() < 0:
        raise _bad(labelled.path, "has negative labels", "Write lesions as 1, 2, 3 and so on.")
    if labels == "binary":
        found = cc3d.connected_components(np.ascontiguousarray(found > 0), connectivity=26)
    ids = [int(i) for i in np.unique(found) if i]
    if not ids:
        raise DataError(
            f"{labelled.path} marks no voxel",
            "Mark at least one lesion.",
            code="empty_prompt",
            file=labelled.path,
        )
    return {lesion: (Mask(found == lesion),) for lesion in ids}


def parse_prompts(
    text: str, geometry: Geometry, *, source: str, space: CoordinateSpace | None = None
) -> dict[int, tuple[Prompt, ...]]:
    """Prompts from the text of a JSON file; see `read_prompts`."""
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: _without_repeats(pairs, source))
    except json.JSONDecodeError as error:
        raise _bad(source, f"is not JSON: {error}", "Mend its syntax.") from None
    if not isinstance(content, dict):
        raise _bad(source, "is no JSON object", "Write {lesion id: prompt}.")
    named = content.pop("coordinate_space", None)
    if named is not None and named not in get_args(CoordinateSpace):
        raise _bad(
            source,
            f"has the coordinate_space {named!r}",
            f"Use one of {', '.join(get_args(CoordinateSpace))}.",
        )
    if "lesions" in content:
        chosen = named or space
        if chosen is None:
            raise DataError(
                f"{source} does not name its coordinate_space",
                f'Add "coordinate_space": one of {", ".join(get_args(CoordinateSpace))}.',
                code="no_space",
                file=source,
            )
        prompts = _of_interactions(content["lesions"], _Grid(geometry, chosen), source)
    else:
        prompts = _of_lesion_locator(content, _Grid(geometry, named or space or "voxel-zyx"), source)
    check_prompts(prompts, geometry.shape, source=source)
    return prompts


class _Grid:
    """From the coordinates of a file to voxels of the RAS+ volume."""

    def __init__(self, geometry: Geometry, space: CoordinateSpace) -> None:
        to_array = np.linalg.inv(np.asarray(geometry.array_affine))
        self.reversed = space == "voxel-zyx"
        self.is_world = space == "world-ras"
        self._matrix = to_array if self.is_world else to_array @ np.asarray(geometry.file_affine)

    def point(self, values: Sequence[float]) -> Voxel:
        d, h, w = self._move(np.asarray(values, dtype=np.float64)[None])[0]
        return float(d), float(h), float(w)

    def box(self, ranges: Sequence[Sequence[float]], positive: bool, round_: int) -> Box:
        """A box from a (low, high) pair an axis, in the order of the space."""
        edge = 0.0 if self.is_world else 0.5  # of a voxel: its index is its middle
        ends = [sorted(float(v) - edge for v in pair) for pair in ranges]
        corners = self._move(np.array(list(product(*ends))))
        start = np.floor(corners.min(0) + 0.5 + _ROUNDING).astype(int)
        stop = np.ceil(corners.max(0) + 0.5 - _ROUNDING).astype(int)
        (a, b, c), (d, e, f) = start.tolist(), stop.tolist()
        return Box((a, b, c), (d, e, f), positive, round_)

    def _move(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        xyz = points[:, ::-1] if self.reversed else points
        moved: npt.NDArray[np.float64] = xyz @ self._matrix[:3, :3].T + self._matrix[:3, 3]
        return moved


def _of_lesion_locator(content: Mapping[str, Any], grid: _Grid, source: str) -> dict[int, tuple[Prompt, ...]]:
    prompts: dict[int, tuple[Prompt, ...]] = {}
    for key, entry in content.items():
        lesion = _id(key, source)
        known = set(entry) & {"point", "box"} if isinstance(entry, dict) else set()
        if not known or set(entry) - known:
            raise _bad(source, f"has for lesion {key} {entry!r}", 'Write {"point": [...]} or {"box": [...]}.')
        found: list[Prompt] = []
        if "point" in known:
            found.append(Point(grid.point(_numbers(entry["point"], 3, source, key))))
        if "box" in known:
            v = _numbers(entry["box"], 6, source, key)
            found.append(grid.box([v[:2], v[2:4], v[4:]], True, 0))
        _put(prompts, lesion, found, source)
    return prompts


def _of_interactions(lesions: Any, grid: _Grid, source: str) -> dict[int, tuple[Prompt, ...]]:
    prompts: dict[int, tuple[Prompt, ...]] = {}
    if not isinstance(lesions, list):
        raise _bad(
            source, "has `lesions` that are no list", 'Write "lesions": [{"id": 1, "interactions": [...]}].'
        )
    for entry in lesions:
        if not isinstance(entry, dict) or not isinstance(entry.get("interactions"), list):
            raise _bad(source, f"has the lesion {entry!r}", 'Write {"id": 1, "interactions": [...]}.')
        lesion = _id(entry.get("id"), source)
        found = [_interaction(each, grid, source, str(lesion)) for each in entry["interactions"]]
        _put(prompts, lesion, found, source)
    return prompts


def _interaction(entry: Any, grid: _Grid, source: str, lesion: str) -> Prompt:
    kind = entry.get("type") if isinstance(entry, dict) else None
    positive, round_ = bool(entry.get("include_interaction", True)) if kind else True, 0
    if kind:
        round_ = int(_numbers([entry.get("round", 0)], 1, source, lesion)[0])
    if kind == "point":
        return Point(grid.point(_numbers(entry.get("coordinates"), 3, source, lesion)), positive, round_)
    if kind == "bbox":
        pairs = entry.get("bbox")
        if not isinstance(pairs, list) or len(pairs) != 3:
            raise _bad(
                source, f"has for lesion {lesion} the bbox {pairs!r}", "Write three [low, high] pairs."
            )
        return grid.box([_numbers(pair, 2, source, lesion) for pair in pairs], positive, round_)
    if kind == "scribble" and isinstance(entry.get("points"), list) and entry["points"]:
        through = tuple(grid.point(_numbers(p, 3, source, lesion)) for p in entry["points"])
        return Scribble(through, positive, round_)
    raise _bad(
        source,
        f"has for lesion {lesion} the interaction {entry!r}",
        "Write a point with coordinates, a bbox, or a scribble with points.",
    )


def _numbers(values: Any, count: int, source: str, lesion: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise _bad(source, f"has for lesion {lesion} {values!r}", f"Write {count} numbers.")
    return numbers


def _id(value: Any, source: str) -> int:
    if isinstance(value, bool) or not str(value).strip().isdigit() or int(value) < 1:
        raise DataError(
            f"{source} has the lesion id {value!r}", "Number lesions from 1.", code="bad_id", file=source
        )
    return int(value)


def _put(prompts: dict[int, tuple[Prompt, ...]], lesion: int, found: list[Prompt], source: str) -> None:
    if lesion in prompts:
        raise _repeated(lesion, source)
    prompts[lesion] = tuple(found)


def _without_repeats(pairs: list[tuple[str, Any]], source: str) -> dict[str, Any]:
    """Python keeps the last of two equal keys without a word."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise _repeated(key, source)
    return dict(pairs)


def _repeated(lesion: object, source: str) -> DataError:
    return DataError(
        f"{source} names {lesion} twice",
        "Give every lesion an id of its own, with all its prompts together.",
        code="duplicate_id",
        file=source,
    )


def _bad(source: str, found: str, remedy: str) -> DataError:
    return DataError(f"{source} {found}", remedy, code="bad_prompts", file=source)
