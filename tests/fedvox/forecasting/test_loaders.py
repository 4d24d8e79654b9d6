"""Sequences from every layout, and what is refused, by name."""

import numpy as np
import pytest

from fedvox.errors import ConfigError, DataError
from fedvox.forecasting.loaders import list_patients, load_sequence
from fedvox.forecasting.loaders.cohort import fitted, prepared
from fedvox.forecasting.normalization import Normalization
from fedvox.forecasting.protocol import patient_folds, plan_forecasts, read_plan, write_plan
from fedvox.forecasting.sequence import Sequence4D
from fedvox.forecasting.times import asked_time, converted
from fedvox.storage import locate


@pytest.mark.parametrize("table", ["csv", "json"])
def test_scans_with_dates_come_in_order_of_time_whatever_order_they_are_listed_in(patient, table):
    found = load_sequence(patient(days=(90, 0, 30), table=table))
    assert found.times.tolist() == [0, 30, 90]
    assert found.unit == "days"
    steps = found.volumes.mean(axis=(1, 2, 3, 4))
    assert np.allclose(np.diff(steps), [30, 60], atol=1e-3)
    assert found.volumes.shape == (3, 1, 12, 10, 8)
    assert found.spacing_mm == (4.0, 3.0, 2.0)


def test_times_may_be_numbers_with_a_unit_and_regions_come_along(patient, save_nifti):
    folder = patient(date=[None] * 3, time=[0, 1.5, 4], unit=["weeks"] * 3, roi=["roi.nii.gz"] * 3)
    roi = np.zeros((8, 10, 12))
    roi[:4] = 1
    save_nifti(folder / "roi.nii.gz", roi)
    found = load_sequence(folder)
    assert found.times.tolist() == [0, 1.5, 4]
    assert found.roi.mean() == 0.5


def test_a_cine_file_is_a_sequence_of_its_frames(tmp_path, save_nifti):
    frames = np.arange(5.0)[None, None, None, :] + np.zeros((6, 5, 4, 1))
    file = save_nifti(tmp_path / "x_4d.nii.gz", frames, seconds=0.04)
    assert np.allclose(load_sequence(file).times, 0.04 * np.arange(5))
    gated = load_sequence(file, unit="cycle")
    assert gated.times.tolist() == [0, 0.2, 0.4, 0.6000000000000001, 0.8]
    assert gated.volumes[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    milliseconds = save_nifti(tmp_path / "ms_4d.nii.gz", frames, seconds=40.0, unit="msec")
    assert np.allclose(load_sequence(milliseconds).times, 0.04 * np.arange(5))


def test_sessions_of_bids_take_their_times_from_the_sessions_table(tmp_path, save_nifti):
    folder = tmp_path / "sub-01"
    for session in ("ses-a", "ses-b"):
        save_nifti(folder / session / "anat" / f"sub-01_{session}_T1w.nii.gz", np.ones((4, 4, 4)))
    table = folder / "sub-01_sessions.tsv"
    table.write_text("session_id\tacq_time\nses-b\t2024-03-01T10:00:00\nses-a\t2024-02-01T10:00:00\n")
    found = load_sequence(folder)
    assert found.times.tolist() == [0, 29]
    assert [file.rsplit("ses-", 1)[1][0] for file in found.files] == ["a", "b"]


@pytest.mark.parametrize(
    ("table", "unit", "told"),
    [
        ("session_id\tacq_time\nses-1\tn/a\nses-4\tn/a\n", "months", ("months", [1, 4])),
        ("session_id\tacq_time\tdays\nses-1\tn/a\t10\nses-4\tn/a\t70\n", None, ("days", [10, 70])),
        ("session_id\tdays\nses-1\t10\nses-4\tn/a\n", "months", ("months", [1, 4])),
    ],
)
def test_sessions_whose_table_lacks_values_take_the_next_column_that_all_have(
    tmp_path, save_nifti, table, unit, told
):
    for session in ("ses-1", "ses-4"):
        save_nifti(tmp_path / "sub-01" / session / "anat" / "T1w.nii.gz", np.ones((4, 4, 4)))
    (tmp_path / "sub-01" / "sub-01_sessions.tsv").write_text(table)
    found = load_sequence(tmp_path / "sub-01", unit=unit)
    assert (found.unit, found.times.tolist()) == told


@pytest.mark.parametrize("layout", ["table", "cine", "bids", "acdc", "isles", "lumiere", "else"])
def test_a_folder_that_is_not_of_the_named_layout_is_refused(tmp_path, layout):
    (tmp_path / "notes.txt").write_text("nothing")
    refused("no_sequence", lambda: load_sequence(tmp_path, layout=layout))


def test_the_public_sets_are_read_in_their_own_layouts(tmp_path, save_nifti):
    cine = np.random.default_rng(0).random((6, 6, 4, 8))
    save_nifti(tmp_path / "acdc" / "patient001" / "patient001_4d.nii.gz", cine, unit="unknown")
    heart = np.zeros((6, 6, 4))
    heart[2:4] = 3
    save_nifti(tmp_path / "acdc" / "patient001" / "patient001_frame01_gt.nii.gz", heart)
    acdc = load_sequence(list_patients(tmp_path / "acdc")[0])
    assert (acdc.unit, len(acdc), acdc.roi.shape) == ("cycle", 8, (8, 4, 6, 6))
    assert np.allclose(acdc.volumes[:, 0, 0, 0, 0], cine[0, 0, 0])

    save_nifti(tmp_path / "isles" / "sub-1" / "ses-0001" / "sub-1_ctp.nii.gz", cine, seconds=1.0)
    isles = load_sequence(list_patients(tmp_path / "isles", "isles")[0])
    assert (isles.unit, isles.times.tolist()) == ("seconds", list(range(8)))

    for week in ("week-000-1", "week-000-2", "week-012"):
        save_nifti(tmp_path / "lumiere" / "Patient-001" / week / "CT1.nii.gz", cine[..., 0])
        save_nifti(tmp_path / "lumiere" / "Patient-001" / week / "seg_mask.nii.gz", heart)
    lumiere = load_sequence(list_patients(tmp_path / "lumiere")[0])
    assert (lumiere.unit, lumiere.times.tolist()) == ("weeks", [0.0, 0.1, 12.0])
    assert lumiere.roi.any()


def test_info_of_acdc_says_where_the_cycle_begins_and_where_the_heart_is_marked(tmp_path, save_nifti):
    folder = tmp_path / "patient001"
    frames = np.arange(8.0) + np.zeros((6, 6, 4, 1))
    save_nifti(folder / "patient001_4d.nii.gz", frames, unit="unknown")
    for frame, rows in ((2, slice(2, 4)), (5, slice(3, 5)), (7, slice(0, 6))):
        label = np.zeros((6, 6, 4))
        label[rows] = 2
        save_nifti(folder / f"patient001_frame{frame:02d}_gt.nii.gz", label)
    (folder / "Info.cfg").write_text("ED: 2\nES: 5\nGroup: DCM\nHeight: 184.0\nNbFrame: 8\nWeight: 95.0\n")
    found = load_sequence(folder)
    assert found.volumes[:, 0, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    assert found.times.tolist() == [n / 8 for n in range(8)]
    assert found.roi[0].any(axis=(0, 1)).tolist() == [False, False, True, True, True, False]
    (folder / "Info.cfg").write_text("Group: DCM\n")
    assert "Info.cfg" in refused("bad_table", lambda: load_sequence(folder))
    (folder / "Info.cfg").write_text("ED: 9\nES: 5\n")
    refused("no_such_frame", lambda: load_sequence(folder))


def test_what_files_say_of_their_unit_holds_and_the_option_is_for_files_that_do_not_say(patient):
    weeks = patient(name="weeks", date=[None] * 3, time=[0, 1, 2], unit=["weeks"] * 3)
    found = load_sequence(weeks, unit="days")
    assert (found.unit, found.times.tolist()) == ("weeks", [0, 1, 2])
    assert asked_time("21", "days", found) == pytest.approx(3)
    dated = load_sequence(patient(name="dated"), unit="months")
    assert dated.unit == "days"
    assert asked_time("3", "months", dated) == pytest.approx(3 * 365.25 / 12)
    silent = patient(name="silent", date=[None] * 3, time=[0, 1, 2])
    assert load_sequence(silent, unit="months").unit == "months"
    mixed = patient(name="mixed", date=[None] * 3, time=[0, 1, 2], unit=["weeks", "days", "days"])
    assert "days, weeks" in refused("units_differ", lambda: load_sequence(mixed))


def test_a_folder_of_cine_files_may_be_named_as_such(tmp_path, save_nifti):
    for name in ("a", "b"):
        save_nifti(tmp_path / f"{name}_4d.nii.gz", np.ones((4, 4, 4, 3)), seconds=1.0)
    assert [p.name for p in list_patients(tmp_path, "cine")] == ["a_4d.nii.gz", "b_4d.nii.gz"]


def test_a_plan_leaves_two_scans_where_there_are_three(patient):
    sequences = [load_sequence(patient(name=name, days=(0, 20, 45, 80))) for name in "abcdefgh"]
    planned = plan_forecasts(sequences, seed=0, missing=0.9)
    assert {len(one.context) for one in planned} == {2}
    pair = plan_forecasts([load_sequence(patient(name="pair", days=(0, 20)))], seed=0)
    assert [(one.context, one.target) for one in pair] == [((0,), 1)]


def refused(code, call):
    with pytest.raises(DataError) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.remedy
    return caught.value.message


def test_what_cannot_be_a_sequence_is_refused_by_name(patient, save_nifti, tmp_path):
    twice = patient(days=(0, 30, 30), name="twice")
    assert "scan1.nii.gz and" in refused("times_duplicate", lambda: load_sequence(twice))
    no_unit = patient(name="unitless", date=[None] * 3, time=[0, 1, 2])
    assert "have no unit" in refused("unit_missing", lambda: load_sequence(no_unit))
    odd_unit = patient(name="odd", date=[None] * 3, time=[0, 1, 2], unit=["fortnights"] * 3)
    assert "fortnights" in refused("unit_missing", lambda: load_sequence(odd_unit))

    other = patient(name="other")
    save_nifti(other / "scan1.nii.gz", np.ones((8, 10, 13)))
    assert "scan1.nii.gz has" in refused("grids_differ", lambda: load_sequence(other))
    moved = patient(name="moved")
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[0, 3] = 25
    save_nifti(moved / "scan2.nii.gz", np.ones((8, 10, 12)), affine=affine)
    assert "mm apart" in refused("grids_differ", lambda: load_sequence(moved))

    broken = patient(name="broken")
    volume = np.ones((8, 10, 12))
    volume[3, 3, 3] = np.nan
    save_nifti(broken / "scan1.nii.gz", volume)
    assert "scan1.nii.gz holds NaN" in refused("not_finite", lambda: load_sequence(broken))

    gone = patient(name="gone")
    (gone / "scan1.nii.gz").unlink()
    assert "scan1.nii.gz" in refused("missing_file", lambda: load_sequence(gone))
    bad = patient(name="bad")
    (bad / "times.csv").write_text("file,date\nscan0.nii.gz,yesterday\n")
    assert "yesterday" in refused("bad_table", lambda: load_sequence(bad))
    single = save_nifti(tmp_path / "one_4d.nii.gz", np.ones((4, 4, 4)))
    refused("not_4d", lambda: load_sequence(single))
    timeless = save_nifti(tmp_path / "timeless_4d.nii.gz", np.ones((4, 4, 4, 3)), unit="unknown")
    refused("unit_missing", lambda: load_sequence(timeless))
    (tmp_path / "empty").mkdir()
    refused("no_sequence", lambda: load_sequence(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("times.csv", "file,time,unit\nscan0.nii.gz,nan,days\nscan1.nii.gz,5,days\n", "'nan' is no number"),
        ("times.csv", "file,time,unit\nscan0.nii.gz,0,days\nscan1.nii.gz,inf,days\n", "'inf' is no number"),
        ("times.csv", "file,date\nscan0.nii.gz,20249901000000\n", "is no date"),
        ("times.csv", "file,time,unit\nscan0.nii.gz\n", "has no time"),
        ("series.json", '{"scans": [null]}', "no table of scans"),
        ("series.json", '{"scans": ["scan0.nii.gz"]}', "no table of scans"),
        (
            "series.json",
            '{"time_unit": "days", "scans": [{"image": "scan0.nii.gz", "time": [1]}]}',
            "is no number",
        ),
    ],
)
def test_tables_that_are_none_are_refused_in_one_line(patient, name, content, told):
    folder = patient()
    (folder / "times.csv").unlink()
    (folder / name).write_text(content)
    message = refused("bad_table", lambda: load_sequence(folder))
    assert told in message
    assert "\n" not in message


def test_tables_as_spreadsheets_write_them_and_units_in_capitals_are_read(patient):
    folder = patient()
    (folder / "times.csv").write_text("\ufefffile,time,unit\nscan0.nii.gz,0,Days\nscan1.nii.gz,2,days\n")
    assert load_sequence(folder).unit == "days"


def test_dates_of_different_time_zones_are_compared_in_one(patient):
    folder = patient()
    (folder / "times.csv").write_text(
        "file,date\nscan0.nii.gz,2024-01-01T10:00:00+02:00\nscan1.nii.gz,2024-01-01T20:00:00Z\n"
    )
    assert load_sequence(folder).times.tolist() == [0, 0.5]


def test_a_sequence_that_is_put_together_by_hand_keeps_the_contract():
    volumes = np.zeros((2, 1, 4, 4, 4), np.float32)
    there = np.ones(2, bool)
    refused("times_unordered", lambda: Sequence4D("p", volumes, np.array([3.0, 1.0]), "days", there))
    refused("unit_missing", lambda: Sequence4D("p", volumes, np.array([1.0, 3.0]), "", there))
    found = Sequence4D("p", volumes, np.array([1.0, 3.0]), "days", there)
    assert "none from before 0.5" in refused("future_only", lambda: found.before(0.5))
    assert found.before(np.nextafter(3.0, 4.0)).times.tolist() == [
        1
    ]  # the scan that is asked for, but for rounding


def test_times_convert_between_units_of_length_only(patient):
    assert converted(2, "weeks", "days") == 14
    assert converted(12, "months", "years") == pytest.approx(1)
    refused("units_differ", lambda: converted(1, "cycle", "days"))
    sequence = load_sequence(patient())
    assert asked_time("2024-02-05", None, sequence) == 31
    assert asked_time("2", "weeks", sequence) == 14
    assert asked_time("20240205", None, sequence) == 31
    assert asked_time("20240205", "days", sequence) == 20240205
    with pytest.raises(ConfigError, match="no date"):
        asked_time("soon", None, sequence)
    for never in ("nan", "inf"):
        with pytest.raises(ConfigError, match="is no time"):
            asked_time(never, None, sequence)


def test_normalisation_is_undone_exactly_enough():
    volumes = np.random.default_rng(0).normal(1000, 300, (3, 2, 4, 5, 6)).astype(np.float32)
    found = Normalization.of(volumes)
    normal = found.apply(volumes)
    assert np.allclose(found.undo(normal), volumes, rtol=1e-5)
    assert 0.9 < np.percentile(normal, 99) < 1.05


def test_volumes_are_cropped_and_padded_around_their_centre():
    volume = np.arange(6.0).reshape(1, 1, 6)
    assert fitted(volume, (1, 1, 4)).tolist() == [[[1, 2, 3, 4]]]
    assert fitted(volume, (1, 1, 8)).tolist() == [[[0, 0, 1, 2, 3, 4, 5, 0]]]


def test_folds_keep_patients_together_and_plans_do_not_depend_on_the_order(patient, tmp_path):
    names = [f"p{n}" for n in range(11)]
    folds = patient_folds([*names, *names], 3)
    assert sorted(sum(folds, ())) == sorted(names)
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    assert patient_folds(names[::-1], 3) == folds
    sequences = [prepared(load_sequence(patient(name=name)), None) for name in ("a", "b")]
    planned = plan_forecasts(sequences, seed=1)
    assert {p.patient: p for p in plan_forecasts(sequences[::-1], seed=1)} == {p.patient: p for p in planned}
    assert all(max(p.context) < p.target for p in planned)
    write_plan(planned, locate(str(tmp_path / "plan.json")))
    assert read_plan(locate(str(tmp_path / "plan.json"))) == planned
