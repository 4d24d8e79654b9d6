"""RECIST 1.1: what the sizes of target lesions over time say about the response to treatment.

Pure arithmetic on millimetres; what is measured in an image is `fedvox.tracking.measure`'s. Every verdict comes with
the rule that led to it. Not medical advice: targets, non-target disease and new lesions are a reader's judgement, and
enter here as such.

    assessments = assess(targets, visits)
    assessments[2].response, assessments[2].rule

Source: Eisenhauer et al. 2009, "New response evaluation criteria in solid tumours: revised RECIST guideline (version
1.1)", Eur J Cancer 45:228-247: sections 3.1 and 4 (measurable disease, nodes, sum of diameters, 5 mm default, lesions
that split or coalesce), 4.3.1 to 4.3.5, tables 1 and 2; EORTC's clarifications (a lesion that can be measured below
5 mm is recorded as measured).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Literal

from fedvox.errors import DataError

MEASURABLE_MM = 10.0
MEASURABLE_NODE_MM = 15.0
NORMAL_NODE_MM = 10.0
TOO_SMALL_MM = 5.0
MOST_TARGETS = 5
MOST_TARGETS_PER_ORGAN = 2
_ROUNDING = 1e-9  # 20 % is 20 %, whatever floating point makes of it


class Response(StrEnum):
    """Overall response at one time point."""

    BASELINE = "baseline"
    CR = "CR"
    PR = "PR"
    SD = "SD"
    PD = "PD"
    NON_CR_NON_PD = "non-CR/non-PD"
    NE = "NE"


@dataclass(frozen=True)
class TargetLesion:
    """A lesion that is measured at every visit.

    Args:
        lesion: its id.
        organ: at most two targets an organ; all lymph nodes are one organ.
        is_node: a lymph node, measured by its short axis.
    """

    lesion: int
    organ: str = ""
    is_node: bool = False


@dataclass(frozen=True)
class Size:
    """One lesion at one visit.

    Args:
        long_mm: longest diameter in the axial plane.
        short_mm: the longest perpendicular to it.
        state: `measured`; `absent` counts 0; `too_small` is seen but cannot be measured and counts 5 mm;
            `not_evaluable` (not imaged, an artefact) counts as unknown.
    """

    long_mm: float = 0.0
    short_mm: float = 0.0
    state: Literal["measured", "absent", "too_small", "not_evaluable"] = "measured"

    def diameter_mm(self, *, is_node: bool) -> float | None:
        """What enters the sum; None where it is not evaluable."""
        if self.state == "measured":
            return self.short_mm if is_node else self.long_mm
        return {"absent": 0.0, "too_small": TOO_SMALL_MM, "not_evaluable": None}[self.state]


NonTarget = Literal["none", "CR", "non-CR/non-PD", "PD", "NE"]


@dataclass(frozen=True)
class RecistVisit:
    """What a reader found at one visit.

    Args:
        day: of the visit, counted from any day; visits are in order of it.
        sizes: target id -> size; a target that is left out is not evaluable. A lesion that broke in pieces is the sum
            of its pieces; of lesions that truly merged, one has the diameter of the whole and the others are absent.
        non_target: of all non-target lesions together; `none` where there are none.
        new_lesions: how many lesions were seen for the first time, unequivocally.
    """

    day: float
    sizes: Mapping[int, Size] = field(default_factory=dict)
    non_target: NonTarget = "none"
    new_lesions: int = 0


@dataclass(frozen=True)
class Assessment:
    """The response at one visit.

    Args:
        day: of the visit.
        sum_mm: of the targets' diameters; None where one of them is not evaluable.
        baseline_mm: sum at the first visit.
        nadir_mm: smallest sum of the visits before, the first included; None at the first.
        change_from_baseline: share, -0.3 for a decrease by 30 %; None where a sum is missing or 0.
        change_from_nadir: share; None likewise.
        target: response of the targets alone.
        response: overall.
        rule: why, in words.
    """

    day: float
    sum_mm: float | None
    baseline_mm: float | None
    nadir_mm: float | None
    change_from_baseline: float | None
    change_from_nadir: float | None
    target: Response
    response: Response
    rule: str


def eligible(size: Size, *, is_node: bool, slice_thickness_mm: float = 0.0) -> bool:
    """Whether a lesion is measurable at the first visit, and so may be a target.

    At least 10 mm in its longest diameter, a node at least 15 mm in its short axis; in slices thicker than 5 mm at
    least twice the slice thickness.
    """
    if size.state != "measured":
        return False
    least = MEASURABLE_NODE_MM if is_node else MEASURABLE_MM
    if slice_thickness_mm > 5.0:
        least = max(least, 2 * slice_thickness_mm)
    found = size.short_mm if is_node else size.long_mm
    return found >= least * (1 - _ROUNDING)


def choose_targets(
    candidates: Sequence[TargetLesion], sizes: Mapping[int, Size], *, slice_thickness_mm: float = 0.0
) -> tuple[TargetLesion, ...]:
    """The largest measurable lesions: at most five, and at most two an organ; all nodes are one organ.

    Args:
        candidates: every lesion of the first visit.
        sizes: at the first visit.
        slice_thickness_mm: of the scan.
    """
    fit = [
        c
        for c in candidates
        if eligible(sizes[c.lesion], is_node=c.is_node, slice_thickness_mm=slice_thickness_mm)
    ]
    fit.sort(key=lambda c: (-(sizes[c.lesion].diameter_mm(is_node=c.is_node) or 0.0), c.lesion))
    chosen: list[TargetLesion] = []
    per_organ: Counter[str] = Counter()
    for candidate in fit:
        organ = "lymph node" if candidate.is_node else candidate.organ
        if len(chosen) < MOST_TARGETS and per_organ[organ] < MOST_TARGETS_PER_ORGAN:
            chosen.append(candidate)
            per_organ[organ] += 1
    return tuple(chosen)


def assess(targets: Sequence[TargetLesion], visits: Sequence[RecistVisit]) -> tuple[Assessment, ...]:
    """The response at every visit.

    Args:
        targets: chosen at the first visit (`choose_targets`); may be none, for non-target disease alone.
        visits: in order of time; the first is the baseline.

    Raises:
        DataError: no visit, visits out of order, a target named twice or not measured at the first visit, or more
            targets than the criteria allow.
    """
    _check(targets, visits)
    found: list[Assessment] = []
    for index, visit in enumerate(visits):
        found.append(_assess_one(targets, visit, visits[:index], found))
    return tuple(found)


def _check(targets: Sequence[TargetLesion], visits: Sequence[RecistVisit]) -> None:
    ids = [target.lesion for target in targets]
    days = [visit.day for visit in visits]
    organs = Counter("lymph node" if t.is_node else t.organ for t in targets)
    if not visits:
        raise _refused("there is no visit", "Give the baseline at least.", "no_visit")
    if any(b <= a for a, b in pairwise(days)):
        raise _refused(
            f"visits are on the days {days}, out of order", "Sort them by date.", "dates_out_of_order"
        )
    if len(set(ids)) < len(ids):
        raise _refused(f"targets {ids} name a lesion twice", "Name each once.", "duplicate_id")
    if len(ids) > MOST_TARGETS:
        raise _refused(f"{len(ids)} lesions are targets", "Choose at most five.", "too_many_targets")
    crowded = [organ for organ, count in organs.items() if organ and count > MOST_TARGETS_PER_ORGAN]
    if crowded:
        raise _refused(
            f"{organs[crowded[0]]} targets are in {crowded[0]}", "Choose two an organ.", "too_many_targets"
        )
    for target in targets:
        size = visits[0].sizes.get(target.lesion)
        if size is None or size.state != "measured":
            raise _refused(
                f"target {target.lesion} was not measured at the first visit",
                "Measure it there, or choose another.",
                "no_baseline",
            )


def _refused(found: str, remedy: str, code: str) -> DataError:
    return DataError(f"RECIST: {found}", remedy, code=code)


def _assess_one(
    targets: Sequence[TargetLesion],
    visit: RecistVisit,
    earlier: Sequence[RecistVisit],
    found: Sequence[Assessment],
) -> Assessment:
    diameters = {t.lesion: _diameter(t, visit) for t in targets}
    known = [d for d in diameters.values() if d is not None]
    total = math.fsum(known) if len(known) == len(targets) and targets else None
    baseline = found[0].sum_mm if found else total
    sums = [a.sum_mm for a in found if a.sum_mm is not None]
    nadir = min(sums) if sums else None
    if not earlier:
        response, rule = Response.BASELINE, f"baseline: {len(targets)} targets, sum {_mm(total)}"
        target = Response.BASELINE
    else:
        target, rule = _target_response(targets, diameters, total, baseline, nadir, found)
        response, rule = _overall(target, rule, visit)
    return Assessment(
        visit.day,
        total,
        baseline,
        nadir,
        _share(total, baseline),
        _share(total, nadir),
        target,
        response,
        rule,
    )


def _diameter(target: TargetLesion, visit: RecistVisit) -> float | None:
    size = visit.sizes.get(target.lesion)
    return None if size is None else size.diameter_mm(is_node=target.is_node)


def _target_response(
    targets: Sequence[TargetLesion],
    diameters: Mapping[int, float | None],
    total: float | None,
    baseline: float | None,
    nadir: float | None,
    found: Sequence[Assessment],
) -> tuple[Response, str]:
    """The response of target lesions (section 4.3.1)."""
    if not targets:
        return Response.NE, "no target lesions"
    assert baseline is not None  # `_check` saw to it
    least = math.fsum(d for d in diameters.values() if d is not None)
    reference = nadir if nadir is not None else baseline
    growth = least - reference
    if _reaches(growth, TOO_SMALL_MM) and _reaches(growth, 0.2 * reference):
        partly = "" if total is not None else ", although not all targets could be evaluated"
        return (
            Response.PD,
            f"sum {_mm(least)} is {_percent(growth, reference)} and {growth:.1f} mm above the nadir of "
            f"{_mm(reference)}{partly} (at least 20 % and 5 mm)",
        )
    if total is None:
        missing = sorted(i for i, d in diameters.items() if d is None)
        return Response.NE, f"targets {missing} could not be evaluated"
    back = _reappeared(targets, diameters, found)
    if back is not None:
        return Response.PD, f"target {back} is there again after complete response"
    if all(_is_gone(t, d) for t, d in zip(targets, diameters.values(), strict=True)):
        nodes = any(t.is_node for t in targets)
        return Response.CR, "all targets disappeared" + (
            ", nodes are below 10 mm in short axis" if nodes else ""
        )
    if _reaches(baseline - total, 0.3 * baseline):
        return (
            Response.PR,
            f"sum {_mm(total)} is {_percent(baseline - total, baseline)} below the baseline of {_mm(baseline)} "
            "(at least 30 %)",
        )
    if _reaches(growth, 0.2 * reference) and growth > 0:
        return (
            Response.SD,
            f"sum {_mm(total)} is {_percent(growth, reference)} above the nadir of {_mm(reference)}, but only by "
            f"{growth:.1f} mm (progression needs 5 mm)",
        )
    return Response.SD, f"sum {_mm(total)} is neither 30 % below baseline nor 20 % and 5 mm above the nadir"


def _reappeared(
    targets: Sequence[TargetLesion], diameters: Mapping[int, float | None], found: Sequence[Assessment]
) -> int | None:
    """A target other than a node that is back after the last evaluable visit found a complete response."""
    evaluable = [a for a in found if a.target not in (Response.NE, Response.BASELINE)]
    if not evaluable or evaluable[-1].target is not Response.CR:
        return None
    return next((t.lesion for t in targets if not t.is_node and diameters[t.lesion]), None)


def _is_gone(target: TargetLesion, diameter: float | None) -> bool:
    if diameter is None:
        return False
    return diameter < NORMAL_NODE_MM * (1 - _ROUNDING) if target.is_node else diameter == 0


def _overall(target: Response, rule: str, visit: RecistVisit) -> tuple[Response, str]:
    """Tables 1 and 2: targets, non-target lesions and new lesions together."""
    if visit.new_lesions:
        return Response.PD, f"{visit.new_lesions} new lesion{'s' if visit.new_lesions > 1 else ''}"
    if target is Response.PD:
        return Response.PD, rule
    if visit.non_target == "PD":
        return Response.PD, "unequivocal progression of non-target lesions"
    if rule == "no target lesions":
        alone = {"CR": Response.CR, "non-CR/non-PD": Response.NON_CR_NON_PD}
        return alone.get(visit.non_target, Response.NE), f"non-target lesions alone: {visit.non_target}"
    if target is Response.CR and visit.non_target not in ("CR", "none"):
        return Response.PR, f"{rule}, but non-target lesions are {visit.non_target}"
    return target, rule


def _reaches(value: float, limit: float) -> bool:
    return value >= limit - _ROUNDING * max(1.0, abs(limit))


def _share(value: float | None, reference: float | None) -> float | None:
    if value is None or reference is None or reference == 0:
        return None
    return value / reference - 1


def _mm(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} mm"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "any share"
