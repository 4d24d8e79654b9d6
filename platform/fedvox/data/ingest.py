"""From raw volumes to a brick store: list, measure, decide the spacing, write, report.

    list       what each source holds, its labels joined into one space            (this process)
    measure    a fingerprint of each case; only where the spacing is to be decided  (a task a case)
    write      read, check, resample and store each case                            (a task a case)
    finish     manifest, store.json, the data set's intensities, report             (this process)

A case that cannot be used is reported with its reasons and never stops the others. The same command run again
passes over every case that is done, whatever ended the run before: at most the cases under way are lost.

    STORE/ingest/report.json, report.csv    what became of every case
    STORE/ingest/cases/ID.json              fingerprints
    STORE/label_space.json                  source label -> structure, regions, ignore value
    STORE/fingerprint.json                  as nnU-Net writes it
    STORE/splits.json                       folds, where a source came with some
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fedvox.data.contact_sheet import write_contact_sheet
from fedvox.data.fingerprint import DatasetFingerprint, join_fingerprints, target_spacing
from fedvox.data.ingest_case import (
    UNLABELLED,
    CaseFunction,
    CaseOutcome,
    CasePlan,
    measure_case,
    write_case,
)
from fedvox.data.ingest_config import IngestConfig, SourceConfig
from fedvox.data.ingest_progress import followed
from fedvox.data.ingest_report import IngestReport, rejected_outcome
from fedvox.data.label_space import LabelSpace, join_labels, load_mapping
from fedvox.data.raw_dataset import RawCase
from fedvox.data.records import StoreMeta
from fedvox.data.sources import JoinedSources, open_sources
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import StoreWriter
from fedvox.errors import ConfigError, StorageError
from fedvox.storage import locate, write_atomic
from fedvox.training.config import expand, require_lasting

__all__ = ["Ingest", "IngestConfig", "IngestReport", "SourceConfig", "ingest", "plan_ingest"]

_Runner = Callable[[CaseFunction, Sequence[RawCase], CasePlan, Callable[[CaseOutcome], None]], None]


@dataclass(frozen=True)
class Ingest:
    """An ingest that is planned and not begun.

    Args:
        config: as given.
        sources: what was found.
        space: the joined labels.
        plan: what all cases share; its spacing is open where it is to be decided.
    """

    config: IngestConfig
    sources: JoinedSources
    space: LabelSpace
    plan: CasePlan


def plan_ingest(config: IngestConfig) -> Ingest:
    """Lists the sources and joins their labels; no voxel is read and nothing is written.

    Raises:
        ConfigError: no output was named, it lies in a source, or where Ray deletes it.
        DataError: a source cannot be understood, or the sources do not fit together.
        StorageError: a bucket is missing or forbidden.
    """
    if not config.output:
        raise ConfigError("`output` is empty", "Name the store: --output FOLDER or s3://bucket/store.")
    require_lasting(config.output, "output")
    output = locate(expand(config.output)).uri
    paths = [source.model_copy(update={"path": expand(source.path)}) for source in config.sources]
    if any(locate(source.path).uri == output for source in paths):
        raise ConfigError(f"`output` {output} is one of the sources", "Name another folder for the store.")
    sources = open_sources(paths, allow_unlabelled=config.allow_unlabelled)
    mapping = load_mapping(locate(expand(config.label_mapping)).local_path) if config.label_mapping else None
    space = join_labels(sources.label_sets, mapping)
    spacing = None if isinstance(config.spacing_mm, str) else config.spacing_mm
    plan = CasePlan(
        output=output,
        meta=_meta(config, sources, space, spacing),
        space=space,
        label_sets=sources.label_sets,
        spacing_mm=spacing,
        crop_to_nonzero=config.crop_to_nonzero,
        dtype=config.dtype,
        codec=config.codec,
        tolerate=config.tolerate,
    )
    return Ingest(config, sources, space, plan)


def _meta(
    config: IngestConfig,
    sources: JoinedSources,
    space: LabelSpace,
    spacing: tuple[float, float, float] | None,
) -> StoreMeta:
    unlabelled = {UNLABELLED: (0,)} if config.allow_unlabelled else {}
    return StoreMeta(
        name=config.name or sources.datasets[0].name,
        channel_names=sources.channel_names,
        modality=sources.modality,
        structures=space.structures,
        label_sets={**space.annotated, **unlabelled},
        normalization="ct" if sources.modality == "CT" else "zscore",
        spacing_mm=spacing,
        crop_to_nonzero=config.crop_to_nonzero,
    )


def ingest(config: IngestConfig) -> IngestReport:
    """Builds the store; see the module.

    Returns:
        What became of every case; at least one was accepted.

    Raises:
        ConfigError, DataError: see `plan_ingest`.
        DataError: no case can be used; every reason is in the message, and in the report on file.
        RunError: every case failed by a fault of the program.
        StorageError: the store cannot be written (no space, forbidden); what is done stays done.
    """
    begin = time.monotonic()
    planned = plan_ingest(config)
    # before any work: is the store ours, and can it be written?
    StoreWriter.create(planned.plan.output, planned.plan.meta, codec=config.codec)
    with _runner(config) as run:
        outcomes, plan, reason = _decide_spacing(planned, run)
        wanted = {outcome.case_id for outcome in outcomes if outcome.status != "accepted"}
        cases = [case for case in planned.sources.cases if case.case_id not in wanted]
        written = _all(run, write_case, cases, plan, "writing")
    unusable = [outcome for outcome in outcomes if outcome.status != "accepted"]
    early = [rejected_outcome(rejected) for rejected in planned.sources.rejected]
    every = sorted([*early, *unusable, *written], key=lambda outcome: outcome.case_id)
    report = _finish(replace(planned, plan=plan), every, reason, begin)
    error = report.error()
    if error is not None and not report.accepted:
        raise error
    return report


def _decide_spacing(planned: Ingest, run: _Runner) -> tuple[list[CaseOutcome], CasePlan, str]:
    """The first pass, where there is one: outcomes, the plan with its spacing, and the reason for that."""
    plan = planned.plan
    if planned.config.spacing_mm != "auto":
        return [], plan, "as configured"
    outcomes = _all(run, measure_case, planned.sources.cases, plan, "measuring")
    prints = [outcome.fingerprint for outcome in outcomes if outcome.fingerprint is not None]
    if not prints:
        return outcomes, plan, "no case"
    spacing = target_spacing([p.spacing_mm for p in prints], [p.shape for p in prints])
    meta = replace(plan.meta, spacing_mm=spacing)
    reason = f"nnU-Net's rule over {len(prints)} cases"
    return outcomes, replace(plan, spacing_mm=spacing, meta=meta), reason


# ---- running -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _runner(config: IngestConfig) -> Iterator[_Runner]:
    """Yields the `_Runner` that the configuration asks for."""
    if config.workers == 0:
        yield _in_process
        return
    from fedvox.data.ingest_ray import connected, run_over_ray

    def run(
        step: CaseFunction,
        cases: Sequence[RawCase],
        plan: CasePlan,
        on_outcome: Callable[[CaseOutcome], None],
    ) -> None:
        run_over_ray(
            step,
            cases,
            plan,
            workers=config.workers,
            memory_gib=config.memory_gib,
            retries=config.retries,
            on_outcome=on_outcome,
        )

    with connected(config.workers):
        yield run


def _in_process(
    step: CaseFunction, cases: Sequence[RawCase], plan: CasePlan, on_outcome: Callable[[CaseOutcome], None]
) -> None:
    for case in cases:
        on_outcome(step(case, plan))


def _all(
    run: _Runner, step: CaseFunction, cases: Sequence[RawCase], plan: CasePlan, task: str
) -> list[CaseOutcome]:
    outcomes: list[CaseOutcome] = []
    with followed(task, len(cases)) as follow:

        def on_outcome(outcome: CaseOutcome) -> None:
            outcomes.append(outcome)
            follow(outcome)
            if outcome.status == "stopped":
                error = outcome.errors[0]
                raise StorageError(error.message, error.remedy)

        run(step, cases, plan, on_outcome)
    return outcomes


# ---- finishing ---------------------------------------------------------------------------------------------


def _finish(planned: Ingest, outcomes: list[CaseOutcome], reason: str, begin: float) -> IngestReport:
    plan, accepted = planned.plan, [o for o in outcomes if o.status == "accepted"]
    absent: tuple[str, ...] = ()
    sheet, notes = None, _notes(planned)
    if accepted:
        prints = join_fingerprints([o.fingerprint for o in accepted if o.fingerprint is not None])
        meta = replace(plan.meta, intensity=prints.intensity)
        writer = StoreWriter(locate(plan.output), meta, plan.codec)
        _write_companions(planned, prints, {o.case_id for o in accepted})
        writer.finish(meta, case_ids=[o.case_id for o in accepted])
        store = BrickStore.open(plan.output)
        absent = _absent(store)
        sheet, note = write_contact_sheet(store, planned.config.contact_sheet_cases)
        notes += [note] if note else []
    report = IngestReport(
        output=plan.output,
        found=tuple(dataset.describe() for dataset in planned.sources.datasets),
        outcomes=tuple(outcomes),
        structures=plan.meta.structures,
        absent=absent,
        spacing_mm=plan.spacing_mm,
        spacing_reason=reason,
        num_bytes=sum(outcome.num_bytes for outcome in accepted),
        seconds=time.monotonic() - begin,
        contact_sheet=sheet,
        notes=tuple(notes),
    )
    folder = locate(plan.output).child("ingest")
    write_atomic(folder.child("report.json"), report.to_json())
    write_atomic(folder.child("report.csv"), report.to_csv())
    return report


def _notes(planned: Ingest) -> list[str]:
    notes = []
    modalities = sorted({dataset.modality for dataset in planned.sources.datasets})
    if len(modalities) > 1:
        notes.append(
            f"the sources mix {' and '.join(modalities)}: every case is normalized by itself (zscore)"
        )
    if any(labels.ignore is not None for labels in planned.sources.label_sets.values()):
        notes.append(f"voxels to ignore are stored as {planned.space.ignore_index}")
    return notes


def _write_companions(planned: Ingest, prints: DatasetFingerprint, accepted: set[str]) -> None:
    root, space = locate(planned.plan.output), planned.space
    labels = {
        "structures": list(space.structures),
        "ignore_index": space.ignore_index,
        "regions": {name: list(indices) for name, indices in space.regions.items()},
        "label_sets": {
            key: {
                "annotated": list(space.annotated[key]),
                "values": {str(value): index for value, index in values.items()},
            }
            for key, values in space.values.items()
        },
    }
    folds = [
        {part: [case for case in ids if case in accepted] for part, ids in fold.items()}
        for fold in planned.sources.splits
    ]
    to_json = partial(json.dumps, indent=1)
    write_atomic(root.child("label_space.json"), to_json(labels).encode())
    write_atomic(root.child("fingerprint.json"), to_json(prints.to_nnunet()).encode())
    if folds:
        write_atomic(root.child("splits.json"), to_json(folds).encode())


def _absent(store: BrickStore) -> tuple[str, ...]:
    present = {0} | {index for row in range(len(store)) for index in store.record(row).class_voxels}
    return tuple(name for index, name in enumerate(store.meta.structures) if index not in present)
