"""Joining label names and values: worked examples which can be checked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox.data.label_space import SourceLabels, canonical_name, join_labels, load_mapping, parse_labels
from fedvox.errors import DataError


@pytest.mark.parametrize(
    ("spelt", "canonical"),
    [
        ("Liver", "liver"),
        ("left kidney", "kidney_left"),
        ("Kidney (Left)", "kidney_left"),
        ("kidney-l", "kidney_left"),
        ("kidney_R", "kidney_right"),
        ("Grey matter", "gray_matter"),
        ("oesophagus", "esophagus"),
        ("Liver Tumour", "liver_tumor"),
        ("portal vein and splenic vein", "portal_vein_and_splenic_vein"),
        ("rib_left_1", "rib_1_left"),
        ("l", "l"),  # a lone letter is no side
        ("left", "left"),
        ("left right shunt", "left_right_shunt"),  # two sides are no side
        ("vertebrae_L5", "vertebrae_l5"),
    ],
)
def test_spellings_of_a_structure_are_folded(spelt, canonical):
    assert canonical_name(spelt) == canonical
    assert canonical_name(canonical) == canonical


def test_both_directions_of_dataset_json_mean_the_same():
    nnunet = parse_labels({"background": 0, "liver": 1, "tumour": 2}, "a")
    decathlon = parse_labels({"0": "background", "1": "liver", "2": "tumor"}, "b")
    assert nnunet == decathlon
    assert nnunet.structures == (("liver", (1,)), ("tumor", (2,)))
    assert nnunet.known_values == {0, 1, 2}


def test_any_name_for_the_value_0_is_background():
    assert parse_labels({"Clear Label": 0, "liver": 1}, "a").structures == (("liver", (1,)),)


def test_regions_become_disjoint_structures_and_stay_as_unions():
    labels = parse_labels(
        {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}, "BraTS"
    )
    assert labels.structures == (
        ("whole_tumor_without_tumor_core", (1,)),
        ("tumor_core_without_enhancing_tumor", (2,)),
        ("enhancing_tumor", (3,)),
    )
    assert labels.regions == (("whole_tumor", (1, 2, 3)), ("tumor_core", (2, 3)))
    space = join_labels({"BraTS": labels})
    assert space.regions == {"whole_tumor": (1, 2, 3), "tumor_core": (2, 3)}


def test_a_region_with_a_named_part_is_split_by_that_name():
    labels = parse_labels({"background": 0, "kidney": [1, 2], "mass": 2}, "KiTS")
    assert labels.structures == (("kidney_without_mass", (1,)), ("mass", (2,)))


def test_regions_that_overlap_without_nesting_are_told_apart():
    labels = parse_labels({"a": [1, 2], "b": [2, 3]}, "x")
    assert labels.structures == (("a_without_b", (1,)), ("a_and_b", (2,)), ("b_without_a", (3,)))
    assert labels.regions == (("a", (1, 2)), ("b", (2, 3)))


def test_values_that_are_always_together_are_one_structure():
    assert parse_labels({"lung": [3, 7]}, "a").structures == (("lung", (3, 7)),)


@pytest.mark.parametrize(
    "raw",
    [
        {"liver": "one"},
        {"liver": -1},
        {"liver": 70000},
        {"liver": 1.5},
        {"liver": []},
        {"liver": [0, 1]},
        {"Left kidney": 1, "kidney_left": 2},
        {"liver": 1, "ignore": [2, 3]},
        {"": 1},
        {"liver": 1, "hepar": 1},
    ],
)
def test_labels_that_make_no_sense_are_refused_with_the_files_name(raw):
    with pytest.raises(DataError) as caught:
        parse_labels(raw, "Dataset001/dataset.json")
    assert caught.value.code == "bad_labels"
    assert "Dataset001/dataset.json" in caught.value.message


def test_a_single_data_set_keeps_its_own_values():
    space = join_labels({"A": parse_labels({"background": 0, "b": 1, "a": 2, "c": 3}, "A")})
    assert space.structures == ("background", "b", "a", "c")
    label = np.array([0, 1, 2, 3, 2], dtype=np.int16)
    np.testing.assert_array_equal(space.apply("A", label), label)
    assert space.apply("A", label).dtype == np.uint8


def test_sources_with_other_numbers_and_spellings_share_structures():
    space = join_labels(
        {
            "LiTS": parse_labels({"background": 0, "liver": 1, "tumour": 2}, "LiTS"),
            "BTCV": parse_labels({"0": "background", "1": "spleen", "6": "Liver"}, "BTCV"),
        }
    )
    assert space.structures == ("background", "liver", "tumor", "spleen")
    assert space.annotated == {"LiTS": (0, 1, 2), "BTCV": (0, 1, 3)}
    assert space.apply("BTCV", np.array([0, 1, 6])).tolist() == [0, 3, 1]
    assert space.apply("LiTS", np.array([0, 1, 2])).tolist() == [0, 1, 2]


def test_ignored_voxels_get_a_value_of_their_own_and_are_not_annotated():
    space = join_labels({"A": parse_labels({"background": 0, "lesion": 1, "ignore": 2}, "A")})
    assert space.ignore_index == 255
    assert space.apply("A", np.array([0, 1, 2])).tolist() == [0, 1, 255]
    assert space.annotated["A"] == (0, 1)
    assert "ignore" not in space.structures


def test_the_type_grows_with_the_number_of_structures():
    few = join_labels({"A": SourceLabels(tuple((f"s{i}", (i,)) for i in range(1, 255)))})
    many = join_labels({"A": SourceLabels(tuple((f"s{i}", (i,)) for i in range(1, 256)), ignore=256)})
    assert (len(few.structures), few.dtype) == (255, np.uint8)
    assert (len(many.structures), many.dtype, many.ignore_index) == (256, np.uint16, 32767)
    assert many.apply("A", np.array([255, 256])).tolist() == [255, 32767]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_mapping_fixes_the_order_joins_synonyms_renames_and_drops(tmp_path):
    mapping = load_mapping(
        write(
            tmp_path,
            """
            structures:
              spleen: []
              liver: [hepar, Liver parenchyma]
            sources:
              A: {blob: tumor, rib: null}
            """,
        )
    )
    space = join_labels(
        {
            "A": parse_labels({"hepar": 1, "blob": 2, "rib": 3}, "A"),
            "B": parse_labels({"liver parenchyma": 4, "blob": 5}, "B"),
        },
        mapping,
    )
    assert space.structures == ("background", "spleen", "liver", "tumor", "blob")
    assert space.apply("A", np.array([1, 2, 3])).tolist() == [2, 3, 0]
    assert space.apply("B", np.array([4, 5])).tolist() == [2, 4]
    assert space.annotated == {"A": (0, 2, 3), "B": (0, 2, 4)}


def test_variants_of_a_label_set_share_the_renames_of_their_source():
    variants = {"T": parse_labels({"a": 1, "b": 2}, "T"), "T~1": parse_labels({"a": 1}, "T")}
    space = join_labels(variants)
    assert space.annotated == {"T": (0, 1, 2), "T~1": (0, 1)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sources: {LITS: {liver: hepar}}", "LiTS"),  # names the near miss
        ("sources: {LiTS: {livr: hepar}}", "liver"),
        ("structures: {a: [x], b: [x]}", "two structures"),
        ("structure: {}", "no others"),
        ("sources: [1]", "must each map names"),
        ("sources: {LiTS: liver}", "must map labels"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_mapping_that_fits_nothing_is_refused(tmp_path, text, told):
    labels = {"LiTS": parse_labels({"liver": 1}, "LiTS")}
    with pytest.raises(DataError, match=r"(?s).") as caught:
        join_labels(labels, load_mapping(write(tmp_path, text)))
    assert caught.value.code == "bad_label_mapping"
    assert told in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(1, 400), st.sampled_from("abcdefghij"), min_size=1, max_size=9))
def test_every_value_becomes_its_structures_index_whatever_the_numbers(named):
    unique = {name: value for value, name in named.items()}
    space = join_labels({"A": parse_labels(unique, "A")})
    label = np.array([0, *unique.values()])
    expected = [0, *(space.structures.index(name) for name in unique)]
    assert space.apply("A", label).tolist() == expected
