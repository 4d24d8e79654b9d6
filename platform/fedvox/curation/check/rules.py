"""The rules of a collection, as a YAML file says them; no rule of anatomy stands in the code.

    all:                        # for every structure
      - {kind: volume, robust_z: 4}
      - {kind: consensus, min_dice: 0.6, robust_z: 4}
    structures:
      kidney left:
        - {kind: expected}
        - {kind: order, axis: x, below: kidney right}
        - {kind: components, most: 1, min_mm3: 500}
        - {kind: intensity, low: -50, high: 300}
      liver:
        - {kind: overlap, with: [spleen], most_mm3: 500}

A rule under a structure replaces the one of the same kind under `all`; `{kind: volume, off: true}` takes it away.
This module imports neither numpy nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from fedvox.config import Config
from fedvox.errors import ConfigError


class _Rule(Config):
    """What all rules have in common."""

    severity: float = Field(0.5, gt=0, le=1)
    """Probability that the label is wrong where the rule just fires; it grows towards 1 with the excess."""
    off: bool = False
    """Under a structure: the rule of this kind under `all` is not for it."""


class Expected(_Rule):
    """The structure is missing although the place where it lies is within the field of view.

    That place is told by the other structures: the median offset from them over the collection.
    """

    kind: Literal["expected"] = "expected"
    severity: float = Field(0.9, gt=0, le=1)
    margin_mm: float = Field(5.0, ge=0)
    """Closer to the edge of the image than this, it may be missing."""
    min_mm3: float = Field(0.0, ge=0)
    """Less than this counts as missing."""


class Volume(_Rule):
    """Its volume is an outlier of the collection (median and MAD of the logarithm) or out of bounds."""

    kind: Literal["volume"] = "volume"
    robust_z: float = Field(4.0, gt=0)
    low_mm3: float | None = Field(None, ge=0)
    high_mm3: float | None = Field(None, ge=0)


class Components(_Rule):
    """It falls into too many pieces (26-connected)."""

    kind: Literal["components"] = "components"
    most: int = Field(1, ge=1)
    min_mm3: float = Field(0.0, ge=0)
    """Smaller pieces are not counted."""
    robust_z: float | None = Field(None, gt=0)
    """Counts as too many only beyond this, where given; for structures that always have many pieces."""


class Holes(_Rule):
    """It has cavities."""

    kind: Literal["holes"] = "holes"
    most_mm3: float = Field(0.0, ge=0)
    robust_z: float | None = Field(None, gt=0)


class Gaps(_Rule):
    """Slices without it lie between slices with it, along the axis where that is worst."""

    kind: Literal["gaps"] = "gaps"
    most: int = Field(0, ge=0)
    severity: float = Field(0.8, gt=0, le=1)


class Order(_Rule):
    """Its centroid does not lie on the side of another's where it belongs: laterality, and head over foot."""

    kind: Literal["order"] = "order"
    severity: float = Field(0.95, gt=0, le=1)
    axis: Literal["x", "y", "z"] = "x"
    """In RAS+: x grows to the patient's right, y to the front, z to the head."""
    below: str
    """Structure whose coordinate must be larger; for the left one of a pair, the right one."""
    margin_mm: float = 0.0


class Overlap(_Rule):
    """It takes voxels that proposers call one of the structures which it must not touch."""

    kind: Literal["overlap"] = "overlap"
    others: tuple[str, ...] = Field(alias="with")
    most_mm3: float = Field(0.0, ge=0)
    robust_z: float | None = Field(4.0, gt=0)


class Border(_Rule):
    """It touches the edge of the image, where it should lie within."""

    kind: Literal["border"] = "border"
    most_mm2: float = Field(0.0, ge=0)
    axes: tuple[Literal["x", "y", "z"], ...] = ("x", "y", "z")


class Intensity(_Rule):
    """Its mean intensity is out of range (HU, for CT) or an outlier of the collection."""

    kind: Literal["intensity"] = "intensity"
    low: float | None = None
    high: float | None = None
    robust_z: float | None = Field(None, gt=0)
    contrast_with: str | None = None
    """Judge the difference from this structure's mean, as a share of the image's deviation, instead of the value:
    for modalities without a scale."""


class Roughness(_Rule):
    """Its surface is rougher or smoother than in the collection: area over that of its own smoothed shape."""

    kind: Literal["roughness"] = "roughness"
    robust_z: float = Field(4.0, gt=0)


class Consensus(_Rule):
    """It disagrees with what the proposers agree on."""

    kind: Literal["consensus"] = "consensus"
    severity: float = Field(0.6, gt=0, le=1)
    min_dice: float | None = Field(None, ge=0, le=1)
    robust_z: float | None = Field(4.0, gt=0)


class LabelError(_Rule):
    """Confident learning believes another label for more of it than in the collection."""

    kind: Literal["label_error"] = "label_error"
    severity: float = Field(0.6, gt=0, le=1)
    most_share: float | None = Field(None, ge=0, le=1)
    robust_z: float | None = Field(4.0, gt=0)


Rule = Annotated[
    Expected
    | Volume
    | Components
    | Holes
    | Gaps
    | Order
    | Overlap
    | Border
    | Intensity
    | Roughness
    | Consensus
    | LabelError,
    Field(discriminator="kind"),
]


class RuleBook(Config):
    """All rules of a collection."""

    all: tuple[Rule, ...] = (
        Volume(),
        Gaps(most=1),
        Roughness(),
        Consensus(),
        LabelError(),
    )
    structures: dict[str, tuple[Rule, ...]] = Field(default_factory=dict)

    def of(self, structure: str) -> tuple[Rule, ...]:
        """The rules of one structure."""
        own = self.structures.get(structure, ())
        replaced = {rule.kind for rule in own}
        general = tuple(rule for rule in self.all if rule.kind not in replaced)
        return tuple(rule for rule in (*general, *own) if not rule.off)

    def check_names(self, structures: Sequence[str], source: str) -> None:
        """Makes sure that every structure which a rule names exists.

        Raises:
            ConfigError: one does not.
        """
        named = set(self.structures)
        for rules in (*self.structures.values(), self.all):
            for rule in rules:
                named |= _named(rule)
        unknown = sorted(str(name) for name in named - set(structures))
        if unknown:
            raise ConfigError(
                f"{source}: a rule names {unknown[0]!r}, which is no structure of the collection",
                f"Structures are {', '.join(structures[1:])}.",
            )


def _named(rule: Rule) -> set[str]:
    """The structures that a rule names beside its own."""
    if isinstance(rule, Order):
        return {rule.below}
    if isinstance(rule, Overlap):
        return set(rule.others)
    if isinstance(rule, Intensity) and rule.contrast_with is not None:
        return {rule.contrast_with}
    return set()
