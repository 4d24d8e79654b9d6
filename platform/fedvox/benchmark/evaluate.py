"""`evaluate`: a folder of predictions against a folder of references. Resumable, nothing lost, nothing half written.

    OUTPUT/cases/CASE.json     the outcome of a case; reused if neither its files nor the rules have changed
    OUTPUT/scores.csv          a row per case and structure; scores.parquet has the same
    OUTPUT/problems.csv        cases that are missing or were rejected, each with reason and remedy
    OUTPUT/evaluation.json     counts and means, for scripts
    OUTPUT/report.html         the same for people

Cases are scored in this process, or over Ray with `workers`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from fedvox.benchmark.cases import CaseOutcome, CaseTask, Rules, score_case
from fedvox.benchmark.volumes import list_volumes, write_json, write_text
from fedvox.errors import DataError
from fedvox.evaluation.metric_ids import parse

SCHEMA = "fedvox.evaluation/1"
OnOutcome = Callable[[CaseOutcome], None]


@dataclass(frozen=True)
class Evaluation:
    """Outcomes of all cases of a test set, sorted by case.

    Attributes:
        outcomes: one per reference.
        unexpected: predictions of cases that the references do not have.
        reused: outcomes that an earlier run had scored.
    """

    outcomes: tuple[CaseOutcome, ...]
    unexpected: tuple[str, ...] = ()
    reused: int = 0

    def of_status(self, status: str) -> list[CaseOutcome]:
        """Outcomes with a status."""
        return [o for o in self.outcomes if o.status == status]

    @property
    def coverage(self) -> float:
        """Share of the cases that have a prediction which could be compared."""
        return len(self.of_status("scored")) / len(self.outcomes)

    def frame(self) -> pd.DataFrame:
        """A row per case and structure: case, status, structure, presence, voxel counts, metrics by id."""
        rows = [{"case": o.case, "status": o.status, **row} for o in self.outcomes for row in o.rows]
        return pd.DataFrame(rows)

    def metrics(self) -> list[str]:
        """Ids of the metrics that were measured."""
        described = {"structure", "presence", "reference_voxels", "prediction_voxels"}
        return [name for name in self.outcomes[0].rows[0] if name not in described] if self.outcomes else []

    def summary(self) -> dict[str, Any]:
        """Counts, and per structure the presences and the means of all metrics (missed and hallucinated included)."""
        frame = self.frame()
        metrics = self.metrics()
        structures = {}
        for name, rows in frame.groupby("structure", sort=False):
            means = {m: float(rows[m].mean()) for m in metrics}
            structures[name] = {"presence": rows["presence"].value_counts().to_dict(), "mean": means}
        average = {m: float(pd.Series([s["mean"][m] for s in structures.values()]).mean()) for m in metrics}
        return {
            "schema": SCHEMA,
            "cases": len(self.outcomes),
            **{status: len(self.of_status(status)) for status in ("scored", "missing", "rejected")},
            "coverage": self.coverage,
            "unexpected": list(self.unexpected),
            "structures": structures,
            "mean_over_structures": average,
        }


def evaluate(
    references: Path,
    predictions: Path,
    output: Path,
    rules: Rules,
    *,
    workers: int | Literal["auto"] = 0,
    memory_gib: float = 2.0,
    on_outcome: OnOutcome = lambda _: None,
) -> Evaluation:
    """Score every reference of a folder.

    Args:
        references: folder of CASE.nii.gz.
        predictions: folder of CASE.nii.gz; may lack cases.
        output: folder for the results; what an earlier run scored there is reused where nothing has changed.
        rules: structures, metrics and policies.
        workers: cases at a time over Ray; 0 for one after the other in this process.
        memory_gib: that Ray sets aside for a case.
        on_outcome: called in this process for every case, as soon as it is known.

    Raises:
        DataError: a folder is missing or empty, or a reference cannot be used.
    """
    tasks, unexpected = pair(references, predictions)
    kept: dict[str, CaseOutcome] = {}
    keys = {task.case: _key(task, rules) for task in tasks}
    waiting = []
    for task in tasks:
        found = _stored(output, task.case, keys[task.case])
        if found is None:
            waiting.append(task)
        else:
            kept[task.case] = found
            on_outcome(found)
    reused = len(kept)
    for outcome in _scored(waiting, rules, workers, memory_gib):
        kept[outcome.case] = outcome
        write_json(_case_file(output, outcome.case), {"key": keys[outcome.case], "outcome": asdict(outcome)})
        on_outcome(outcome)
    evaluation = Evaluation(tuple(kept[task.case] for task in tasks), tuple(unexpected), reused)
    write_results(evaluation, output)
    return evaluation


def pair(references: Path, predictions: Path) -> tuple[list[CaseTask], list[str]]:
    """Match two folders by case: a task per reference, and the predictions that match none.

    Raises:
        DataError: a folder is missing, or there are no references.
    """
    expected = list_volumes(references)
    try:
        given = list_volumes(predictions)
    except DataError as error:
        if error.code != "empty_folder":
            raise
        given = {}
    tasks = [CaseTask(case, path, given.get(case)) for case, path in expected.items()]
    return tasks, [case for case in given if case not in expected]


def write_results(evaluation: Evaluation, output: Path) -> None:
    """Write the tables, the summary and the report of an evaluation."""
    from fedvox.benchmark.pages import evaluation_page

    frame = evaluation.frame()
    write_text(output / "scores.csv", frame.to_csv(index=False))
    draft = output / ".scores.parquet.part"
    frame.to_parquet(draft, index=False)
    draft.replace(output / "scores.parquet")
    problems = [o for o in evaluation.outcomes if o.status != "scored" or o.notes]
    columns = ["case", "status", "code", "message", "remedy", "notes"]
    rows = [{**{c: getattr(o, c) for c in columns}, "notes": "; ".join(o.notes)} for o in problems]
    write_text(output / "problems.csv", pd.DataFrame(rows, columns=columns).to_csv(index=False))
    write_json(output / "evaluation.json", evaluation.summary())
    write_text(output / "report.html", evaluation_page(evaluation, [parse(m) for m in evaluation.metrics()]))


def _scored(
    tasks: Sequence[CaseTask], rules: Rules, workers: int | Literal["auto"], memory_gib: float
) -> Iterator[CaseOutcome]:
    if workers == 0 or not tasks:
        yield from (score_case(task, rules) for task in tasks)
        return
    from fedvox.benchmark.ray_shell import score_over_ray

    yield from score_over_ray(tasks, rules, workers=workers, memory_gib=memory_gib)


def _case_file(output: Path, case: str) -> Path:
    return output / "cases" / f"{case}.json"


def _key(task: CaseTask, rules: Rules) -> str:
    """Changes with the contents of the two files and with the rules."""
    digest = hashlib.sha256(rules.digest().encode())
    for path in (task.reference, task.prediction):
        digest.update(b"none" if path is None else hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _stored(output: Path, case: str, key: str) -> CaseOutcome | None:
    path = _case_file(output, case)
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    return CaseOutcome.from_dict(stored["outcome"]) if stored["key"] == key else None
