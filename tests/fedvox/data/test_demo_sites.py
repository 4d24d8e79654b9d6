"""The sites to fine-tune on are none of those that the demo trains on."""

import pytest

from fedvox.data.demo import DemoOptions, plan_acquisitions
from fedvox.data.demo_sites import NEW_SCANNERS, NEW_SITES, plan_new_sites, write_new_sites

NAMED = {
    "site_d": ("contrast", "noise", "bias"),
    "site_e": ("contrast", "noise", "bias"),
    "site_f": ("gamma", "noise", "bias", "slice_mm"),
    "site_g": ("contrast", "gamma", "noise"),
}


@pytest.mark.parametrize("site", NEW_SITES)
def test_what_makes_a_new_site_lies_outside_of_the_demos_ranges(site):
    demo = plan_acquisitions(DemoOptions(cases=300))
    new = [one for one in plan_new_sites(50, 2.0, 0) if one.site == site]
    for name in NAMED[site]:
        for old_site in {one.site for one in demo}:
            seen = [getattr(one, name) for one in demo if one.site == old_site]
            assert not any(min(seen) <= getattr(one, name) <= max(seen) for one in new), (name, old_site)
    assert not {one.key for one in demo} & {one.key for one in new}


def test_the_store_has_every_case_and_is_left_as_it_is(tmp_path):
    pytest.importorskip("nilearn")
    store = write_new_sites(str(tmp_path / "store"), cases_per_site=1, resolution_mm=4.0)
    assert sorted(store.case_ids) == [f"{site}_01" for site in NEW_SITES]
    assert sorted(store.source_names) == list(NEW_SITES)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "cases").iterdir()}
    again = write_new_sites(str(tmp_path / "store"), cases_per_site=1, resolution_mm=4.0)
    assert len(again) == 4
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "cases").iterdir()}
    image, label = store.read_patch(list(store.case_ids).index("site_d_01"), (0, 0, 0), store.record(0).shape)
    assert image[0][label == 1].mean() > image[0][label == 2].mean() > image[0][label == 0].mean()  # reversed


def test_a_case_is_the_same_whichever_other_sites_are_there():
    everyone = {one.case_id: one for one in plan_new_sites(3, 3.0, 0)}
    scanners = plan_new_sites(3, 3.0, 0, NEW_SCANNERS)
    assert {one.site for one in scanners} == set(NEW_SCANNERS)
    assert all(everyone[one.case_id] == one for one in scanners)
