"""Does the cycle help? Arms that differ in what people look at, from the same wrong labels, with the same training.

    queue     people look at what the queue says
    random    at as many cases, drawn at random
    none      nobody looks; the models go on learning all the same
    clean     nothing was wrong in the first place

The arms of one seed begin with copies of one base: collection, first models, proposals, checks. Every arm and round
is written down when it is done; run again, the study goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedvox.curation.cycle import steps
from fedvox.curation.cycle.config import CurateConfig
from fedvox.curation.cycle.models import Train
from fedvox.curation.cycle.rounds import ACTOR, Cycle
from fedvox.curation.queueing.priority import Pace, Scores
from fedvox.curation.simulation.brains import write_brains
from fedvox.curation.simulation.collections import planted, write_collection
from fedvox.curation.simulation.reviewer import SimulatedReviewer
from fedvox.curation.store import LabelStore
from fedvox.data.store import BrickStore
from fedvox.storage import locate, write_atomic

ARMS = ("queue", "random", "none", "clean")


@dataclass(frozen=True)
class StudyOptions:
    """What the study consists of.

    Args:
        folder: of everything.
        cases: outside of the gold set.
        gold: cases of the frozen set.
        share: of the cases that are corrupted.
        rounds: of each arm.
        resolution_mm: in-plane voxel size.
    """

    folder: Path
    cases: int = 80
    gold: int = 12
    share: float = 0.1
    rounds: int = 3
    resolution_mm: float = 6.0


@dataclass(frozen=True)
class Study:
    """Runs the cells of the study.

    Args:
        options: what it consists of.
        config: of the cycle; store and queue order are the study's own.
        train: see `Cycle`.
        tell: told what begins.
    """

    options: StudyOptions
    config: CurateConfig
    train: Train
    tell: Callable[[str], None] = print

    def brains(self, seed: int) -> BrickStore:
        """The images with their true labels."""
        options = self.options
        return write_brains(
            str(options.folder / f"brains-{seed}"),
            options.cases + options.gold,
            resolution_mm=options.resolution_mm,
            seed=seed,
        )

    def base(self, seed: int) -> LabelStore:
        """A collection with planted errors, proposed and checked, its queue not filled."""
        folder = self.options.folder / f"seed-{seed}-base"
        store = write_collection(
            str(folder), self.brains(seed), gold=self.options.gold, share=self.options.share, seed=seed
        )
        self._cycle(store, seed, "priority").prepare()
        return store

    def detection(self, seed: int) -> dict[str, Any]:
        """How many of the planted errors are in the first tenth of the queue."""
        path = self.options.folder / f"detection-{seed}.json"
        if not path.is_file():
            store = self.base(seed)
            _write(path, found_early(store, self.config, share=0.1))
        return _read(path)

    def arm(self, seed: int, arm: str) -> dict[str, Any]:
        """One arm's curve: after each round, the reviewed share, Dice on the gold set, and Dice of the labels."""
        path = self.options.folder / f"arm-{seed}-{arm}.json"
        if path.is_file():
            return _read(path)
        truth = self.brains(seed)
        store = self._arm_store(seed, arm, truth)
        cycle = self._cycle(store, seed, "priority" if arm == "queue" else "random")
        # Readers look twice and miss nothing here; the arm nobody reviews is one who accepts whatever they see.
        reviewer = SimulatedReviewer(store, truth, misses=1.0 if arm in ("none", "clean") else 0.0)
        points = [{"reviewed": 0.0, "label_dice": label_dice(store, truth, 0), "gold": None}]
        while store.rounds.current < self.options.rounds or not _closed(store):
            self.tell(f"seed {seed}, {arm}: round {store.rounds.current} of {self.options.rounds}")
            if arm != "queue":
                _pass_over_checks(store, self.config)
            cycle.advance()
            reviewer.answer_all()
            if cycle.advance().state == "stopped":
                break
        for number in range(1, self.options.rounds + 1):
            points.append(_point(store, truth, number))
        points[0]["gold"] = store.rounds.step(1, "gate")["dice"]["before"]  # type: ignore[index]  # a gold set is there
        _write(path, {"seed": seed, "arm": arm, "points": points})
        return _read(path)

    def _arm_store(self, seed: int, arm: str, truth: BrickStore) -> LabelStore:
        folder = self.options.folder / f"seed-{seed}-{arm}"
        if arm == "clean":
            return write_collection(
                str(folder), truth, gold=self.options.gold, share=0.0, seed=seed, clean=True
            )
        if not folder.exists():
            base = self.base(seed)
            base.close()
            draft = folder.with_name(f".{folder.name}.tmp")
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(base.location.local_path, draft)
            draft.rename(folder)
        return LabelStore.open(str(folder))

    def _cycle(self, store: LabelStore, seed: int, order: str) -> Cycle:
        queue = self.config.queue.model_copy(update={"order": order, "double_share": 0.0, "blind_share": 0.0})
        stop = self.config.stop.model_copy(
            update={"max_rounds": self.options.rounds, "residual_error": 0.0, "advantage": 0.0}
        )
        changes = {"store": store.location.uri, "queue": queue, "stop": stop, "seed": seed}
        return Cycle(self.config.model_copy(update=changes), store, self.train, tell=self.tell)


def found_early(store: LabelStore, config: CurateConfig, *, share: float) -> dict[str, Any]:
    """The share of the planted errors among the first cases by priority, in all and by kind.

    Args:
        store: a simulated collection, checked in round 1.
        config: for the pace of people.
        share: of the cases that count as first.
    """
    scores = steps.read_scores(store.round_folder(1))
    priority = scores.priority(Pace(config.queue.look_minutes, config.queue.repair_minutes))
    order = [scores.case_ids[n] for n in np.argsort(-priority, kind="stable")]
    first = set(order[: round(share * len(order))])
    wrong = planted(store)
    kinds: dict[str, list[int]] = {}
    for one in wrong:
        kinds.setdefault(one.kind, []).append(one.case_id in first)
    recall = sum(one.case_id in first for one in wrong) / len(wrong)
    return {
        "cases": len(order),
        "corrupted": len(wrong),
        "share": share,
        "recall": recall,
        "times_random": recall / share,
        "by_kind": {kind: [sum(hits), len(hits)] for kind, hits in sorted(kinds.items())},
        "ranks": {f"{one.case_id} {one.kind}": order.index(one.case_id) + 1 for one in wrong},
    }


def label_dice(store: LabelStore, truth: BrickStore, at_round: int) -> float:
    """Mean Dice of the labels outside of the gold set with the truth, over structures and cases.

    Args:
        store: a simulated collection.
        truth: brick store of the true labels.
        at_round: labels as they were at its end.
    """
    rows = {case_id: row for row, case_id in enumerate(truth.case_ids)}
    heads = store.heads(at_round=at_round)
    scores = []
    for case in store.cases(gold=False):
        mask = store.read_mask(store.version(case.case_id, heads[case.case_id]))
        right = truth.read_patch(rows[case.case_id], (0, 0, 0), case.shape)[1]
        for index in range(1, len(store.structures)):
            total = int(np.count_nonzero(mask == index)) + int(np.count_nonzero(right == index))
            scores.append(2 * int(np.count_nonzero((mask == index) & (right == index))) / max(total, 1))
    return float(np.mean(scores))


def _point(store: LabelStore, truth: BrickStore, number: int) -> dict[str, Any]:
    gate = store.rounds.step(number, "gate") or {}
    report = store.rounds.step(number, "report") or {}
    return {
        "reviewed": report["reviewed_share_so_far"],
        "errors_found": report["detection"]["queued"]["hits"] + report["detection"]["audited"]["hits"],
        "label_dice": label_dice(store, truth, number),
        "gold": gate["dice"]["after" if gate["passed"] else "before"],
        "passed": gate["passed"],
    }


def _pass_over_checks(store: LabelStore, config: CurateConfig) -> None:
    """Marks propose and check as done: arms that look at random cases need neither."""
    number = store.rounds.open(config.model_dump(mode="json"), actor=ACTOR)
    if store.rounds.step(number, "check") is not None:
        return
    ids = tuple(case.case_id for case in store.cases(gold=False))
    zeros = np.zeros(len(ids))
    steps.write_scores(store.round_folder(number), Scores(ids, zeros, zeros, zeros, zeros))
    for step in ("propose", "check"):
        store.rounds.finish_step(number, step, {}, actor=ACTOR)


def _closed(store: LabelStore) -> bool:
    rounds = store.rounds.all()
    return bool(rounds) and bool(rounds[-1].closed)


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomic(locate(path), (json.dumps(content, indent=1) + "\n").encode())


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def curves(folder: Path, seeds: Sequence[int]) -> dict[str, list[list[dict[str, Any]]]]:
    """Arm -> points of each seed, of the arms that are done."""
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for arm in ARMS:
        paths = [folder / f"arm-{seed}-{arm}.json" for seed in seeds]
        found[arm] = [_read(path)["points"] for path in paths if path.is_file()]
    return found
