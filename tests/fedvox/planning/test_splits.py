"""Folds against scikit-learn and nnU-Net's own splits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from fedvox.errors import DataError
from fedvox.planning.splits import Fold, kfold, read_splits, write_splits
from fedvox.storage import locate


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 60), st.integers(2, 5), st.randoms())
def test_folds_equal_scikit_learns_whatever_the_order_of_the_cases(count, folds, random):
    cases = [f"case_{number:03d}" for number in range(count)]
    expected = [
        Fold(tuple(np.array(cases)[train]), tuple(np.array(cases)[held]))
        for train, held in KFold(folds, shuffle=True, random_state=12345).split(cases)
    ]
    random.shuffle(cases)
    assert list(kfold(cases, folds=folds)) == expected


def test_folds_equal_nnunets_own():
    crossval = pytest.importorskip("nnunetv2.utilities.crossval_split")
    cases = sorted(f"liver_{number}" for number in range(131))
    theirs = crossval.generate_crossval_split(cases)
    ours = [{"train": list(fold.training), "val": list(fold.validation)} for fold in kfold(cases)]
    assert ours == [{key: [str(case) for case in part] for key, part in fold.items()} for fold in theirs]


@given(st.lists(st.integers(0, 12), min_size=30, max_size=60), st.integers(2, 5))
def test_a_patients_cases_are_held_out_together_and_each_case_once(patients, folds):
    cases = {f"p{patient:02d}_scan{number:02d}": patient for number, patient in enumerate(patients)}
    if len(set(patients)) < folds:
        return
    found = kfold(cases, folds=folds, patient_of=lambda case: case.split("_")[0])
    held = [case for fold in found for case in fold.validation]
    assert sorted(held) == sorted(cases)
    for fold in found:
        assert not {cases[c] for c in fold.validation} & {cases[c] for c in fold.training}
        assert sorted(fold.training + fold.validation) == sorted(cases)


@pytest.mark.parametrize(
    ("cases", "match"), [(["a", "b"], "cannot be split into 5"), (["a"] * 9, "a occurs twice")]
)
def test_what_cannot_be_split_is_refused(cases, match):
    with pytest.raises(DataError, match=match):
        kfold(cases)


def test_splits_are_read_as_they_were_written(tmp_path):
    folds = kfold(map(str, range(10, 22)))
    write_splits(folds, locate(tmp_path / "splits_final.json"))
    assert read_splits(str(tmp_path / "splits_final.json"), [str(n) for n in range(10, 22)]) == folds


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([{"train": ["a"], "val": ["a"]}], "case a in both parts of fold 0"),
        ([{"train": ["a"], "val": ["z"]}], "names case z in fold 0"),
        ([{"train": ["a"]}], "no list of folds"),
        ({"train": ["a"]}, "no list of folds"),
    ],
)
def test_broken_splits_are_refused_by_name(tmp_path, value, match):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps(value))
    with pytest.raises(DataError, match=match):
        read_splits(str(file), ["a", "b"])
