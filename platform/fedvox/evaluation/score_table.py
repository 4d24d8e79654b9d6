"""One metric of several methods on the same cases, complete by declared rules: what all statistics start from.

A table of methods × cases × structures has three kinds of holes, and none of them may be dropped quietly:

- *not applicable*: neither the reference nor any method's prediction has the structure. The cell counts for nobody;
- *correct rejection*: the reference lacks the structure, this method left it out, but another one hallucinated it.
  Beside the hallucination, which scores worst, leaving it out scores best (otherwise the hallucinating method
  would have one bad case more, and no method one good case more);
- *missing*: the method did not submit the case. It scores worst. Dropping such cells would let a method win by
  leaving out the hard cases.

So a cell is applicable to all methods or to none, and every comparison is paired over the same cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedvox.errors import DataError
from fedvox.evaluation.metric_ids import MetricId, parse

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ScoreTable:
    """Complete, paired scores of one metric.

    Attributes:
        metric: what was measured.
        methods: M names.
        cases: N names.
        structures: S names.
        values: `(M, N, S)`; NaN exactly where `applicable` is False.
        applicable: `(N, S)` cells that count, the same for all methods.
        missing: `(M,)` applicable cells that the method did not submit, and that were filled with `worst`.
        rejections: `(M,)` cells that were filled with the best score as correct rejections.
        worst: the value that missing cells were given.
        clusters: `(N,)` which patient a case is of; cases of one patient are not independent.
    """

    metric: MetricId
    methods: tuple[str, ...]
    cases: tuple[str, ...]
    structures: tuple[str, ...]
    values: FloatArray
    applicable: Mask
    missing: npt.NDArray[np.int64]
    rejections: npt.NDArray[np.int64]
    worst: float
    clusters: npt.NDArray[np.int64]

    @property
    def quality(self) -> FloatArray:
        """The values as numbers of which more is better, `(M, N, S)`."""
        if self.metric.family.better == "higher":
            return self.values
        return -np.abs(self.values)

    @property
    def num_patients(self) -> int:
        """Independent units: patients, or cases where nothing is known of patients."""
        return int(self.clusters.max()) + 1 if len(self.clusters) else 0

    def case_means(self) -> FloatArray:
        """Mean quality over the applicable structures of each case, `(M, N)`; NaN where there is none."""
        total = np.where(self.applicable, self.quality, 0).sum(axis=2)
        count = self.applicable.sum(axis=1)
        means = np.full(total.shape, np.nan)
        np.divide(total, count, out=means, where=count > 0)
        return means

    def select(
        self,
        cases: Sequence[int] | Mask | npt.NDArray[np.intp] | None = None,
        methods: Sequence[str] | None = None,
        structures: Sequence[str] | None = None,
    ) -> ScoreTable:
        """The same table for some cases (indices or mask), methods or structures (names).

        The counts of filled cells stay those of the whole table.
        """
        rows = np.arange(len(self.cases)) if cases is None else np.arange(len(self.cases))[np.asarray(cases)]
        kept = [self.methods.index(m) for m in (self.methods if methods is None else methods)]
        columns = [self.structures.index(s) for s in (self.structures if structures is None else structures)]
        _, clusters = np.unique(self.clusters[rows], return_inverse=True)
        return replace(
            self,
            methods=tuple(self.methods[m] for m in kept),
            cases=tuple(self.cases[i] for i in rows),
            structures=tuple(self.structures[k] for k in columns),
            values=self.values[kept][:, rows][:, :, columns],
            applicable=self.applicable[rows][:, columns],
            missing=self.missing[kept],
            rejections=self.rejections[kept],
            clusters=clusters.astype(np.int64),
        )

    def measured(self) -> ScoreTable:
        """The same table without the structures and cases that have no applicable cell."""
        rows, columns = (np.flatnonzero(self.applicable.any(axis=axis)) for axis in (1, 0))
        return self.select(cases=rows, structures=[self.structures[k] for k in columns])


def complete(
    metric: str | MetricId,
    methods: Sequence[str],
    cases: Sequence[str],
    structures: Sequence[str],
    values: FloatArray,
    *,
    missing: Mask | None = None,
    worst: float | None = None,
    patients: Sequence[str] | None = None,
) -> ScoreTable:
    """Complete raw scores to a table by the rules at the top of this module.

    Args:
        metric: id of the metric.
        methods: M names.
        cases: N names.
        structures: S names.
        values: `(M, N, S)` scores; NaN where not applicable to the method, or missing.
        missing: `(M, N, S)` cells that were not submitted; none by default.
        worst: value of a missing cell. By default 0 for metrics of which more is better, otherwise the largest
            value that any method has in the table.
        patients: `(N,)` patient of each case, where several cases can be of one.

    Raises:
        DataError: names repeat, shapes disagree, or a value is infinite.
    """
    metric = parse(metric) if isinstance(metric, str) else metric
    values = np.asarray(values, np.float64)
    missing = np.zeros(values.shape, bool) if missing is None else missing
    _check(methods, cases, structures, values)
    values = np.where(missing, np.nan, values)
    applicable: Mask = np.logical_or.reduce(np.isfinite(values), axis=0)
    magnitude = np.abs(values[np.isfinite(values)])
    higher = metric.family.better == "higher"
    if worst is None:
        worst = 0.0 if higher or not len(magnitude) else float(magnitude.max())
    best = 1.0 if higher else 0.0
    lacking = missing & applicable
    rejected = np.isnan(values) & applicable & ~missing
    filled = np.where(lacking, worst, np.where(rejected, best, values))
    _, clusters = np.unique(
        np.asarray(cases if patients is None else patients, dtype=str), return_inverse=True
    )
    return ScoreTable(
        metric,
        tuple(methods),
        tuple(cases),
        tuple(structures),
        filled,
        applicable,
        lacking.sum(axis=(1, 2)),
        rejected.sum(axis=(1, 2)),
        worst,
        clusters.astype(np.int64),
    )


def from_frames(
    metric: str,
    frames: Mapping[str, pd.DataFrame],
    cases: Sequence[str],
    structures: Sequence[str],
    *,
    worst: float | None = None,
    patients: Mapping[str, str] | None = None,
) -> ScoreTable:
    """Build a table from one data frame per method.

    Args:
        metric: id of the metric, a column of every frame.
        frames: method -> rows with the columns `case`, `structure` and the metric. A row whose metric is NaN says
            not applicable; a row that is not there is missing.
        cases: the test set, whether or not any method submitted all of it.
        structures: the structures of the test set.
        worst: see `complete`.
        patients: case -> patient.

    Raises:
        DataError: a frame lacks a column, has a cell twice, or has a case or structure that the test set has not.
    """
    shape = (len(frames), len(cases), len(structures))
    values, missing = np.full(shape, np.nan), np.ones(shape, bool)
    row = pd.Index(cases)
    column = pd.Index(structures)
    for m, (method, frame) in enumerate(frames.items()):
        if absent := {"case", "structure", metric} - set(frame.columns):
            raise DataError(
                f"scores of {method!r} lack the columns {sorted(absent)}", "Evaluate it with this metric."
            )
        at = row.get_indexer(frame["case"]), column.get_indexer(frame["structure"])
        _check_cells(method, frame, *at)
        values[m][at] = frame[metric].to_numpy(np.float64)
        missing[m][at] = False
    order = None if patients is None else [patients[case] for case in cases]
    return complete(
        metric, list(frames), cases, structures, values, missing=missing, worst=worst, patients=order
    )


def _check(
    methods: Sequence[str], cases: Sequence[str], structures: Sequence[str], values: FloatArray
) -> None:
    for kind, names in (("method", methods), ("case", cases), ("structure", structures)):
        if len(set(names)) != len(names):
            twice = next(n for n in names if list(names).count(n) > 1)
            raise DataError(
                f"{kind} {twice!r} occurs more than once", f"Give every {kind} a name of its own."
            )
    expected = (len(methods), len(cases), len(structures))
    if values.shape != expected:
        remedy = "Order them methods, cases, structures."
        raise DataError(f"scores have shape {values.shape}, expected {expected}", remedy)
    if np.isinf(values).any():
        m, n, s = np.argwhere(np.isinf(values))[0]
        raise DataError(
            f"{methods[m]!r} scores infinity in case {cases[n]!r}, {structures[s]!r}",
            "Measure with a finite penalty for empty masks, for instance EmptyPolicy(distance='diagonal').",
        )


def _check_cells(method: str, frame: pd.DataFrame, rows: Any, columns: Any) -> None:
    for name, at in (("case", rows), ("structure", columns)):
        if (at < 0).any():
            unknown = frame[name].iloc[int(np.flatnonzero(at < 0)[0])]
            raise DataError(
                f"{method!r} has scores of {name} {unknown!r}", f"The test set has no such {name}."
            )
    twice = frame.duplicated(["case", "structure"])
    if twice.any():
        case, structure = frame.loc[twice, ["case", "structure"]].iloc[0]
        remedy = "Keep one row per case and structure."
        raise DataError(f"{method!r} has two scores of case {case!r}, {structure!r}", remedy)
