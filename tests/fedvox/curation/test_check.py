"""Each rule on a small body whose measures can be checked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from fedvox.config import validate
from fedvox.curation.check.evaluate import Checker, spread
from fedvox.curation.check.measure import CaseFacts, Grid, claims, measure_structure
from fedvox.curation.check.rules import RuleBook
from fedvox.errors import ConfigError

GRID = Grid.of((2.0, 1.0, 1.0))
NAMES = ("background", "left", "right", "liver")


def body(seed=0):
    """Two blocks apart along x, and a third above them; sizes vary a little with the seed."""
    mask = np.zeros((20, 24, 30), np.uint8)
    grow = seed % 3
    mask[4:9, 6 : 12 + grow, 4:10] = 1
    mask[4:9, 6 : 12 + grow, 20:26] = 2
    mask[12:17, 6:14, 8 : 20 + grow] = 3
    return mask


def facts(name, mask, agreed=None, site="s"):
    agreed = body() if agreed is None else agreed
    image = np.where(mask > 0, 60.0, -50.0) + np.arange(30)
    claimed = claims(mask, agreed, NAMES, 2.0)
    structures = {
        NAMES[index]: replace(
            measure_structure(mask, index, GRID, intensity=image, agreed=agreed),
            claimed_mm3=claimed[NAMES[index]],
        )
        for index in (1, 2, 3)
    }
    return CaseFacts(name, 1, site, structures, 40.0, (0.0, 0.0, 0.0), (29.0, 23.0, 38.0))


def fired(mask, rules, structure="left", agreed=None, others=12):
    """Findings of a mask among usual ones."""
    book = validate(RuleBook, {"all": [], "structures": {structure: rules}}, source="test")
    book.check_names(NAMES, "test")
    usual = [facts(f"usual {n}", body(n), body(n)) for n in range(others)]
    case = facts("case", mask, agreed)
    checker = Checker(book, [*usual, case])
    assert not [one for other in usual for one in checker.check(other, 1)]
    return checker.check(case, 1)


def changed(**boxes):
    mask = body()
    for value, box in boxes.items():
        mask[box] = int(value[1:])
    return mask


def test_measures_are_in_millimetres():
    found = measure_structure(body(), 1, GRID, agreed=body())
    assert found.volume_mm3 == 5 * 6 * 6 * 2
    assert found.centroid_mm == (6.5, 8.5, 12.0)
    assert found.pieces_mm3 == (360.0,)
    assert (found.holes_mm3, found.gap_slices, found.consensus_dice) == (0, 0, 1)


def test_an_oblique_affine_places_the_centroid():
    affine = np.array([[0, 0, -1.0, 100], [0, 1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    found = measure_structure(body(), 1, Grid.of((2.0, 1.0, 1.0), affine), agreed=body())
    assert found.centroid_mm[0] == pytest.approx(100 - 6.5)


def test_a_missing_structure_is_found_where_its_place_is_in_the_field_of_view():
    mask = body()
    mask[mask == 1] = 0
    (finding,) = fired(mask, [{"kind": "expected"}])
    assert (finding.rule, finding.structure) == ("expected", "left")
    np.testing.assert_allclose(finding.evidence["expected_at_mm"], [6.5, 8.5, 12.0], atol=1.1)


def test_a_missing_structure_whose_place_is_cut_off_is_none():
    mask = body()
    mask[mask == 1] = 0
    assert not fired(mask, [{"kind": "expected", "margin_mm": 13}])


def test_an_unusual_volume():
    (finding,) = fired(changed(v1=np.s_[4:9, 6:22, 4:14]), [{"kind": "volume", "robust_z": 4}])
    assert finding.evidence["volume_mm3"] == 5 * 16 * 10 * 2
    assert finding.severity > 0.5


def test_bounds_of_volume_need_no_collection():
    assert fired(body(), [{"kind": "volume", "low_mm3": 400, "robust_z": 99}], others=0)


def test_pieces_holes_and_gaps():
    apart = changed(v1=np.s_[1, 1, 1])
    assert fired(apart, [{"kind": "components"}])[0].evidence["pieces_mm3"] == [360.0, 2.0]
    assert not fired(apart, [{"kind": "components", "min_mm3": 3}])
    hollow = changed(v0=np.s_[6, 8, 6])
    assert fired(hollow, [{"kind": "holes"}])[0].evidence["holes_mm3"] == 2
    split = changed(v0=np.s_[6, :, :12])
    assert fired(split, [{"kind": "gaps"}])[0].evidence["empty_slices"] == 1


def test_left_and_right_that_are_exchanged():
    swapped = np.array([0, 2, 1, 3], np.uint8)[body()]
    (finding,) = fired(swapped, [{"kind": "order", "axis": "x", "below": "right"}])
    assert finding.severity > 0.95
    assert finding.evidence["must_be_below"] == "right"


def test_what_lies_above_must_lie_above():
    moved = changed(v3=np.s_[0:2, 0:20, 0:30])
    moved[12:17] = 0
    assert fired(moved, [{"kind": "order", "axis": "z", "below": "liver"}])


def test_a_forbidden_overlap_with_what_the_proposers_say():
    taken = changed(v1=np.s_[12:14, 6:14, 8:12])
    (finding,) = fired(taken, [{"kind": "overlap", "with": ["liver"], "robust_z": None}], agreed=body())
    assert finding.evidence["claimed_mm3"] == {"liver": 2 * 8 * 4 * 2.0}


def test_touching_the_border():
    (finding,) = fired(changed(v1=np.s_[4:9, 6:12, 0:4]), [{"kind": "border"}])
    assert finding.evidence["border_mm2"] == {"x": 5 * 6 * 2.0}


def test_an_intensity_out_of_range():
    assert fired(body(), [{"kind": "intensity", "low": 200, "high": 300}], others=0)
    assert not fired(body(), [{"kind": "intensity", "low": 0, "high": 100}])


def test_a_ragged_surface():
    rng = np.random.default_rng(0)
    ragged = np.where((body() == 1) & (rng.random(body().shape) < 0.4), 0, body()).astype(np.uint8)
    assert fired(ragged, [{"kind": "roughness"}])


def test_disagreement_with_the_consensus():
    moved = np.roll(body(), 3, axis=1)
    (finding,) = fired(moved, [{"kind": "consensus", "min_dice": 0.9}], agreed=body())
    assert finding.evidence["dice"] == pytest.approx(0.5)
    assert finding.evidence["different_mm3"] == 2 * 3 * 5 * 6 * 2


def test_sites_are_judged_apart():
    book = validate(RuleBook, {"all": [{"kind": "volume"}]}, source="test")
    small = [facts(f"a{n}", body(n), site="a") for n in range(10)]
    large_mask = body()
    large_mask[4:9, 6:22, 4:14] = 1
    large = [facts(f"b{n}", large_mask, site="b") for n in range(10)]
    assert not Checker(book, [*small, *large]).findings(1)
    stranger = facts("stranger", large_mask, site="a")
    assert Checker(book, [*small, *large, stranger]).check(stranger, 1)


def test_a_tenth_of_wrong_cases_hardly_moves_what_is_usual():
    clean, wrong = spread([*range(90)], 0.1), spread([*range(90), *[10_000] * 10], 0.1)
    assert abs(clean.median - wrong.median) <= 5
    assert wrong.deviation < 1.3 * clean.deviation


def test_a_rule_of_a_structure_replaces_the_general_one_and_may_take_it_away():
    book = validate(
        RuleBook,
        {"all": [{"kind": "volume", "robust_z": 4}, {"kind": "gaps"}],
         "structures": {"liver": [{"kind": "volume", "robust_z": 9}, {"kind": "gaps", "off": True}]}},
        source="test",
    )  # fmt: skip
    assert [(rule.kind, rule.robust_z) for rule in book.of("liver")] == [("volume", 9)]
    assert [rule.kind for rule in book.of("left")] == ["volume", "gaps"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"structures": {"lever": [{"kind": "gaps"}]}}, "'lever'"),
        ({"all": [{"kind": "order", "below": "rihgt"}]}, "'rihgt'"),
    ],
)
def test_a_rule_about_no_structure_is_refused(rules, message):
    with pytest.raises(ConfigError, match=message):
        validate(RuleBook, rules, source="rules.yaml").check_names(NAMES, "rules.yaml")


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match=r"rules\.yaml"):
        validate(RuleBook, {"all": [{"kind": "colour"}]}, source="rules.yaml")
