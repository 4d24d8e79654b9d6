"""One space of structures for sources that each annotate something else.

    LiTS      {"liver": 1, "tumor": 2}            BTCV      {"spleen": 1, "Liver": 6, ...}
       └──────────────┬───────────────────────────────────────┘
    structures   background, liver, tumor, spleen, ...          (canonical indices 0, 1, 2, 3, ...)
    LiTS         1 -> 1, 2 -> 2      annotates {0, 1, 2}
    BTCV         1 -> 3, 6 -> 1      annotates {0, 1, 3, ...}

Names are compared after `canonical_name`. Structures are numbered as they are first seen, so that a single
nnU-Net data set keeps its own label values. A YAML file may fix the order, name synonyms and rename or drop
labels of a source:

    structures:
      kidney_left: [left kidney, kidney_l]      # canonical name: synonyms
      liver: []
    sources:
      Dataset017_BTCV: {postcava: inferior_vena_cava, adrenal glands: null}   # null: treated as background

A label called "ignore" becomes `LabelSpace.ignore_index`, see `fedvox.data.ignore`.
Overlapping regions (nnU-Net's `"whole tumor": [1, 2, 3]`) are split into disjoint structures; the regions
remain as unions of them.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedvox.config import parse_scalar
from fedvox.data.ignore import ignore_value, label_dtype
from fedvox.errors import DataError

BACKGROUND = "background"
_SPELLINGS = {"tumour": "tumor", "tumours": "tumors", "oesophagus": "esophagus", "grey": "gray"}
_SIDES = ("left", "right")
_SIDE_LETTERS = {"l": "left", "r": "right"}


def canonical_name(name: str) -> str:
    """Folds spellings of a structure's name: `"Left Kidney"`, `"kidney-left"` -> `"kidney_left"`.

    Lower case, words joined by `_`, the side last, American spelling (tumour, oesophagus, grey).
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    words = [_SPELLINGS.get(word, word) for word in re.findall(r"[^\W_]+", plain)]
    if len(words) > 1 and words[-1] in _SIDE_LETTERS:  # kidney_l
        words[-1] = _SIDE_LETTERS[words[-1]]
    sides = [word for word in words if word in _SIDES]
    if len(sides) == 1 and len(words) > 1:
        words = [word for word in words if word not in _SIDES] + sides
    return "_".join(words)


@dataclass(frozen=True)
class SourceLabels:
    """What the values of a source's label maps mean.

    Args:
        structures: disjoint structures by canonical name, with the values that mark each.
        regions: names of overlapping unions of them, with their values.
        ignore: value of voxels that were not judged.
    """

    structures: tuple[tuple[str, tuple[int, ...]], ...]
    regions: tuple[tuple[str, tuple[int, ...]], ...] = ()
    ignore: int | None = None

    @property
    def known_values(self) -> frozenset[int]:
        """Every value that may occur, 0 included."""
        values = {0} | {value for _, values in self.structures for value in values}
        return frozenset(values if self.ignore is None else values | {self.ignore})

    def describe(self) -> str:
        """The known values with their names, for messages."""
        named = [f"{', '.join(map(str, values))} {name}" for name, values in self.structures]
        ignored = [] if self.ignore is None else [f"{self.ignore} ignore"]
        return "; ".join(["0 background", *named, *ignored])


def parse_labels(raw: Mapping[str, Any], where: str) -> SourceLabels:
    """Reads the `labels` of a dataset.json, in either direction.

    Args:
        raw: `{"liver": 1}` and `{"tumor": [1, 2]}` (nnU-Net), or `{"1": "liver"}` (Decathlon).
        where: names the file in messages.

    Raises:
        DataError: bad_labels.
    """
    named = _by_name(raw, where)
    ignore = named.pop("ignore", None)
    if ignore is not None and len(ignore) != 1:
        raise _bad_labels(where, 'the label "ignore" needs exactly one value')
    foreground = {name: values for name, values in named.items() if name != BACKGROUND and values != (0,)}
    if any(0 in values for values in foreground.values()):
        raise _bad_labels(where, "a structure has the value 0, which is background")
    if len(set(foreground.values())) < len(foreground):
        raise _bad_labels(where, "two label names have the same value")
    atoms = _disjoint(foreground, where)
    whole = {name for name, values in atoms if values == foreground.get(name)}
    regions = tuple((name, values) for name, values in foreground.items() if name not in whole)
    return SourceLabels(atoms, regions, None if ignore is None else ignore[0])


def _by_name(raw: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    inverted = bool(raw) and all(re.fullmatch(r"\d+", str(key)) for key in raw)
    pairs = [(str(value), key) for key, value in raw.items()] if inverted else list(raw.items())
    named: dict[str, tuple[int, ...]] = {}
    for name, values in pairs:
        canonical = canonical_name(str(name))
        if not canonical or canonical in named:
            raise _bad_labels(
                where, f"the label name {name!r} is {'empty' if not canonical else 'used twice'}"
            )
        named[canonical] = _values(values, str(name), where)
    return named


def _values(raw: Any, name: str, where: str) -> tuple[int, ...]:
    items = raw if isinstance(raw, (list, tuple)) else [raw]
    try:
        values = tuple(sorted({int(str(item)) for item in items}))
    except ValueError:
        raise _bad_labels(where, f"the label {name!r} has the value {raw!r}, not an integer") from None
    if not values or values[0] < 0 or values[-1] > np.iinfo(np.uint16).max:
        raise _bad_labels(where, f"the label {name!r} has the value {raw!r}; 0 to 65535 are possible")
    return values


def _disjoint(named: Mapping[str, tuple[int, ...]], where: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Splits overlapping regions: the values that share all their regions are one structure."""
    groups: dict[frozenset[str], list[int]] = {}
    for value in sorted({v for values in named.values() for v in values}):
        regions = frozenset(name for name, values in named.items() if value in values)
        groups.setdefault(regions, []).append(value)
    atoms = {_atom_name(named, regions, tuple(values)): tuple(values) for regions, values in groups.items()}
    if len(atoms) < len(groups):
        raise _bad_labels(where, "its regions overlap in a way that leaves parts without a name of their own")
    return tuple(atoms.items())


def _atom_name(named: Mapping[str, tuple[int, ...]], regions: frozenset[str], values: tuple[int, ...]) -> str:
    """Of the voxels in all of `regions` and in no other: `tumor_core_without_enhancing_tumor`, `a_and_b`."""

    def innermost(names: Iterable[str]) -> list[str]:
        found = [name for name in named if name in names]
        return [n for n in found if not any(set(named[other]) < set(named[n]) for other in found)]

    within = innermost(regions)
    name = "_and_".join(within)
    if len(within) == 1 and named[within[0]] == values:
        return name
    common = set.intersection(*(set(named[region]) for region in within))
    outside = [n for n, own in named.items() if n not in regions and common & set(own)]
    outermost = [n for n in outside if not any(set(named[n]) < set(named[other]) for other in outside)]
    return "_".join([name, "without", *outermost]) if outermost else name


# ---- the file which joins sources --------------------------------------------------------------------------


def source_of(label_set: str) -> str:
    """The data set that a label set belongs to: `NAME~VARIANT` is a variant of `NAME`'s."""
    return label_set.partition("~")[0]


@dataclass(frozen=True)
class LabelMapping:
    """A user's word on names.

    Args:
        synonyms: canonical form of a synonym -> canonical structure.
        order: structures which come first, in this order, whether or not a source has them.
        renames: source -> canonical form of its label -> structure, or None for background.
    """

    synonyms: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    renames: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)

    def structure(self, label_set: str, name: str) -> str | None:
        """The canonical structure of a source's label, None for background."""
        target = self.renames.get(source_of(label_set), {}).get(name, name)
        return None if target is None else self.synonyms.get(target, target)


def load_mapping(path: Path) -> LabelMapping:
    """Reads a mapping file, see the module.

    Raises:
        DataError: bad_label_mapping.
    """
    try:
        raw = parse_scalar(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise _bad_mapping(path, "does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _bad_mapping(path, f"is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or set(raw) - {"structures", "sources"}:
        raise _bad_mapping(path, "may have the fields `structures` and `sources` and no others")
    structures, sources = raw.get("structures") or {}, raw.get("sources") or {}
    if not isinstance(structures, dict) or not isinstance(sources, dict):
        raise _bad_mapping(path, "`structures` and `sources` must each map names")
    return LabelMapping(
        _synonyms(structures, path), tuple(map(canonical_name, structures)), _renames(sources, path)
    )


def _synonyms(structures: Mapping[str, Any], path: Path) -> dict[str, str]:
    synonyms: dict[str, str] = {}
    for structure, others in structures.items():
        names = [others] if isinstance(others, str) else list(others or [])
        for name in {canonical_name(str(n)) for n in [structure, *names]}:
            if name in synonyms:
                raise _bad_mapping(path, f"gives {name!r} to two structures")
            synonyms[name] = canonical_name(str(structure))
    return synonyms


def _renames(sources: Mapping[str, Any], path: Path) -> dict[str, dict[str, str | None]]:
    renames: dict[str, dict[str, str | None]] = {}
    for source, labels in sources.items():
        if not isinstance(labels, dict):
            raise _bad_mapping(path, f"`sources.{source}` must map labels to structures")
        renames[str(source)] = {
            canonical_name(str(name)): None if target is None else canonical_name(str(target))
            for name, target in labels.items()
        }
    return renames


# ---- the joined space --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelSpace:
    """The structures of a store, and how the values of each label set become their indices.

    Args:
        structures: canonical names; index 0 is the background.
        values: label set -> label value -> canonical index (`ignore_index` for its ignore value).
        annotated: label set -> the canonical indices that it annotates, 0 included.
        regions: unions of structures under a name of their own -> canonical indices.
    """

    structures: tuple[str, ...]
    values: Mapping[str, Mapping[int, int]]
    annotated: Mapping[str, tuple[int, ...]]
    regions: Mapping[str, tuple[int, ...]]

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 while the structures and the ignore value fit, else uint16."""
        return label_dtype(len(self.structures))

    @property
    def ignore_index(self) -> int:
        """The stored value of voxels that were not judged."""
        return ignore_value(self.dtype)

    def apply(self, label_set: str, label: np.ndarray) -> np.ndarray:
        """Turns a label map into canonical indices by one table look-up.

        Args:
            label_set: whose values they are.
            label: integers, all of them known to the label set.

        Shape: (N, ...) -> same, `dtype`.
        """
        mapping = self.values[label_set]
        table = np.zeros(max(mapping) + 1, dtype=self.dtype)
        table[list(mapping)] = list(mapping.values())
        indices = np.empty(label.shape, dtype=self.dtype)
        for part in range(len(label)):  # one at a time: an index array takes 8 bytes a voxel
            indices[part] = table[label[part]]
        return indices


def join_labels(label_sets: Mapping[str, SourceLabels], mapping: LabelMapping | None = None) -> LabelSpace:
    """Joins label sets into one space.

    Raises:
        DataError: bad_label_mapping, where the mapping names a source or a label that does not exist.
    """
    mapping = mapping or LabelMapping()
    _check_mapping(label_sets, mapping)
    names: dict[str, int] = {BACKGROUND: 0}
    for name in mapping.order:
        names.setdefault(name, len(names))
    for label_set, labels in label_sets.items():
        for name, _ in labels.structures:
            structure = mapping.structure(label_set, name)
            if structure is not None:
                names.setdefault(structure, len(names))
    ignore = ignore_value(label_dtype(len(names)))
    values = {key: _value_map(key, labels, names, mapping, ignore) for key, labels in label_sets.items()}
    annotated = {
        key: tuple(sorted({0} | {index for index in found.values() if index != ignore}))
        for key, found in values.items()
    }
    return LabelSpace(tuple(names), values, annotated, _joined_regions(label_sets, values))


def _value_map(
    label_set: str, labels: SourceLabels, names: Mapping[str, int], mapping: LabelMapping, ignore: int
) -> dict[int, int]:
    found = {0: 0}
    for name, values in labels.structures:
        structure = mapping.structure(label_set, name)
        found.update(dict.fromkeys(values, 0 if structure is None else names[structure]))
    if labels.ignore is not None:
        found[labels.ignore] = ignore
    return found


def _joined_regions(
    label_sets: Mapping[str, SourceLabels], values: Mapping[str, Mapping[int, int]]
) -> dict[str, tuple[int, ...]]:
    regions: dict[str, set[int]] = {}
    for key, labels in label_sets.items():
        for name, members in labels.regions:
            regions.setdefault(name, set()).update(values[key][value] for value in members)
    return {name: tuple(sorted(indices - {0})) for name, indices in regions.items()}


def _check_mapping(label_sets: Mapping[str, SourceLabels], mapping: LabelMapping) -> None:
    known: dict[str, set[str]] = {}
    for key, labels in label_sets.items():
        known.setdefault(source_of(key), set()).update(name for name, _ in labels.structures)
    for source, renames in mapping.renames.items():
        if source not in known:
            raise _unknown("source", source, known, "the label mapping")
        for name in renames:
            if name not in known[source]:
                raise _unknown("label", name, known[source], f"the label mapping of {source}")


def _unknown(kind: str, name: str, known: Iterable[str], where: str) -> DataError:
    names: Sequence[str] = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return DataError(
        f"{where} names the {kind} {name!r}, which does not exist",
        f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(names)}.",
        code="bad_label_mapping",
    )


def _bad_labels(where: str, found: str) -> DataError:
    return DataError(
        f"{where}: {found}",
        'Write the labels as {"background": 0, "liver": 1, ...}, each value once.',
        code="bad_labels",
        file=where,
    )


def _bad_mapping(path: Path, found: str) -> DataError:
    remedy = "Write `structures: {name: [synonyms]}` and `sources: {source: {label: structure}}`."
    return DataError(f"label mapping {path} {found}", remedy, code="bad_label_mapping", file=str(path))
