"""The report of a round: what was reviewed, what was found, and what it did for the models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fedvox.curation.cycle.config import CurateConfig
from fedvox.curation.queueing.estimates import Detection, agreement, annotators, detection
from fedvox.curation.store import LabelStore, Review
from fedvox.storage import write_atomic


def write_report(config: CurateConfig, store: LabelStore, round: int) -> dict[str, Any]:
    """Writes `report.json` and `report.md` of a round.

    Args:
        config: of the cycle.
        store: the label store.
        round: whose reviews are all in.

    Returns:
        The report; `stop` holds the reason for no further round, or nothing.
    """
    found = make_report(config, store, round)
    folder = store.round_folder(round)
    write_atomic(folder.child("report.json"), (json.dumps(found, indent=1) + "\n").encode())
    write_atomic(folder.child("report.md"), _markdown(found).encode())
    return found


def make_report(config: CurateConfig, store: LabelStore, round: int) -> dict[str, Any]:
    """The report as plain data; JSON has null where there is no estimate."""
    every = store.reviews()
    reviews = [review for review in every if review.round == round]
    looked = {review.case_id for review in every if review.purpose in ("queue", "audit")}
    cases = len(store.cases(gold=False))
    found = detection(reviews, cases)
    gate = store.rounds.step(round, "gate") or {}
    report = {
        "schema": "fedvox.curation-round/1",
        "round": round,
        "cases": cases,
        "reviewed": len({review.case_id for review in reviews if review.purpose in ("queue", "audit")}),
        "reviewed_share_so_far": len(looked) / max(cases, 1),
        "minutes": sum(review.seconds for review in reviews) / 60,
        "detection": asdict(found),
        "label_error": asdict(found.audited),
        "double_reading": asdict(agreement(reviews, _dice(store), purpose="double")),
        "blind_rereading": asdict(agreement(every, _dice(store), purpose="blind")),
        "annotators": [asdict(one) for one in annotators(every)],
        "check": store.rounds.step(round, "check"),
        "gate": {key: value for key, value in gate.items() if key != "models"},
        "stop": _stop(config, found, round),
    }
    told: dict[str, Any] = _without_nan(report)
    return told


def _stop(config: CurateConfig, found: Detection, round: int) -> str:
    if round >= config.stop.max_rounds:
        return f"{round} rounds are done (stop.max_rounds)"
    if found.audited.trials and found.audited.high <= config.stop.residual_error:
        return (
            f"the audit's interval for the error rate of unseen cases, {found.audited.low:.1%} to "
            f"{found.audited.high:.1%}, lies below {config.stop.residual_error:.1%} (stop.residual_error)"
        )
    ours, random = found.errors_per_minute, found.random_errors_per_minute
    if found.audited.trials >= _LEAST_AUDITS and random > 0 and ours < config.stop.advantage * random:
        return (
            f"the queue finds {ours:.2f} errors a minute, a random look {random:.2f} (stop.advantage): "
            "the checks know no more than chance"
        )
    return ""


_LEAST_AUDITS = 20


def _dice(store: LabelStore) -> Any:
    """Mean Dice over the structures of the results of two reviews."""

    def dice(first: Review, second: Review) -> float:
        if first.result == second.result or first.result is None or second.result is None:
            return 1.0 if first.result == second.result else 0.0
        a, b = (
            store.read_mask(store.version(first.case_id, number)) for number in (first.result, second.result)
        )
        scores = []
        for index in range(1, len(store.structures)):
            total = np.count_nonzero(a == index) + np.count_nonzero(b == index)
            if total:
                scores.append(2 * np.count_nonzero((a == index) & (b == index)) / total)
        return float(np.mean(scores)) if scores else 1.0

    return dice


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _markdown(report: dict[str, Any]) -> str:
    found, audit = report["detection"], report["label_error"]
    lines = [
        f"# Round {report['round']}",
        "",
        f"{report['reviewed']} of {report['cases']} cases were reviewed in {report['minutes']:.1f} minutes; "
        f"{report['reviewed_share_so_far']:.1%} of the collection so far.",
        "",
        "| | |",
        "|--|--|",
        f"| errors found through the queue | {found['queued']['hits']} of {found['queued']['trials']} |",
        f"| errors a minute, queue / random | {_number(found['errors_per_minute'])} / "
        f"{_number(found['random_errors_per_minute'])} |",
        f"| error rate of cases outside of the queue | {_interval(audit)} |",
        f"| sensitivity, specificity of the queue | {_number(found['sensitivity'])}, {_number(found['specificity'])} |",
        f"| double reading: same verdict, kappa, Dice | {_second(report['double_reading'])} |",
        f"| blind re-reading: same verdict, kappa, Dice | {_second(report['blind_rereading'])} |",
    ]
    return "\n".join([*lines, *_gate_lines(report["gate"]), "", *_stop_lines(report["stop"]), ""])


def _gate_lines(gate: dict[str, Any]) -> Sequence[str]:
    if not gate.get("structures"):
        return ("", "No gold set, so the retrained models were not judged.")
    said = "took the old ones' place" if gate["passed"] else "were refused; the old ones stay"
    rows = [
        f"| {one['structure']} | {one['before']:.4f} | {one['after']:.4f} | {one['low']:+.4f} to {one['high']:+.4f} | "
        f"{'yes' if one['passes'] else 'no'} |"
        for one in gate["structures"]
    ]
    return ["", f"The retrained models {said}.", "", "| structure | Dice before | after | change, 95 % | passes |",
            "|--|--|--|--|--|", *rows]  # fmt: skip


def _stop_lines(stop: str) -> Sequence[str]:
    return (f"**The cycle stops**: {stop}.",) if stop else ("Another round follows.",)


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g}"


def _interval(found: dict[str, Any]) -> str:
    if not found["trials"]:
        return "no audit"
    return f"{found['hits']} of {found['trials']} audited: {found['low']:.1%} to {found['high']:.1%}"


def _second(found: dict[str, Any]) -> str:
    if not found["pairs"]:
        return "none"
    return f"{found['same_verdict']:.0%}, {_number(found['kappa'])}, {_number(found['dice'])} ({found['pairs']} pairs)"
