"""Diameters against geometry, RECIST 1.1 against the published criteria, rule by rule."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox.data.geometry import Geometry
from fedvox.errors import DataError
from fedvox.tracking.measure import axial_diameters, measure_lesion, plane_diameters
from fedvox.tracking.recist import (
    RecistVisit,
    Response,
    Size,
    TargetLesion,
    assess,
    choose_targets,
    eligible,
)


def grid(shape, spacing):
    middle = (np.array(shape) - 1) / 2
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return (index - middle) * spacing


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (2.0, 1.5, 0.8)])
@pytest.mark.parametrize("radius", [9.0, 14.0])
def test_a_sphere_has_its_volume_and_its_diameter(spacing, radius):
    shape = [2 * int(radius / s) + 5 for s in spacing]
    ball = np.linalg.norm(grid(shape, spacing), axis=-1) <= radius
    geometry = Geometry.of_file(shape[::-1], np.diag([*spacing[::-1], 1]))
    found = measure_lesion(ball, geometry, np.full(shape, 7.0))
    assert found.volume_mm3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.05)
    assert found.diameters.long_mm == pytest.approx(2 * radius, abs=max(spacing[1:]))
    assert found.diameters.short_mm == pytest.approx(2 * radius, abs=max(spacing[1:]))
    middle = (np.array(shape) - 1) / 2 * spacing
    np.testing.assert_allclose(found.centroid_ras_mm, middle[::-1], atol=1e-6)
    assert found.mean_intensity == 7.0


def test_a_bar_of_voxels_is_as_long_as_its_voxels_and_an_ellipse_has_its_two_axes():
    bar = np.zeros((1, 9, 30), bool)
    bar[0, 4, 3:24] = True
    found = axial_diameters(bar, (1, 1, 0.5))
    assert found.long_mm == pytest.approx(21 * 0.5)
    assert found.short_mm == pytest.approx(1.0)
    turned = np.deg2rad(30)
    points = grid((1, 80, 80), (1, 0.5, 0.5))[0][..., 1:]
    u = points @ [np.cos(turned), np.sin(turned)]
    v = points @ [-np.sin(turned), np.cos(turned)]
    ellipse = (u / 15) ** 2 + (v / 6) ** 2 <= 1
    long_mm, short_mm, ends = plane_diameters(ellipse, (0.5, 0.5))
    assert long_mm == pytest.approx(30, abs=0.5)
    assert short_mm == pytest.approx(12, abs=0.5)
    direction = np.subtract(ends[1], ends[0])
    assert abs(np.dot(direction / np.linalg.norm(direction), [np.cos(turned), np.sin(turned)])) > 0.99


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.4, 2.0), st.floats(0.4, 2.0))
def test_the_longest_diameter_is_that_of_brute_force_and_the_perpendicular_is_no_longer(seed, a, b):
    mask = np.random.default_rng(seed).random((9, 8)) < 0.4
    mask[4, 4] = True
    long_mm, short_mm, _ = plane_diameters(mask, (a, b))
    edges = [
        np.array([h + dh, w + dw]) * (a, b)
        for h, w in np.argwhere(mask)
        for dh, dw in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))
    ]
    assert long_mm == pytest.approx(max(np.linalg.norm(p - q) for p, q in itertools.combinations(edges, 2)))
    assert 0 < short_mm <= long_mm + 1e-9


def test_diameters_are_taken_in_the_axial_plane_on_the_longest_slice():
    column = np.zeros((20, 9, 9), bool)
    column[:, 4, 4] = True
    column[12, 4, 2:7] = True
    found = axial_diameters(column, (5, 1, 1))
    assert (found.long_mm, found.slice_index) == (5.0, 12)
    with pytest.raises(DataError):
        measure_lesion(np.zeros((3, 3, 3), bool), Geometry.of_file((3, 3, 3), np.eye(4)))


# ---- RECIST 1.1 ----------------------------------------------------------------------------------------------


def mm(long_mm, short_mm=0.0):
    return Size(long_mm, short_mm)


GONE, TOO_SMALL, UNKNOWN = Size(state="absent"), Size(state="too_small"), Size(state="not_evaluable")
LIVER = (TargetLesion(1, "liver"), TargetLesion(2, "liver"))
WITH_NODE = (TargetLesion(1, "liver"), TargetLesion(2, is_node=True))


def run(targets, *visits, **last):
    """Assesses visits given as lists of sizes in the order of the targets; `last` describes the last visit."""
    named = []
    for day, sizes in enumerate(visits):
        more = last if day == len(visits) - 1 else {}
        named.append(
            RecistVisit(day * 60, {t.lesion: s for t, s in zip(targets, sizes, strict=True)}, **more)
        )
    return assess(targets, named)


def response(targets, *visits, **last):
    return run(targets, *visits, **last)[-1].response


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([mm(35), mm(35)], Response.PR),  # 100 -> 70 mm: 30.0 %
        ([mm(35), mm(35.1)], Response.SD),  # 29.9 %
        ([mm(60), mm(60)], Response.PD),  # +20.0 %
        ([mm(60), mm(59.9)], Response.SD),  # +19.9 %
        ([mm(50), mm(50)], Response.SD),
        ([GONE, GONE], Response.CR),
        ([GONE, mm(50)], Response.PR),
        ([GONE, TOO_SMALL], Response.PR),  # seen: no complete response
    ],
)
def test_thresholds_against_the_baseline(sizes, expected):
    assert response(LIVER, [mm(50), mm(50)], sizes) is expected


def test_progression_is_counted_from_the_nadir_and_not_from_the_baseline():
    found = run(LIVER, [mm(50), mm(50)], [mm(25), mm(25)], [mm(30), mm(30)])
    assert [a.response for a in found] == [Response.BASELINE, Response.PR, Response.PD]
    last = found[-1]
    assert (last.sum_mm, last.baseline_mm, last.nadir_mm) == (60, 100, 50)
    assert last.change_from_baseline == pytest.approx(-0.4)
    assert last.change_from_nadir == pytest.approx(0.2)
    assert "nadir" in last.rule


@pytest.mark.parametrize(("then", "expected"), [(24.9, Response.PR), (25.0, Response.PD)])
def test_twenty_percent_above_the_nadir_must_also_be_five_millimetres(then, expected):
    one = LIVER[:1]
    found = run(one, [mm(60)], [mm(20)], [mm(then)])
    assert found[-1].response is expected
    stable = run(one, [mm(22)], [mm(20)], [mm(24.9)])[-1]
    assert stable.response is Response.SD
    assert "5 mm" in stable.rule


def test_the_nadir_counts_the_baseline_when_nothing_was_smaller():
    assert response(LIVER, [mm(20), mm(20)], [mm(22), mm(22)], [mm(24), mm(24)]) is Response.PD


def test_a_lesion_too_small_to_measure_counts_five_millimetres_and_a_measured_one_what_it_measures():
    assert run(LIVER, [mm(20), mm(20)], [TOO_SMALL, mm(20)])[-1].sum_mm == 25
    assert run(LIVER, [mm(20), mm(20)], [mm(3), mm(20)])[-1].sum_mm == 23
    assert run(LIVER, [mm(20), mm(20)], [GONE, mm(20)])[-1].sum_mm == 20


def test_a_node_counts_by_its_short_axis_and_is_normal_below_ten_millimetres():
    baseline = [mm(30, 20), mm(28, 18)]
    assert run(WITH_NODE, baseline)[0].sum_mm == 30 + 18
    normal = run(WITH_NODE, baseline, [GONE, mm(20, 9.9)])[-1]
    assert normal.response is Response.CR
    assert normal.sum_mm == pytest.approx(9.9)  # a complete response whose sum is not zero
    assert response(WITH_NODE, baseline, [GONE, mm(12, 10.0)]) is Response.PR
    assert response(WITH_NODE, baseline, [mm(4, 3), mm(12, 8)]) is Response.PR


def test_a_new_lesion_is_progression_whatever_the_targets_do():
    found = run(LIVER, [mm(50), mm(50)], [GONE, GONE], new_lesions=1)[-1]
    assert (found.target, found.response) == (Response.CR, Response.PD)
    assert found.rule == "1 new lesion"


def test_a_target_that_is_back_after_complete_response_is_progression_but_a_node_that_grew_a_little_is_not():
    assert response(LIVER, [mm(50), mm(50)], [GONE, GONE], [mm(4), GONE]) is Response.PD
    assert (
        response(WITH_NODE, [mm(20), mm(25, 16)], [GONE, mm(12, 8)], [GONE, mm(14, 10.5)]) is not Response.PD
    )
    reappears_in_partial = run(LIVER, [mm(50), mm(50)], [GONE, mm(50)], [mm(4), mm(50)])[-1]
    assert reappears_in_partial.response is Response.PR  # its size is added to the sum


# Table 1 of the criteria: patients with target disease.
@pytest.mark.parametrize(
    ("target", "non_target", "new", "expected"),
    [
        ("CR", "CR", 0, "CR"),
        ("CR", "non-CR/non-PD", 0, "PR"),
        ("CR", "NE", 0, "PR"),
        ("PR", "non-CR/non-PD", 0, "PR"),
        ("PR", "NE", 0, "PR"),
        ("SD", "non-CR/non-PD", 0, "SD"),
        ("SD", "NE", 0, "SD"),
        ("NE", "non-CR/non-PD", 0, "NE"),
        ("PD", "CR", 0, "PD"),
        ("CR", "PD", 0, "PD"),
        ("SD", "CR", 1, "PD"),
        ("NE", "CR", 1, "PD"),
    ],
)
def test_the_table_of_overall_response_with_target_disease(target, non_target, new, expected):
    sizes = {
        "CR": [GONE, GONE],
        "PR": [mm(20), mm(20)],
        "SD": [mm(50), mm(48)],
        "PD": [mm(70), mm(70)],
        "NE": [mm(50), UNKNOWN],
    }[target]
    found = run(LIVER, [mm(50), mm(50)], sizes, non_target=non_target, new_lesions=new)[-1]
    assert (found.target, found.response) == (target, expected)


# Table 2 of the criteria: patients with non-target disease only.
@pytest.mark.parametrize(
    ("non_target", "new", "expected"),
    [
        ("CR", 0, "CR"),
        ("non-CR/non-PD", 0, "non-CR/non-PD"),
        ("NE", 0, "NE"),
        ("PD", 0, "PD"),
        ("CR", 1, "PD"),
    ],
)
def test_the_table_of_overall_response_with_non_target_disease_only(non_target, new, expected):
    assert response((), [], [], non_target=non_target, new_lesions=new) == expected


def test_targets_that_were_not_all_seen_are_progression_only_if_the_others_alone_prove_it():
    assert response(LIVER, [mm(50), mm(50)], [mm(80), UNKNOWN]) is Response.NE
    found = run(LIVER, [mm(50), mm(50)], [mm(121), UNKNOWN])[-1]
    assert (found.response, found.sum_mm) == (Response.PD, None)


def test_measurable_lesions_are_chosen_by_size_five_at_most_two_an_organ_and_nodes_are_one_organ():
    assert eligible(mm(10), is_node=False)
    assert not eligible(mm(9.9), is_node=False)
    assert eligible(mm(30, 15), is_node=True)
    assert not eligible(mm(30, 14.9), is_node=True)
    assert not eligible(mm(12), is_node=False, slice_thickness_mm=8)
    sizes = {
        1: mm(40),
        2: mm(35),
        3: mm(30),
        4: mm(25),
        5: mm(28, 22),
        6: mm(27, 20),
        7: mm(26, 19),
        8: mm(12),
    }
    organs = {1: "liver", 2: "liver", 3: "liver", 4: "lung", 8: "bone"}
    candidates = [TargetLesion(i, organs.get(i, ""), is_node=i in (5, 6, 7)) for i in sizes]
    assert [t.lesion for t in choose_targets(candidates, sizes)] == [1, 2, 4, 5, 6]


def test_nonsense_is_refused():
    with pytest.raises(DataError) as caught:
        assess(LIVER, [RecistVisit(60, {1: mm(20), 2: mm(20)}), RecistVisit(0)])
    assert caught.value.code == "dates_out_of_order"
    with pytest.raises(DataError) as caught:
        run(LIVER, [mm(50), GONE])
    assert caught.value.code == "no_baseline"
    with pytest.raises(DataError) as caught:
        run((LIVER[0], LIVER[0]), [mm(50), mm(50)])
    assert caught.value.code == "duplicate_id"
    with pytest.raises(DataError) as caught:
        run(tuple(TargetLesion(i, f"organ {i}") for i in range(1, 7)), [mm(50)] * 6)
    assert caught.value.code == "too_many_targets"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(10, 90), st.floats(10, 90)), min_size=2, max_size=6), st.floats(0.2, 5))
def test_without_the_rule_of_five_millimetres_the_response_depends_on_ratios_alone(sizes, unit):
    sums = [a + b for a, b in sizes]
    far = all(
        abs(s / r - f) > 1e-6 for i, s in enumerate(sums) for r in sums[:i] for f in (0.7, 1.2)
    ) and all(abs(s - r) > 5 / min(unit, 1) or s <= r for i, s in enumerate(sums) for r in sums[:i])
    if far:
        plain = run(LIVER, *([mm(a), mm(b)] for a, b in sizes))
        scaled = run(LIVER, *([mm(a * unit), mm(b * unit)] for a, b in sizes))
        assert [a.response for a in plain] == [a.response for a in scaled]
