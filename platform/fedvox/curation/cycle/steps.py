"""The steps of a round that machines do: propose, check, queue. Each can be run again; what is done stays done."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedvox.config import load_config
from fedvox.curation.check.evaluate import Checker
from fedvox.curation.check.examine import (
    Examined,
    examine,
    is_examined,
    read_evidence,
    read_examined,
    with_doubts,
    write_examined,
)
from fedvox.curation.check.pictures import draw_finding
from fedvox.curation.check.rules import RuleBook
from fedvox.curation.cycle.config import CurateConfig
from fedvox.curation.cycle.models import Models
from fedvox.curation.propose.confident import LabelEvidence, thresholds
from fedvox.curation.propose.proposers import propose_case
from fedvox.curation.queueing.build import fill_queue
from fedvox.curation.queueing.estimates import calibrated_pace
from fedvox.curation.queueing.priority import Pace, Scores, score_cases
from fedvox.curation.store import Finding, LabelStore
from fedvox.errors import DamagedCase
from fedvox.inference.device import choose_device
from fedvox.storage import Location, read_bytes, write_atomic

log = logging.getLogger(__name__)

OnCase = Callable[[int, int], None]
"""Told how many cases of how many are done."""

_SCORES = ("gain", "gain_mm3", "wrong", "structures")


def propose(
    config: CurateConfig,
    store: LabelStore,
    round: int,
    models: Models,
    *,
    actor: str,
    on_case: OnCase | None = None,
) -> dict[str, Any]:
    """Runs the proposers on every case outside of the gold set, and measures its label against them.

    A damaged case is left out and told; a case that is done is passed over.

    Raises:
        ConfigError: there are fewer than two proposers.
    """
    cases = store.cases(gold=False)
    open_cases = [case for case in cases if not is_examined(store, case.case_id, round)]
    damaged: dict[str, str] = {}
    if open_cases:
        proposers = models.proposers(store, config.propose.folds)
        device = choose_device(config.propose.device)
        for proposer in proposers:
            proposer.member.network.to(device)
        for done, case in enumerate(open_cases, start=1 + len(cases) - len(open_cases)):
            try:
                found = propose_case(
                    store,
                    case,
                    proposers,
                    config.propose.imported,
                    overlap=config.propose.overlap,
                    device=device,
                )
                examined = examine(store, case, round, found, method=config.propose.consensus)
                store.record_versions(examined.versions, actor=actor)
                write_examined(store, round, examined)  # after the rows: a case that is done has its versions
            except DamagedCase as error:
                damaged[case.case_id] = error.message
                log.warning("%s", error)
            if on_case is not None:
                on_case(done, len(cases))
    return {"cases": len(cases) - len(damaged), "damaged": damaged}


def check(config: CurateConfig, store: LabelStore, round: int, *, actor: str) -> dict[str, Any]:
    """Judges every examined case by the rules; writes findings, pictures and scores."""
    book = rule_book(config, store)
    examined = _examined(store, round)
    facts = _with_doubts(store, round, examined)
    checker = Checker(book, facts)
    findings = checker.findings(round)
    findings = _drawn(config, store, findings, examined)
    store.findings.replace(round, findings, actor=actor)
    write_scores(store.round_folder(round), score_cases(facts, findings))
    by_rule: dict[str, int] = {}
    for finding in findings:
        by_rule[finding.rule] = by_rule.get(finding.rule, 0) + 1
    return {
        "cases": len(facts),
        "findings": len(findings),
        "cases_with_findings": len({finding.case_id for finding in findings}),
        "by_rule": by_rule,
        "attention_mm3": _attention(examined),
    }


def queue(config: CurateConfig, store: LabelStore, round: int, *, actor: str) -> dict[str, Any]:
    """Fills the round's queue from the scores."""
    scores = read_scores(store.round_folder(round))
    settings = config.queue
    pace = calibrated_pace(store.reviews(), Pace(settings.look_minutes, settings.repair_minutes))
    items = fill_queue(store, round, scores, settings, pace, seed=config.seed, actor=actor)
    by_purpose: dict[str, int] = {}
    for item in items:
        by_purpose[item.purpose] = by_purpose.get(item.purpose, 0) + 1
    return {
        "cases": len(scores.case_ids),
        "items": by_purpose,
        "minutes": round_to(sum(item.minutes for item in items)),
        "pace": {"look_minutes": pace.look_minutes, "repair_minutes": pace.repair_minutes},
    }


def rule_book(config: CurateConfig, store: LabelStore) -> RuleBook:
    """The collection's rules.

    Raises:
        ConfigError: the file is wrong, or names a structure that there is not.
    """
    book = load_config(RuleBook, config.rules)
    book.check_names(store.structures, config.rules or "rules")
    return book


def write_scores(folder: Location, scores: Scores) -> None:
    """Keeps the scores as a Parquet file."""
    columns = {name: np.asarray(getattr(scores, name), float) for name in _SCORES}
    table = pa.table({"case_id": list(scores.case_ids), **columns})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(folder.child("scores.parquet"), sink.getvalue())


def read_scores(folder: Location) -> Scores:
    """The inverse of `write_scores`.

    Raises:
        StorageError: the round has not been checked.
    """
    table = pq.read_table(pa.BufferReader(read_bytes(folder.child("scores.parquet"))))
    columns = {name: table[name].to_numpy() for name in _SCORES}
    return Scores(tuple(table["case_id"].to_pylist()), **columns)


def _examined(store: LabelStore, round: int) -> dict[str, Examined]:
    return {
        case.case_id: read_examined(store, case.case_id, round)
        for case in store.cases(gold=False)
        if is_examined(store, case.case_id, round)
    }


def _with_doubts(store: LabelStore, round: int, examined: dict[str, Examined]) -> list[Any]:
    evidence: dict[str, LabelEvidence] = {}
    for case_id in examined:
        found = read_evidence(store, case_id, round)
        if found is not None:
            evidence[case_id] = found
    threshold = thresholds(list(evidence.values())) if evidence else np.zeros(0)
    return [
        with_doubts(one.facts, evidence[case_id], threshold, store.structures)
        if case_id in evidence
        else one.facts
        for case_id, one in examined.items()
    ]


def _drawn(
    config: CurateConfig, store: LabelStore, findings: Sequence[Finding], examined: dict[str, Examined]
) -> list[Finding]:
    """The findings, the gravest with a picture."""
    gravest = sorted(range(len(findings)), key=lambda n: -findings[n].severity)[: config.pictures]
    chosen = set(gravest)
    drawn: dict[int, str] = {}
    by_case: dict[str, list[int]] = {}
    for number in sorted(chosen):
        by_case.setdefault(findings[number].case_id, []).append(number)
    for case_id, numbers in by_case.items():
        case = store.case(case_id)
        image = store.images.read(case_id)[0]
        agreed = store.masks.read(examined[case_id].versions[-1].mask_sha256)
        head = agreed if case.head is None else store.read_mask(store.version(case_id, case.head))
        for number in numbers:
            drawn[number] = draw_finding(store, case, findings[number], image, head, agreed)
    return [
        replace(finding, picture=drawn[number]) if number in drawn else finding
        for number, finding in enumerate(findings)
    ]


def _attention(examined: dict[str, Examined]) -> dict[str, float]:
    """Mean volume of each map over the cases, mm³."""
    totals: dict[str, float] = {}
    for one in examined.values():
        for facts in one.facts.structures.values():
            for name, volume in facts.attention_mm3.items():
                totals[name] = totals.get(name, 0.0) + volume / len(examined)
    return {name: round_to(value) for name, value in totals.items()}


def round_to(value: float) -> float:
    """Two digits after the point; NaN as it is."""
    return value if math.isnan(value) else float(f"{value:.2f}")
