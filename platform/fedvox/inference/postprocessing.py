"""Keeping the largest connected component, where cross-validation showed that it helps.

    postprocessing.json    {"steps": [["liver", "tumor"], ["liver"]], …}

Each step joins some structures and removes what is not connected to the largest part of the union. Voxels touch by
faces, edges and corners (26 neighbours), as in nnU-Net.

Source: Isensee et al. 2021, nnU-Net, "empirical parameters".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np

from fedvox.errors import ConfigError
from fedvox.storage import Location, exists, locate, read_bytes, write_atomic

SCHEMA = "fedvox.postprocessing/1"


@dataclass(frozen=True)
class Postprocessing:
    """Steps that are applied to a label map, in order.

    Attributes:
        structures: names of the label values, background first.
        steps: structure indices that each step joins.
    """

    structures: tuple[str, ...]
    steps: tuple[tuple[int, ...], ...]

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """A label map (D, H, W) after all steps; the input is left alone where nothing changes."""
        for step in self.steps:
            labels = keep_largest(labels, step)
        return labels

    @classmethod
    def read(cls, uri: str, structures: Sequence[str]) -> Postprocessing:
        """Reads postprocessing.json for a model's structures; they are matched by name.

        Raises:
            ConfigError: the file is missing or unreadable, or names a structure that the model does not have.
        """
        location = locate(uri)
        if not exists(location):
            raise ConfigError(
                f"postprocessing {uri} does not exist", "Name the postprocessing.json of a selection."
            )
        try:
            value = json.loads(read_bytes(location))
            named = [[str(name) for name in step] for step in value["steps"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{uri} is no postprocessing: {error!r}", "Determine it again.") from error
        unknown = sorted({name for step in named for name in step} - set(structures))
        if unknown:
            raise ConfigError(
                f"{uri} is for structures that the model does not have: {', '.join(unknown)}",
                "Use the postprocessing that was determined for this model.",
            )
        index = {name: number for number, name in enumerate(structures)}
        return cls(tuple(structures), tuple(tuple(index[name] for name in step) for step in named))

    def write(self, location: Location) -> None:
        """Writes postprocessing.json, atomically."""
        steps = [[self.structures[index] for index in step] for step in self.steps]
        value = {"schema": SCHEMA, "steps": steps}
        write_atomic(location, (json.dumps(value, indent=1) + "\n").encode())


def keep_largest(labels: np.ndarray, structures: Sequence[int]) -> np.ndarray:
    """Sets to 0 what is not in the largest component of a union of structures.

    Args:
        labels: (D, H, W) unsigned integers; left alone.
        structures: label values whose union is taken. Of components of the same size all stay.
    """
    mask = labels == structures[0] if len(structures) == 1 else np.isin(labels, structures)
    box = _bounding_box(mask)
    if box is None:
        return labels
    components, count = cc3d.connected_components(mask[box], connectivity=26, return_N=True)
    if count < 2:
        return labels
    sizes = np.bincount(components.reshape(-1))
    sizes[0] = 0
    kept = sizes == sizes.max()
    kept[0] = True  # what is outside the union is not touched
    result = labels.copy()
    result[box][~kept[components]] = 0
    return result


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box around what is True, None where nothing is."""
    sides: list[slice] = []
    for axis in range(mask.ndim):  # each pass looks only at what the passes before have left
        rest = mask[tuple(sides)]
        occupied = np.flatnonzero(rest.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        if not len(occupied):
            return None
        sides.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(sides)
