"""Names of metrics, which say everything that their value depends on.

    dice   iou   volume_error   volume_difference_ml
    nsd@2mm/surfel     normalised surface distance (surface Dice) at a tolerance, with the surface's
    definition hd/voxel   hd95/surfel   assd/voxel   masd/voxel
    lesion_f1@iou0.1   lesion_precision@iou0.1   lesion_recall@iou0.1   pq@iou0.5   sq@iou0.5   rq@iou0.5

Two tools that call a metric by the same short name differ by up to 30 percentage points on the same masks,
because they define the surface differently. An id is therefore complete or it is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from fedvox.errors import ConfigError

Surface = Literal["voxel", "surfel"]
Better = Literal["higher", "lower", "zero"]

SURFACES: tuple[Surface, ...] = ("voxel", "surfel")


@dataclass(frozen=True)
class Family:
    """Metrics that differ in tolerance, surface definition or matching threshold only.

    Attributes:
        name: the part of the id before `@` and `/`.
        title: for tables and axes.
        better: `zero` for signed differences, which are compared by magnitude.
        unit: "" for ratios.
        kind: what it is computed from.
    """

    name: str
    title: str
    better: Better
    unit: Literal["", "mm", "ml"]
    kind: Literal["overlap", "surface", "lesion"]


FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family("dice", "Dice similarity coefficient", "higher", "", "overlap"),
        Family("iou", "Intersection over union", "higher", "", "overlap"),
        Family("volume_error", "Relative volume error", "lower", "", "overlap"),
        Family("volume_difference_ml", "Volume difference", "zero", "ml", "overlap"),
        Family("nsd", "Normalised surface distance", "higher", "", "surface"),
        Family("hd", "Hausdorff distance", "lower", "mm", "surface"),
        Family("hd95", "95th percentile Hausdorff distance", "lower", "mm", "surface"),
        Family("assd", "Average symmetric surface distance", "lower", "mm", "surface"),
        Family("masd", "Mean of the two average surface distances", "lower", "mm", "surface"),
        Family("lesion_precision", "Lesion-wise precision", "higher", "", "lesion"),
        Family("lesion_recall", "Lesion-wise recall", "higher", "", "lesion"),
        Family("lesion_f1", "Lesion-wise F1", "higher", "", "lesion"),
        Family("pq", "Panoptic quality", "higher", "", "lesion"),
        Family("sq", "Segmentation quality of matched lesions", "higher", "", "lesion"),
        Family("rq", "Recognition quality", "higher", "", "lesion"),
    )
}

_PATTERN = re.compile(
    r"(?P<family>[a-z0-9_]+)(?:@(?:(?P<tolerance>[0-9.]+)mm|iou(?P<iou>[0-9.]+)))?(?:/(?P<surface>[a-z]+))?"
)


@dataclass(frozen=True)
class MetricId:
    """A parsed metric id; `str()` gives the id.

    Attributes:
        family: see `FAMILIES`.
        tolerance_mm: of the normalised surface distance.
        iou: overlap from which two lesions match.
        surface: definition of the surface.
    """

    family: Family
    tolerance_mm: float | None = None
    iou: float | None = None
    surface: Surface | None = None

    def __str__(self) -> str:
        tolerance = "" if self.tolerance_mm is None else f"@{_number(self.tolerance_mm)}mm"
        iou = "" if self.iou is None else f"@iou{_number(self.iou)}"
        return f"{self.family.name}{tolerance}{iou}" + (f"/{self.surface}" if self.surface else "")

    @property
    def label(self) -> str:
        """A title with tolerance, surface and unit, for axes and table heads."""
        detail = [f"{_number(self.tolerance_mm)} mm" if self.tolerance_mm is not None else ""]
        detail += [f"IoU ≥ {_number(self.iou)}" if self.iou is not None else "", self.surface or ""]
        words = ", ".join(d for d in detail if d)
        unit = f" [{self.family.unit}]" if self.family.unit else ""
        return f"{self.family.title}{f' ({words})' if words else ''}{unit}"

    def quality(self, value: float) -> float:
        """The value as a number of which more is better, for ranking."""
        if self.family.better == "higher":
            return value
        return -abs(value) if self.family.better == "zero" else -value


def parse(metric: str) -> MetricId:
    """Read a metric id.

    Raises:
        ConfigError: the family is unknown, or the id leaves open what its value depends on.
    """
    match = _PATTERN.fullmatch(metric)
    family = FAMILIES.get(match["family"]) if match else None
    if match is None or family is None:
        near = get_close_matches(metric.partition("@")[0].partition("/")[0], FAMILIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known families: {', '.join(FAMILIES)}."
        raise ConfigError(f"metric {metric!r} is not known", hint)
    tolerance, iou = (None if match[g] is None else _positive(metric, match[g]) for g in ("tolerance", "iou"))
    surface = next((s for s in SURFACES if s == match["surface"]), None)
    if match["surface"] and surface is None:
        raise ConfigError(
            f"metric {metric!r}: surface {match['surface']!r} is not known", "Use /voxel or /surfel."
        )
    found = MetricId(family, tolerance, iou, surface)
    if (wrong := _incomplete(found)) is not None:
        raise ConfigError(f"metric {metric!r} {wrong[0]}", wrong[1])
    return found


def _incomplete(metric: MetricId) -> tuple[str, str] | None:
    """What an id lacks or has too much, and what to write instead."""
    name, kind = metric.family.name, metric.family.kind
    tolerance = "@2mm" if name == "nsd" else ""
    if kind == "surface":
        if (
            metric.surface is None
            or (metric.tolerance_mm is None) == (name == "nsd")
            or metric.iou is not None
        ):
            return (
                "does not say on which surface, or at which tolerance",
                f"Write {name}{tolerance}/surfel or {name}{tolerance}/voxel.",
            )
    elif metric.surface or metric.tolerance_mm is not None:
        return (
            "has neither a surface nor a tolerance",
            f"Write {name}{'@iou0.5' if kind == 'lesion' else ''}.",
        )
    elif (metric.iou is None) == (kind == "lesion"):
        return (
            "needs a matching threshold if it is lesion-wise, and only then",
            "Write for instance lesion_f1@iou0.1.",
        )
    return None


def _positive(metric: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise ConfigError(
            f"metric {metric!r}: {text!r} is not a positive number", "Write for instance nsd@2mm/surfel."
        )
    return value


def _number(value: float) -> str:
    return f"{value:g}"
