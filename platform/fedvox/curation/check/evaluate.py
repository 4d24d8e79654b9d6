"""Rules on facts: findings, each with its evidence.

What is usual is the median over the cases of a site, and how far cases stray from it the MAD (scaled to a normal
distribution's deviation); both hardly move when a tenth of the cases is wrong. Sites are judged apart because slice
thickness, protocol and the annotators' habits shift every measure. Where a label is compared with the proposers, the
cases of each first proposer are judged apart too: a model that is worse than the others must not make its cases look
wrong. Groups of few cases are judged by the whole collection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedvox.curation.check import rules as kinds
from fedvox.curation.check.measure import CaseFacts, StructureFacts
from fedvox.curation.check.rules import RuleBook
from fedvox.curation.store import Finding

Array = np.ndarray[Any, Any]

_AXES = ("x", "y", "z")
_TO_DEVIATION = 1.4826  # MAD of a normal distribution -> its standard deviation
_LEAST_CASES = 8  # below, a collection has no "usual"
_LEAST_SHARE = 0.01  # of a structure: cases that differ by less are alike
_MARGIN_MM = 10.0
_EVERYWHERE = "", ""  # the whole collection, and cases of no site and no proposer
_COMPARED = ("claimed", "dice", "doubted")  # numbers that depend on the proposers


@dataclass(frozen=True)
class Spread:
    """What is usual of a number.

    Args:
        median: of the collection.
        deviation: robust, at least a little.
        cases: that have the number.
    """

    median: float
    deviation: float
    cases: int

    def z(self, value: float) -> float:
        """Robust deviations from the median; 0 where the collection is too small to tell, or the value is missing."""
        if self.cases < _LEAST_CASES or not math.isfinite(value):
            return 0.0
        return (value - self.median) / self.deviation


def spread(values: Sequence[float], least_deviation: float) -> Spread:
    """Median and MAD of the finite values; a deviation below `least_deviation` is raised to it."""
    finite = np.asarray([value for value in values if math.isfinite(value)], float)
    if not finite.size:
        return Spread(math.nan, least_deviation, 0)
    median = float(np.median(finite))
    deviation = _TO_DEVIATION * float(np.median(np.abs(finite - median)))
    return Spread(median, max(deviation, least_deviation), int(finite.size))


@dataclass(frozen=True)
class _Hit:
    """A rule that fired: how far beyond its limit (1 is at the limit), and why."""

    excess: float
    evidence: dict[str, Any]


class Checker:
    """Judges the cases of a collection by what is usual in it.

    Args:
        book: the rules.
        cases: facts of all cases.
    """

    def __init__(self, book: RuleBook, cases: Sequence[CaseFacts]) -> None:
        self.book = book
        self.cases = cases
        self._spreads: dict[tuple[str, str], dict[tuple[str, str], Spread]] = {}

    def findings(self, round: int) -> list[Finding]:
        """All findings, case by case."""
        return [finding for case in self.cases for finding in self.check(case, round)]

    def check(self, case: CaseFacts, round: int) -> list[Finding]:
        """The findings of one case, the gravest first."""
        found = []
        for structure in case.structures:
            for rule in self.book.of(structure):
                hit = _CHECKS[rule.kind](self, case, structure, rule)
                if hit is not None:
                    evidence = {"place": list(case.structures[structure].place), **hit.evidence}
                    severity = 1 - (1 - rule.severity) / max(hit.excess, 1.0)
                    found.append(
                        Finding(case.case_id, case.version, round, structure, rule.kind, severity, evidence)
                    )
        return sorted(found, key=lambda finding: -finding.severity)

    def spread(
        self,
        case: CaseFacts,
        structure: str,
        name: str,
        value: Callable[[CaseFacts], float],
        least: float,
    ) -> Spread:
        """What is usual of a number of a structure among cases like this one, computed when first asked for."""
        key = structure, name
        compared = name.startswith(_COMPARED)
        if key not in self._spreads:
            self._spreads[key] = self._by_group(value, least, compared=compared)
        groups = self._spreads[key]
        return next(groups[group] for group in _groups(case, compared) if group in groups)

    def _by_group(
        self, value: Callable[[CaseFacts], float], least: float, *, compared: bool
    ) -> dict[tuple[str, str], Spread]:
        values: dict[tuple[str, str], list[float]] = {_EVERYWHERE: []}
        for case in self.cases:
            number = value(case)
            for group in dict.fromkeys(_groups(case, compared)):
                values.setdefault(group, []).append(number)
        found = {group: spread(numbers, least) for group, numbers in values.items()}
        return {
            group: one for group, one in found.items() if group == _EVERYWHERE or one.cases >= _LEAST_CASES
        }

    @cached_property
    def offsets(self) -> dict[tuple[str, str], Array]:
        """(structure, other) -> median of the structure's centroid less the other's, (x, y, z) mm."""
        gathered: dict[tuple[str, str], list[Array]] = {}
        for case in self.cases:
            present = {
                name: np.asarray(facts.centroid_mm)
                for name, facts in case.structures.items()
                if facts.volume_mm3 > 0
            }
            for name, centre in present.items():
                for other, origin in present.items():
                    if other != name:
                        gathered.setdefault((name, other), []).append(centre - origin)
        return {key: np.median(values, axis=0) for key, values in gathered.items()}


def _groups(case: CaseFacts, compared: bool) -> list[tuple[str, str]]:
    """The groups that a case may be judged in, the closest first."""
    if compared:
        return [(case.site, case.proposer), ("", case.proposer), _EVERYWHERE]
    return [(case.site, ""), _EVERYWHERE]


def _facts(structure: str, read: Callable[[StructureFacts], float]) -> Callable[[CaseFacts], float]:
    """Reads a number of a structure that is present, NaN where it is not."""

    def value(case: CaseFacts) -> float:
        facts = case.structures.get(structure)
        return math.nan if facts is None or facts.volume_mm3 <= 0 else read(facts)

    return value


def _limit(z: float, most: float) -> float:
    return abs(z) / most


def _expected(checker: Checker, case: CaseFacts, structure: str, rule: kinds.Expected) -> _Hit | None:
    if case.structures[structure].volume_mm3 > rule.min_mm3:
        return None
    places = [
        np.asarray(facts.centroid_mm) + checker.offsets[structure, other]
        for other, facts in case.structures.items()
        if facts.volume_mm3 > 0 and (structure, other) in checker.offsets
    ]
    if not places:
        return None
    place = np.median(places, axis=0)
    low, high = np.asarray(case.low_mm) + rule.margin_mm, np.asarray(case.high_mm) - rule.margin_mm
    if ((place < low) | (place > high)).any():
        return None
    return _Hit(
        10.0,
        {
            "volume_mm3": case.structures[structure].volume_mm3,
            "expected_at_mm": [round(float(n), 1) for n in place],
        },
    )


def _volume(checker: Checker, case: CaseFacts, structure: str, rule: kinds.Volume) -> _Hit | None:
    volume = case.structures[structure].volume_mm3
    if volume <= 0:
        return None
    read = _facts(structure, lambda facts: math.log(facts.volume_mm3))
    usual = checker.spread(case, structure, "log_volume", read, 0.05)
    excess = _limit(usual.z(math.log(volume)), rule.robust_z)
    if rule.low_mm3 is not None and volume < rule.low_mm3:
        excess = max(excess, rule.low_mm3 / volume)
    if rule.high_mm3 is not None and volume > rule.high_mm3:
        excess = max(excess, volume / rule.high_mm3)
    if excess < 1:
        return None
    usual_mm3 = math.exp(usual.median) if math.isfinite(usual.median) else None
    return _Hit(excess, {"volume_mm3": volume, "usual_mm3": usual_mm3, "robust_z": usual.z(math.log(volume))})


def _components(checker: Checker, case: CaseFacts, structure: str, rule: kinds.Components) -> _Hit | None:
    def count(facts: StructureFacts) -> float:
        return float(sum(piece >= rule.min_mm3 for piece in facts.pieces_mm3))

    pieces = count(case.structures[structure])
    if pieces <= rule.most:
        return None
    usual = checker.spread(case, structure, f"pieces>{rule.min_mm3:g}", _facts(structure, count), 1.0)
    if rule.robust_z is not None and usual.z(pieces) < rule.robust_z:
        return None
    excess = pieces / rule.most if rule.robust_z is None else usual.z(pieces) / rule.robust_z
    largest = list(case.structures[structure].pieces_mm3[:5])
    return _Hit(excess, {"pieces": pieces, "most": rule.most, "usual": usual.median, "pieces_mm3": largest})


def _holes(checker: Checker, case: CaseFacts, structure: str, rule: kinds.Holes) -> _Hit | None:
    facts = case.structures[structure]
    if facts.holes_mm3 <= rule.most_mm3:
        return None
    share = facts.holes_mm3 / facts.volume_mm3
    read = _facts(structure, lambda facts: facts.holes_mm3 / facts.volume_mm3)
    z = checker.spread(case, structure, "holes", read, _LEAST_SHARE).z(share)
    if rule.robust_z is not None and z < rule.robust_z:
        return None
    excess = facts.holes_mm3 / max(rule.most_mm3, 1.0) if rule.robust_z is None else z / rule.robust_z
    return _Hit(
        excess, {"holes_mm3": facts.holes_mm3, "most_mm3": rule.most_mm3, "share": share, "robust_z": z}
    )


def _gaps(checker: Checker, case: CaseFacts, structure: str, rule: kinds.Gaps) -> _Hit | None:  # noqa: ARG001
    gap = case.structures[structure].gap_slices
    if gap <= rule.most:
        return None
    return _Hit(gap / (rule.most + 1), {"empty_slices": gap, "most": rule.most})


def _order(checker: Checker, case: CaseFacts, structure: str, rule: kinds.Order) -> _Hit | None:  # noqa: ARG001
    axis = _AXES.index(rule.axis)
    mine = case.structures[structure].centroid_mm[axis]
    other = case.structures[rule.below].centroid_mm[axis]
    if not math.isfinite(mine) or not math.isfinite(other) or mine + rule.margin_mm < other:
        return None
    beyond = mine + rule.margin_mm - other
    evidence = {"axis": rule.axis, "mm": mine, "must_be_below": rule.below, "which_is_at_mm": other}
    return _Hit(1 + beyond / _MARGIN_MM, evidence)


def _overlap(checker: Checker, case: CaseFacts, structure: str, rule: kinds.Overlap) -> _Hit | None:
    def taken(facts: StructureFacts) -> float:
        return sum(facts.claimed_mm3.get(name, 0.0) for name in rule.others)

    facts = case.structures[structure]
    volume = taken(facts)
    if volume <= rule.most_mm3:
        return None
    name = "claimed:" + ",".join(rule.others)
    read = _facts(structure, lambda facts: taken(facts) / facts.volume_mm3)
    z = checker.spread(case, structure, name, read, _LEAST_SHARE).z(volume / facts.volume_mm3)
    if rule.robust_z is not None and z < rule.robust_z:
        return None
    excess = volume / max(rule.most_mm3, 1.0) if rule.robust_z is None else z / rule.robust_z
    claimed = {name: round(facts.claimed_mm3.get(name, 0.0), 1) for name in rule.others}
    return _Hit(excess, {"claimed_mm3": claimed, "most_mm3": rule.most_mm3, "robust_z": z})


def _border(checker: Checker, case: CaseFacts, structure: str, rule: kinds.Border) -> _Hit | None:  # noqa: ARG001
    areas = dict(zip(_AXES, case.structures[structure].border_mm2, strict=True))
    touched = {axis: area for axis, area in areas.items() if axis in rule.axes and area > rule.most_mm2}
    if not touched:
        return None
    return _Hit(max(touched.values()) / max(rule.most_mm2, 1.0), {"border_mm2": touched})


def _intensity(checker: Checker, case: CaseFacts, structure: str, rule: kinds.Intensity) -> _Hit | None:
    def value(one: CaseFacts) -> float:
        mean = _facts(structure, lambda facts: facts.mean_intensity)(one)
        if rule.contrast_with is None:
            return mean
        return (
            mean - _facts(rule.contrast_with, lambda facts: facts.mean_intensity)(one)
        ) / one.image_deviation

    mean = value(case)
    if not math.isfinite(mean):
        return None
    usual = checker.spread(case, structure, f"intensity:{rule.contrast_with}", value, 1e-3)
    excess = 0.0 if rule.robust_z is None else _limit(usual.z(mean), rule.robust_z)
    beyond = (rule.low is not None and mean < rule.low) or (rule.high is not None and mean > rule.high)
    if excess < 1 and not beyond:
        return None
    evidence = {
        "mean": mean,
        "low": rule.low,
        "high": rule.high,
        "usual": usual.median,
        "robust_z": usual.z(mean),
    }
    return _Hit(max(excess, 2.0 if beyond else 1.0), evidence)


def _roughness(checker: Checker, case: CaseFacts, structure: str, rule: kinds.Roughness) -> _Hit | None:
    roughness = case.structures[structure].roughness
    usual = checker.spread(
        case, structure, "roughness", _facts(structure, lambda facts: facts.roughness), 0.01
    )
    excess = _limit(usual.z(roughness), rule.robust_z)
    if excess < 1:
        return None
    return _Hit(excess, {"roughness": roughness, "usual": usual.median, "robust_z": usual.z(roughness)})


def _consensus(checker: Checker, case: CaseFacts, structure: str, rule: kinds.Consensus) -> _Hit | None:
    dice = case.structures[structure].consensus_dice
    if not math.isfinite(dice):
        return None
    usual = checker.spread(
        case, structure, "dice", lambda one: one.structures[structure].consensus_dice, 0.01
    )
    excess = 0.0 if rule.robust_z is None else -usual.z(dice) / rule.robust_z
    if rule.min_dice is not None and dice < rule.min_dice:
        excess = max(excess, (1 - dice) / max(1 - rule.min_dice, 1e-6))
    if excess < 1:
        return None
    different = case.structures[structure].different_mm3
    return _Hit(
        excess,
        {"dice": dice, "usual": usual.median, "robust_z": usual.z(dice), "different_mm3": different},
    )


def _label_error(checker: Checker, case: CaseFacts, structure: str, rule: kinds.LabelError) -> _Hit | None:
    def share(facts: StructureFacts) -> float:
        return facts.doubted_mm3 / facts.volume_mm3

    facts = case.structures[structure]
    doubted = share(facts) if facts.volume_mm3 > 0 else math.nan
    usual = checker.spread(case, structure, "doubted", _facts(structure, share), 0.005)
    excess = 0.0 if rule.robust_z is None else usual.z(doubted) / rule.robust_z
    if rule.most_share is not None and doubted > rule.most_share:
        excess = max(excess, doubted / max(rule.most_share, 1e-6))
    if excess < 1:
        return None
    evidence = {"doubted_mm3": facts.doubted_mm3, "share": doubted, "usual": usual.median}
    return _Hit(excess, {**evidence, "robust_z": usual.z(doubted)})


_CHECKS: Mapping[str, Callable[[Checker, CaseFacts, str, Any], _Hit | None]] = {
    "expected": _expected,
    "volume": _volume,
    "components": _components,
    "holes": _holes,
    "gaps": _gaps,
    "order": _order,
    "overlap": _overlap,
    "border": _border,
    "intensity": _intensity,
    "roughness": _roughness,
    "consensus": _consensus,
    "label_error": _label_error,
}
