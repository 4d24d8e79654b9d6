"""The whole benchmark: run or collect predictions, evaluate, check fairness, analyse, report.

    OUTPUT/submissions/NAME/TEST SET/            evaluation of a submission, see `fedvox.benchmark.evaluate`
    OUTPUT/submissions/NAME/TEST SET/run/        what a command predicted, and how it ended
    OUTPUT/submissions/NAME/TEST SET/replicate-0/  evaluation of another seed or fold
    OUTPUT/fingerprints.json                     of all images, for the leakage check
    OUTPUT/results.json, pairwise.csv            everything, for scripts
    OUTPUT/report.html                           everything, for people
    OUTPUT/site/                                 the leaderboard

Every step reuses what an earlier run finished, so the same command goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedvox.benchmark import fairness
from fedvox.benchmark.analysis import BenchmarkAnalysis, analyse
from fedvox.benchmark.cases import Rules
from fedvox.benchmark.evaluate import Evaluation, evaluate
from fedvox.benchmark.fairness import Check
from fedvox.benchmark.leakage import Fingerprint, Leak, find_leaks, fingerprint
from fedvox.benchmark.manifest import BenchmarkManifest, TestSetConfig
from fedvox.benchmark.runner import ShardResult, ShardTask, plan_shards, run_shard
from fedvox.benchmark.submission import Submission
from fedvox.benchmark.volumes import list_images, write_json
from fedvox.errors import ConfigError, DataError
from fedvox.evaluation.score_table import from_frames

Workers = int | Literal["auto"]
Report = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark found.

    Attributes:
        manifest: the rules.
        submissions: all of them, by name.
        evaluations: test set -> submission -> evaluation.
        runs: submission -> test set -> how its command ended, shard by shard.
        checks: all verdicts.
        analysis: rankings and comparisons.
    """

    manifest: BenchmarkManifest
    submissions: Mapping[str, Submission]
    evaluations: Mapping[str, Mapping[str, Evaluation]]
    runs: Mapping[str, Mapping[str, tuple[ShardResult, ...]]]
    checks: tuple[Check, ...]
    analysis: BenchmarkAnalysis

    def checks_of(self, subject: str) -> list[Check]:
        """Verdicts about a submission or a test set."""
        return [c for c in self.checks if c.subject == subject]

    def is_conclusive(self, test_set: str) -> bool:
        """Whether a ranking on this test set may be called a result: it can tell methods apart, and has no leak."""
        return all(c.holds for c in self.checks_of(test_set))

    def may_be_called_better(self, submission: str) -> bool:
        """Whether "better than" may be said of a submission: none of its fairness checks fails."""
        return all(c.holds for c in self.checks_of(submission))


def run_benchmark(
    manifest: BenchmarkManifest,
    submissions: Sequence[Submission],
    output: Path,
    *,
    workers: Workers = 0,
    gpus_per_run: float = 0.0,
    cases_per_shard: int = 50,
    memory_gib: float = 2.0,
    on_progress: Report = lambda _: None,
) -> BenchmarkResult:
    """Run a benchmark from its manifest and its submissions to the report and the leaderboard.

    Args:
        manifest: see `load_benchmark`.
        submissions: see `load_submission`.
        output: folder; run again with the same one to go on.
        workers: cases (and runs of commands) at a time over Ray; 0 for this process.
        gpus_per_run: GPUs that Ray sets aside for a command.
        cases_per_shard: cases that one call of a command predicts.
        memory_gib: that Ray sets aside for scoring a case.
        on_progress: told what is being done.

    Raises:
        ConfigError: submissions share a name, or name test sets that do not exist.
        DataError: data of the benchmark itself cannot be used, or no submission covers a test set.
        RunError: this system cannot hide the references from a command.
    """
    _check_submissions(manifest, submissions)
    runner = _Runner(manifest, output, workers, gpus_per_run, cases_per_shard, memory_gib, on_progress)
    with _cluster(workers):
        evaluations, runs = runner.everything(submissions)
        checks = _checks(manifest, submissions, evaluations, runner)
    frames = {t: {s: e.frame() for s, e in found.items()} for t, found in evaluations.items()}
    on_progress("analysing")
    analysis = analyse(manifest, frames)
    by_name = {s.name: s for s in submissions}
    result = BenchmarkResult(manifest, by_name, evaluations, runs, tuple(checks), analysis)
    from fedvox.benchmark.results import write_benchmark

    write_benchmark(result, output)
    return result


@contextmanager
def _cluster(workers: Workers) -> Iterator[None]:
    """One Ray for all steps; none for one process."""
    if workers == 0:
        yield
        return
    from fedvox.data.ingest_ray import connected

    with connected(workers):
        yield


@dataclass(frozen=True)
class _Runner:
    """Predictions and evaluations of one benchmark, with what they share."""

    manifest: BenchmarkManifest
    output: Path
    workers: Workers
    gpus_per_run: float
    cases_per_shard: int
    memory_gib: float
    on_progress: Report

    def everything(
        self, submissions: Sequence[Submission]
    ) -> tuple[dict[str, dict[str, Evaluation]], dict[str, dict[str, tuple[ShardResult, ...]]]]:
        """Evaluations by test set and submission, and runs of commands by submission and test set."""
        evaluations: dict[str, dict[str, Evaluation]] = {t.name: {} for t in self.manifest.test_sets}
        runs: dict[str, dict[str, tuple[ShardResult, ...]]] = {}
        for submission in submissions:
            for test_set in self.manifest.test_sets:
                predictions, shards = self.predictions(submission, test_set)
                if shards:
                    runs.setdefault(submission.name, {})[test_set.name] = shards
                if predictions is not None:
                    folder = self.folder(submission, test_set)
                    evaluations[test_set.name][submission.name] = self.evaluate(predictions, folder, test_set)
        return evaluations, runs

    def folder(self, submission: Submission, test_set: TestSetConfig) -> Path:
        return self.output / "submissions" / submission.name / test_set.name

    def predictions(
        self, submission: Submission, test_set: TestSetConfig
    ) -> tuple[Path | None, tuple[ShardResult, ...]]:
        """Folder of a submission's predictions for a test set (None: not submitted), and how its command ended."""
        if not submission.is_run:
            return submission.predictions.get(test_set.name), ()
        if test_set.images is None:
            return None, ()
        work = self.folder(submission, test_set) / "run"
        shards = plan_shards(
            test_set.images,
            submission.runs(),
            work,
            hidden=self._hidden(),
            read_paths=submission.reads(),
            cases_per_shard=self.cases_per_shard,
            seconds_per_case=self.manifest.budget.seconds_per_case,
            container=submission.container,
        )
        self.on_progress(f"running {submission.name} on {test_set.name}: {len(shards)} shards")
        results = tuple(self._run_all(shards))
        (work / "predictions").mkdir(parents=True, exist_ok=True)
        return work / "predictions", results

    def evaluate(self, predictions: Path, folder: Path, test_set: TestSetConfig) -> Evaluation:
        rules = Rules(
            self.manifest.structures_of(test_set),
            self.manifest.structures,
            self.manifest.plan(),
            self.manifest.ignore_label,
        )
        self.on_progress(f"scoring {folder.relative_to(self.output / 'submissions')}")
        return evaluate(
            test_set.references, predictions, folder, rules, workers=self.workers, memory_gib=self.memory_gib
        )

    def replicate_scores(self, submission: Submission, test_set: TestSetConfig) -> list[float]:
        """Aggregated scores of the other seeds or folds of a submission."""
        folders = submission.replicates.get(test_set.name, ())
        found = [
            self.evaluate(folder, self.folder(submission, test_set) / f"replicate-{i}", test_set)
            for i, folder in enumerate(folders)
        ]
        return [self.aggregated(evaluation, test_set) for evaluation in found]

    def aggregated(self, evaluation: Evaluation, test_set: TestSetConfig) -> float:
        """The score by the declared metric and aggregation, of one evaluation alone."""
        from fedvox.evaluation.ranking import rank_methods

        rules = self.manifest.ranking
        cases, structures = list(test_set.cases()), list(self.manifest.structures_of(test_set))
        table = from_frames(rules.metric, {"run": evaluation.frame()}, cases, structures)
        return float(rank_methods(table, rules.aggregation, resamples=100).scores[0])

    def leaks(self, test_set: TestSetConfig) -> list[Leak] | None:
        """Training images that the test set contains; None where one side is not at hand."""
        training = self.manifest.training.images
        if training is None or test_set.images is None:
            return None
        self.on_progress(f"comparing the images of {test_set.name} with the training images")
        return find_leaks(self.fingerprints(test_set.images), self.fingerprints(training))

    def fingerprints(self, folder: Path) -> dict[str, Fingerprint]:
        """Fingerprints of a folder's images (first channel), kept for the next run."""
        path = self.output / "fingerprints.json"
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found = {}
        for case, (first, *_) in list_images(folder).items():
            key = f"{first}|{first.stat().st_size}|{first.stat().st_mtime_ns}"
            if key not in kept:
                new = fingerprint(first)
                kept[key] = {"sha256": new.sha256, "thumbnail": [round(float(v), 7) for v in new.thumbnail]}
            found[case] = Fingerprint.from_dict(kept[key])
        write_json(path, kept)
        return found

    def _hidden(self) -> list[Path]:
        return [t.references for t in self.manifest.test_sets]

    def _run_all(self, shards: Sequence[ShardTask]) -> Iterable[ShardResult]:
        if self.workers == 0:
            return [run_shard(shard) for shard in shards]
        from fedvox.benchmark.ray_shell import run_shards_over_ray

        return run_shards_over_ray(shards, workers=self.workers, gpus=self.gpus_per_run)


def _check_submissions(manifest: BenchmarkManifest, submissions: Sequence[Submission]) -> None:
    names = [s.name for s in submissions]
    if not names:
        raise ConfigError("there is no submission", "Give the folder or submission.yaml of at least one.")
    if twice := {n for n in names if names.count(n) > 1}:
        raise ConfigError(f"submissions share the name {sorted(twice)[0]!r}", "Give each a name of its own.")
    known = {t.name for t in manifest.test_sets}
    for s in submissions:
        if unknown := (set(s.predictions) | set(s.replicates)) - known:
            raise ConfigError(
                f"submission {s.name} names test sets {sorted(unknown)}",
                f"The benchmark has: {', '.join(sorted(known))}.",
            )


def _checks(
    manifest: BenchmarkManifest,
    submissions: Sequence[Submission],
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    runner: _Runner,
) -> list[Check]:
    checks: list[Check | None] = []
    test_cases = {t.name: list(t.cases()) for t in manifest.test_sets}
    for s in submissions:
        coverage = {t: found[s.name].coverage for t, found in evaluations.items() if s.name in found}
        checks += [
            fairness.check_confounders(s, submissions, manifest.budget.tolerance),
            fairness.check_baseline(s, submissions, manifest.budget.tolerance),
            fairness.check_reporting(s, coverage, list(test_cases)),
            fairness.check_training_cases(s, test_cases),
        ]
    of_sets: list[Check] = []
    for t in manifest.test_sets:
        runs = {
            s.name: [runner.aggregated(evaluations[t.name][s.name], t), *runner.replicate_scores(s, t)]
            for s in submissions
            if s.name in evaluations[t.name]
        }
        of_sets.append(fairness.check_discrimination(t.name, runs, manifest.ranking.discrimination))
        try:
            of_sets.append(fairness.check_leakage(t.name, runner.leaks(t)))
        except DataError as error:
            raise DataError(
                f"leakage check of {t.name}: {error.message}", error.remedy, code=error.code
            ) from error
    return [c for c in checks if c is not None] + fairness.waived(of_sets, manifest)
