"""What a benchmark is: a folder with `benchmark.yaml`, which fixes everything before the first submission.

    benchmark.yaml
        name: abdomen-9
        structures: {liver: 1, kidneys: [2, 3]}
        training: {images: ../train/imagesTr}          # to find leaks
        test_sets:
          - {name: internal, kind: internal, images: a/images, references: a/labels, metadata: a/cases.csv}
          - {name: hospital-b, kind: external, images: b/images, references: b/labels}
        metrics: [dice, nsd@2mm/surfel, hd95/surfel]
        ranking: {metric: dice, aggregation: structure_macro, margin: 0.005}
        budget: {vram_gib: 24, gpu_hours: 35}

Paths are relative to the file. References are hidden: nothing but the evaluation reads them, see
`fedvox.benchmark.sandbox`.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedvox.benchmark.volumes import list_volumes
from fedvox.config import Config, load_config
from fedvox.errors import ConfigError, DataError
from fedvox.evaluation.bootstrap import Aggregation
from fedvox.evaluation.lesions import LesionPolicy
from fedvox.evaluation.metric_ids import MetricId, parse
from fedvox.evaluation.metrics import EmptyPolicy, MetricPlan

FILE_NAME = "benchmark.yaml"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name that can be part of a file's name."""


class TestSetConfig(Config):
    """Cases of one origin, ranked on their own.

    Attributes:
        name: of the test set.
        kind: `internal` is drawn from the training distribution, `external` from elsewhere.
        images: folder of images, given to submissions: CASE_0000.nii.gz, CASE_0001.nii.gz …
        references: folder of label maps, never given to submissions: CASE.nii.gz.
        structures: those annotated here; all of the benchmark by default.
        metadata: CSV with a column `case`, and patient, age, sex, site, manufacturer … for subgroups.
        sha256: pins the references (`TestSetConfig.fingerprint`), so that they cannot change unnoticed.
    """

    __test__ = False  # not a test, whatever pytest thinks of the name

    name: Name
    kind: Literal["internal", "external"] = "internal"
    images: Path | None = None
    references: Path
    structures: tuple[str, ...] | None = None
    metadata: Path | None = None
    sha256: str | None = None

    def cases(self) -> dict[str, Path]:
        """Case -> reference, sorted by case.

        Raises:
            DataError: the folder is missing or holds no label map.
        """
        return list_volumes(self.references)

    def attributes(self) -> dict[str, dict[str, str]]:
        """Case -> attributes from the metadata; cases without a row are left out.

        Raises:
            DataError: the file is missing, or has no column `case`, or a case twice.
        """
        if self.metadata is None:
            return {}
        if not self.metadata.is_file():
            raise DataError(f"{self.metadata} does not exist", f"Correct `metadata` of test set {self.name}.")
        with self.metadata.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
        if not rows or "case" not in rows[0]:
            raise DataError(f"{self.metadata} has no column `case`", "Name the cases in a column `case`.")
        found: dict[str, dict[str, str]] = {}
        for row in rows:
            if row["case"] in found:
                raise DataError(f"{self.metadata} has case {row['case']!r} twice", "Keep one row per case.")
            found[row["case"]] = {key: value or "" for key, value in row.items() if key and key != "case"}
        return found

    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the references."""
        digest = hashlib.sha256()
        for case, path in self.cases().items():
            digest.update(case.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


class TrainingConfig(Config):
    """The data that submissions are trained on.

    Attributes:
        images: folder of the training images, for leakage checks against the test sets; None if not at hand.
        cases: ids of the official training cases; a submission that names others has used extra data.
    """

    images: Path | None = None
    cases: tuple[str, ...] = ()


class RankingConfig(Config):
    """How methods are ranked and compared.

    Attributes:
        metric: the one that ranks.
        aggregation: how cells become a score.
        alpha: family-wise error rate of all comparisons.
        margin: smallest difference that matters, in units of the metric.
        confidence: coverage of intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        min_group: patients from which a subgroup is tested.
        discrimination: smallest ratio of the spread between methods to the spread between seeds or folds of one
            method at which a ranking is called conclusive.
    """

    metric: str = "dice"
    aggregation: Aggregation = Aggregation.STRUCTURE_MACRO
    alpha: float = Field(0.05, gt=0, lt=1)
    margin: float = Field(0.0, ge=0)
    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(1000, ge=100)
    seed: int = 0
    min_group: int = Field(20, ge=2)
    discrimination: float = Field(1.0, gt=0)


class BudgetConfig(Config):
    """What a comparison is matched in. A submission within `tolerance` of the baseline's is of the same budget.

    Attributes:
        vram_gib: peak memory in training.
        gpu_hours: of training.
        tolerance: relative difference that still counts as equal.
        seconds_per_case: limit for the inference of one case; None for none.
    """

    vram_gib: float | None = Field(None, gt=0)
    gpu_hours: float | None = Field(None, gt=0)
    tolerance: float = Field(0.2, ge=0)
    seconds_per_case: float | None = Field(None, gt=0)


class LesionConfig(Config):
    """See `fedvox.evaluation.lesions.LesionPolicy`; thresholds come from the metric ids."""

    connectivity: Literal[6, 18, 26] = 26
    min_volume_mm3: float = Field(0.0, ge=0)


class EmptyConfig(Config):
    """See `fedvox.evaluation.metrics.EmptyPolicy`. An infinite penalty cannot be averaged, so it is not offered."""

    distance: Literal["diagonal"] | Annotated[float, Field(gt=0)] = "diagonal"
    absent: Literal["exclude", "perfect"] = "exclude"
    hallucinated_volume_error: float = Field(1.0, ge=0)


class BenchmarkManifest(Config):
    """A benchmark. See the top of this module."""

    schema_: Literal["fedvox.benchmark/1"] = Field("fedvox.benchmark/1", alias="schema")
    name: Name
    title: str = ""
    description: str = ""
    version: str = "1"
    structures: dict[str, int | tuple[int, ...]] = Field(min_length=1)
    ignore_label: int | None = None
    training: TrainingConfig = TrainingConfig()
    test_sets: tuple[TestSetConfig, ...] = Field(min_length=1)
    metrics: tuple[str, ...] = ("dice", "nsd@2mm/surfel", "hd95/surfel")
    lesions: LesionConfig = LesionConfig()
    empty: EmptyConfig = EmptyConfig()
    ranking: RankingConfig = RankingConfig()
    budget: BudgetConfig = BudgetConfig()
    subgroups: tuple[str, ...] = ()
    """Attributes of the metadata by which results are broken down."""
    age_bins: tuple[float, ...] = (40.0, 60.0, 80.0)
    """Bounds between the age groups, for a column `age`."""
    waivers: dict[str, Annotated[str, Field(min_length=10)]] = Field(default_factory=dict)
    """`P3/TEST SET` or `leakage/TEST SET` -> why the check does not apply; the report shows it."""
    min_coverage: float = Field(1.0, gt=0, le=1)
    """Share of the cases that a submission must have to be ranked. Missing cases score worst in any case."""

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for metric in metrics:
            try:
                parse(metric)
            except ConfigError as error:
                raise ValueError(f"{error.message} ({error.remedy})") from error
        return metrics

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ranking.metric not in self.metrics:
            raise ValueError(
                f"ranking.metric {self.ranking.metric!r} is not one of metrics: {list(self.metrics)}"
            )
        names = [t.name for t in self.test_sets]
        if len(set(names)) != len(names):
            raise ValueError(f"test_sets: names repeat: {names}")
        for test_set in self.test_sets:
            if unknown := set(test_set.structures or ()) - set(self.structures):
                raise ValueError(
                    f"test set {test_set.name}: structures {sorted(unknown)} are not in structures"
                )
        for family in ("lesion", "pq"):
            thresholds = {m.iou for m in self.parsed_metrics() if _lesion_family(m) == family}
            if len(thresholds) > 1:
                raise ValueError(
                    f"metrics: {family} metrics use several thresholds {sorted(map(str, thresholds))}"
                )
        return self

    def parsed_metrics(self) -> list[MetricId]:
        """The metrics, parsed."""
        return [parse(metric) for metric in self.metrics]

    def plan(self) -> MetricPlan:
        """What is measured in every case so that all metrics are known."""
        ids = self.parsed_metrics()
        tolerances = tuple(sorted({m.tolerance_mm for m in ids if m.tolerance_mm is not None}))
        surfaces = tuple(sorted({m.surface for m in ids if m.surface is not None}))
        iou = {_lesion_family(m): m.iou for m in ids if m.iou is not None}
        lesions = None
        if iou:
            lesions = LesionPolicy(
                f1_iou=iou.get("lesion") or 0.1,
                pq_iou=iou.get("pq") or 0.5,
                connectivity=self.lesions.connectivity,
                min_volume_mm3=self.lesions.min_volume_mm3,
            )
        empty = EmptyPolicy(**self.empty.model_dump())
        return MetricPlan(tolerances or (2.0,), surfaces, lesions, empty)

    def structures_of(self, test_set: TestSetConfig) -> dict[str, int | tuple[int, ...]]:
        """The structures that are annotated in a test set."""
        return {name: self.structures[name] for name in test_set.structures or self.structures}

    def test_set(self, name: str) -> TestSetConfig:
        """The test set of a name.

        Raises:
            ConfigError: there is none.
        """
        for test_set in self.test_sets:
            if test_set.name == name:
                return test_set
        known = ", ".join(t.name for t in self.test_sets)
        raise ConfigError(f"benchmark {self.name} has no test set {name!r}", f"It has: {known}.")


def load_benchmark(path: Path | str) -> BenchmarkManifest:
    """Read a benchmark's manifest; its paths become absolute.

    Args:
        path: the folder, or the YAML file itself.

    Raises:
        ConfigError: the manifest is missing or not usable; all problems are named.
        DataError: the references are not the pinned ones.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    manifest = load_config(BenchmarkManifest, path)
    folder = path.resolve().parent
    test_sets = tuple(
        t.model_copy(
            update={f: _absolute(folder, getattr(t, f)) for f in ("images", "references", "metadata")}
        )
        for t in manifest.test_sets
    )
    for test_set in test_sets:
        if test_set.sha256 is not None and (found := test_set.fingerprint()) != test_set.sha256:
            raise DataError(
                f"the references of test set {test_set.name} are not the pinned ones: {found}",
                "Restore them, or publish a new version of the benchmark with this sha256.",
            )
    training = manifest.training.model_copy(update={"images": _absolute(folder, manifest.training.images)})
    return manifest.model_copy(update={"test_sets": test_sets, "training": training})


def _absolute(folder: Path, path: Path | None) -> Path | None:
    return None if path is None else (folder / path.expanduser()).resolve()


def _lesion_family(metric: MetricId) -> str | None:
    if metric.family.kind != "lesion":
        return None
    return "lesion" if metric.family.name.startswith("lesion_") else "pq"
