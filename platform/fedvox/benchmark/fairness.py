"""Fairness of a comparison as checks that can fail: the pitfalls of nnU-Net Revisited (Isensee et al. 2024), and leaks.

    P1  confounded     a claimed improvement differs from its baseline in the claimed components alone
    P2  baseline       a baseline of matching compute is present
    P3  data set       methods differ more than runs of one method do, so the test set can tell them apart
    P4  reporting      every case of every test set is scored, and the method is fully declared
    leakage            no test image occurs in the training data, as it is or nearly

A check passes, fails, or is waived with a reason that the report shows. What cannot be checked, because it was not
declared or the data is not at hand, fails: silence is no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedvox.benchmark.leakage import Leak
from fedvox.benchmark.manifest import BenchmarkManifest
from fedvox.benchmark.submission import Component, MethodCard, Submission

CheckId = Literal["P1", "P2", "P3", "P4", "leakage"]
Status = Literal["pass", "fail", "waived"]

TITLES: dict[CheckId, str] = {
    "P1": "Only what is claimed differs from the baseline",
    "P2": "A baseline of matching compute is present",
    "P3": "The test set can tell methods apart",
    "P4": "Complete and consistent reporting",
    "leakage": "No test image in the training data",
}

# Which claimed component explains a difference in a field of the method card. None: no claim does, it is a confounder.
_EXPLAINED_BY: dict[str, Component | None] = {
    "architecture": "architecture",
    "family": "architecture",
    "parameters_millions": "architecture",
    "residual_encoder": None,  # published gains of new blocks vanished when the baseline got a residual encoder too
    "training_cases": "training_data",
    "extra_data": "training_data",
    "pretrained": "pretraining",
    "epochs": None,
    "patch_size": None,
    "batch_size": None,
    "spacing_mm": None,
    "augmentation": "augmentation",
    "loss": "loss",
    "optimizer": "optimizer",
    "hardware": None,
    "ensemble_size": "ensembling",
    "test_time_augmentation": "ensembling",
    "postprocessing": "postprocessing",
}
_MANY = 3


@dataclass(frozen=True)
class Check:
    """One verdict.

    Attributes:
        id: which check.
        subject: the submission or test set that it is about.
        status: the verdict.
        reason: why, in a sentence.
        details: what was found, one a line.
    """

    id: CheckId
    subject: str
    status: Status
    reason: str
    details: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What the check asks for."""
        return TITLES[self.id]

    @property
    def holds(self) -> bool:
        """Passed, or waived with a reason."""
        return self.status != "fail"


def check_confounders(submission: Submission, others: Sequence[Submission], tolerance: float) -> Check | None:
    """P1 for one submission; None where it claims nothing."""
    if not submission.claims:
        return None
    baseline = next((s for s in others if s.name == submission.compares_to), None)
    if baseline is None or baseline is submission:
        reason = (
            f"claims {', '.join(submission.claims)} without naming a submission to compare with (compares_to)"
        )
        return _waivable(Check("P1", submission.name, "fail", reason), submission)
    confounders = [
        f"{field}: {a!r} against {b!r} of {baseline.name}"
        for field, a, b in _differences(submission.method, baseline.method, tolerance)
        if _EXPLAINED_BY[field] is None or _EXPLAINED_BY[field] not in submission.claims
    ]
    unknown = [
        f"{field}: not declared by {s.name}"
        for field in _EXPLAINED_BY
        for s in (submission, baseline)
        if getattr(s.method, field) is None
    ]
    if not confounders and not unknown:
        reason = f"differs from {baseline.name} in {', '.join(submission.claims)} alone"
        return Check("P1", submission.name, "pass", reason)
    reason = (
        f"differs from {baseline.name} in {len(confounders)} unclaimed and {len(unknown)} undeclared respects"
    )
    return _waivable(Check("P1", submission.name, "fail", reason, (*confounders, *unknown)), submission)


def check_baseline(submission: Submission, others: Sequence[Submission], tolerance: float) -> Check | None:
    """P2 for one submission; None for baselines."""
    if submission.role == "baseline":
        return None
    wanted = {field: getattr(submission.method, field) for field in ("vram_gib", "gpu_hours")}
    if missing := [field for field, value in wanted.items() if value is None]:
        reason = f"does not declare {' and '.join(missing)}, so no baseline can match it"
        return _waivable(Check("P2", submission.name, "fail", reason), submission)
    baselines = [s for s in others if s.role == "baseline"]
    tried = []
    for baseline in baselines:
        off = {f: _relative(getattr(baseline.method, f), value) for f, value in wanted.items()}
        if all(difference <= tolerance for difference in off.values()):
            reason = f"baseline {baseline.name} has the same compute within {tolerance:.0%}"
            return Check("P2", submission.name, "pass", reason)
        shown = ", ".join(f"{f} {getattr(baseline.method, f)} against {wanted[f]}" for f in off)
        tried.append(f"{baseline.name}: {shown}")
    reason = f"none of {len(baselines)} baselines has the same compute within {tolerance:.0%}"
    return _waivable(Check("P2", submission.name, "fail", reason, tuple(tried)), submission)


def check_discrimination(test_set: str, runs: Mapping[str, Sequence[float]], ratio: float) -> Check:
    """P3 for one test set.

    Args:
        test_set: its name.
        runs: method -> scores of its runs (seeds or folds), the submitted one first.
        ratio: smallest spread between methods over spread within one.
    """
    repeated = {m: scores for m, scores in runs.items() if len(scores) >= _MANY}
    if not repeated or len(runs) < 2:
        reason = f"no method has {_MANY} runs (replicates), so the spread within a method is not known"
        return Check("P3", test_set, "fail", reason)
    within = float(np.sqrt(np.mean([np.var(scores, ddof=1) for scores in repeated.values()])))
    between = float(np.std([scores[0] for scores in runs.values()], ddof=1))
    found = float("inf") if within == 0 else between / within
    text = f"standard deviation between methods {between:.2g}, within {', '.join(repeated)} {within:.2g}"
    text += f": ratio {found:.2f}"
    return Check("P3", test_set, "pass" if found >= ratio else "fail", f"{text}, {ratio:g} is asked for")


def check_reporting(submission: Submission, coverage: Mapping[str, float], test_sets: Sequence[str]) -> Check:
    """P4 for one submission.

    Args:
        submission: the submission.
        coverage: test set -> share of its cases with a prediction that could be compared.
        test_sets: all of the benchmark.
    """
    problems = [f"test set {name}: not submitted" for name in test_sets if name not in coverage]
    problems += [
        f"test set {name}: {share:.1%} of the cases" for name, share in coverage.items() if share < 1
    ]
    problems += [f"method.{field}: not declared" for field in submission.method.undeclared()]
    if not problems:
        return Check("P4", submission.name, "pass", "every case is scored and every field declared")
    reason = f"{len(problems)} gaps in cases or declarations"
    return _waivable(Check("P4", submission.name, "fail", reason, tuple(problems)), submission)


def check_leakage(test_set: str, leaks: Sequence[Leak] | None) -> Check:
    """Leakage for one test set; `leaks` is None where images are not at hand."""
    if leaks is None:
        reason = "cannot be checked: the images of the test set or of the training data are not at hand"
        return Check("leakage", test_set, "fail", reason)
    if not leaks:
        return Check("leakage", test_set, "pass", "no exact or near duplicate among the training images")
    exact = sum(leak.kind == "exact" for leak in leaks)
    listed = [
        f"{k.test_case} is like {k.other_case} ({k.kind}, similarity {k.similarity:.3f})" for k in leaks
    ]
    reason = f"{exact} exact and {len(leaks) - exact} near duplicates of training images"
    return Check("leakage", test_set, "fail", reason, tuple(listed))


def check_training_cases(submission: Submission, test_cases: Mapping[str, Sequence[str]]) -> Check:
    """Leakage for one submission: do the training cases that it declares include test cases?"""
    declared = submission.method.training_cases
    if declared is None:
        check = Check("leakage", submission.name, "fail", "does not declare its training cases")
        return _waivable(check, submission)
    found = [
        f"{case} of {name}"
        for name, cases in test_cases.items()
        for case in sorted(set(declared) & set(cases))
    ]
    if not found:
        return Check("leakage", submission.name, "pass", "no declared training case is a test case")
    reason = f"{len(found)} test cases among its training cases"
    return _waivable(Check("leakage", submission.name, "fail", reason, tuple(found)), submission)


def waived(checks: Sequence[Check], manifest: BenchmarkManifest) -> list[Check]:
    """Apply the waivers of the benchmark itself, `CHECK/TEST SET` -> reason."""
    reasons = manifest.waivers
    return [
        replace(c, status="waived", reason=f"{reasons[key]} (found: {c.reason})")
        if c.status == "fail" and (key := f"{c.id}/{c.subject}") in reasons
        else c
        for c in checks
    ]


def _waivable(check: Check, submission: Submission) -> Check:
    reason = submission.waivers.get(check.id)
    if reason is None:
        return check
    return replace(check, status="waived", reason=f"{reason} (found: {check.reason})")


def _differences(a: MethodCard, b: MethodCard, tolerance: float) -> list[tuple[str, object, object]]:
    """Fields that both declare, and that differ; numbers of size (parameters, epochs) by more than the tolerance."""
    found = []
    for field in _EXPLAINED_BY:
        x, y = getattr(a, field), getattr(b, field)
        if x is None or y is None:
            continue
        same = _relative(x, y) <= tolerance if field in ("parameters_millions", "epochs") else x == y
        if field == "training_cases":
            same, x, y = set(x) == set(y), f"{len(x)} cases", f"{len(y)} cases"
        if not same:
            found.append((field, x, y))
    return found


def _relative(value: float | None, wanted: float) -> float:
    return float("inf") if value is None else abs(value - wanted) / wanted
